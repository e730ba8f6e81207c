"""What the simulator costs over a bare loop: CPU seconds of whole runs, in pairs, and memory of a rank.

    python -m benchmarks.cost MNIST_FOLDER [--repeats 5] [--ranks 2]

Prints, from one side-by-side run: CPU seconds (as the operating system counts them, children included) of the bare loop
and of `mpirun -n RANKS python -m fedh2l_mpi benchmarks/workload.yaml`, with the ratio pair by pair; once with all of a
run, and once per round (a long run less a short one, so that start-up cancels out). Then the largest peak memory of a
rank against that of a process that imports the same libraries, plus what data and models take.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
IMPORTS = "import torch, h5py, mpi4py.MPI; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def cpu_seconds(command: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def simulator(root: str, rounds: int, ranks: int, out: Path) -> list[str]:
    settings = ["--set", f"data.root={root}", "--set", f"rounds={rounds}", "--out", str(out), "--quiet"]
    mpirun = str(Path(sys.executable).with_name("mpirun"))
    return [mpirun, "-n", str(ranks), sys.executable, "-m", "fedh2l_mpi", "benchmarks/workload.yaml", *settings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of MNIST's IDX files")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    root = str(Path(options.root).resolve())
    whole, steady = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            seconds = {}
            for rounds in (options.rounds, options.rounds // 2):
                bare = [sys.executable, "benchmarks/bare_loop.py", root, str(rounds)]
                out = Path(folder) / f"{repeat}-{rounds}"
                seconds[rounds] = (
                    cpu_seconds(bare),
                    cpu_seconds(simulator(root, rounds, options.ranks, out)),
                )
            (bare_long, ours_long), (bare_short, ours_short) = seconds.values()
            whole.append(ours_long / bare_long)
            steady.append((ours_long - ours_short) / (bare_long - bare_short))
            print(
                f"pair {repeat + 1}: {options.rounds} rounds: bare loop {bare_long:.1f} CPU s, {options.ranks} ranks "
                f"{ours_long:.1f} CPU s, ratio {whole[-1]:.2f}; without start-up {steady[-1]:.2f}",
                flush=True,
            )
        logs = (Path(folder) / f"0-{options.rounds}" / "log").glob("*.log")
        peaks = [float(re.search(r"at most (\d+) MiB", log.read_text())[1]) for log in logs]
    print(f"CPU seconds of a whole run over the bare loop's: {spread(whole)}")
    print(f"CPU seconds of a round over the bare loop's: {spread(steady)}")
    imports = [int(subprocess.check_output([sys.executable, "-c", IMPORTS])) / 1024 for _ in range(3)]
    participants = -(-16 // options.ranks)
    # Images of private data, seed set and tests; weights and velocity of each model, and one step's two gradients.
    data = (participants * 980 + 320 + 4 * 250) * (784 * 4 + 8) / 2**20
    models = (participants * 2 + 2) * 61_706 * 4 / 2**20
    floor = statistics.median(imports) + data + models
    print(
        f"peak memory of a rank: {max(peaks):.0f} MiB; imports of torch, h5py, mpi4py {statistics.median(imports):.0f} "
        f"MiB, data {data:.0f} MiB, models {models:.0f} MiB; ratio {max(peaks) / floor:.2f}"
    )


if __name__ == "__main__":
    main()
