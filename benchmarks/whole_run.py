"""CPU seconds and memory of a whole run of one rank per participant, with `--share-imports`, next to the bare loop's.

    python -m benchmarks.whole_run MNIST_FOLDER [--ranks 16] [--rounds 10] [--repeats 3] [--share-imports auto]

The run is `workload.yaml`, from the start of mpirun to its end; the bare loop makes the same steps in one process
(`bare_loop.py`). The two take turns, and each ratio is of one turn. Memory is the largest sum of the proportional set
sizes of all processes, the one that imports included, as sampled twice a second.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.measuring import MIB, ratios, spent, spread
from benchmarks.performance import METHODS, Case, Place
from fedh2l_mpi.runtime.shared_imports import ALWAYS, MODES, OPTION

CPU_TARGET, MEMORY_TARGET_MIB = 0.95, 1450


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of MNIST's IDX files")
    parser.add_argument("--ranks", type=int, default=16, help="also the number of participants")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, default="dml")
    parser.add_argument(OPTION, choices=MODES, default=ALWAYS)
    options = parser.parse_args()
    case = Case(options.method, options.ranks, options.rounds, options.rounds, options.repeats)
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(str(Path(options.root).resolve()), Path(folder), (f"{OPTION}={options.share_imports}",))
        for repeat in range(options.repeats):
            bare.append(spent(place.bare_loop(case, options.rounds)))
            settings = (options.rounds, options.ranks, METHODS[options.method], f"run-{repeat}")
            ours.append(spent(place.simulator("workload.yaml", options.ranks, *settings)))
            print(
                f"{repeat + 1}: bare loop {bare[-1].cpu_s:.1f} CPU s, {bare[-1].pss_bytes / MIB:.0f} MiB; run "
                f"{ours[-1].cpu_s:.1f} CPU s, {ours[-1].wall_s:.1f} s, {ours[-1].pss_bytes / MIB:.0f} MiB",
                flush=True,
            )
    cpu = [[one.cpu_s for one in each] for each in (ours, bare)]
    memory = [one.pss_bytes / MIB for one in ours]
    print(f"{options.ranks} ranks, {options.rounds} rounds: medians of {options.repeats} (ranges)")
    print(f"CPU seconds: {spread(cpu[0], 1)}; over the bare loop's {ratios(*cpu)}, goal {CPU_TARGET}")
    print(f"memory: {spread(memory, 0)} MiB, goal {MEMORY_TARGET_MIB:,}")
    reached = statistics.median(memory) <= MEMORY_TARGET_MIB
    reached &= statistics.median(a / b for a, b in zip(*cpu, strict=True)) <= CPU_TARGET
    print("both goals are reached" if reached else "a goal is missed")


if __name__ == "__main__":
    main()
