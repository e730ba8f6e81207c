"""Cost of a checkpoint after every round: the pause of training, and the seconds that it adds to a round.

    python -m benchmarks.checkpoints MNIST_FOLDER [--config configs/rotated_mnist.yaml] [--repeats 6] [--ranks 2]

Whole runs are measured in pairs: one makes a checkpoint after every round, the other only the last one. The runs of a
pair follow each other in alternating order, so that a machine that slows down affects both. The difference in time,
divided by the number of additional checkpoints, is the cost of one checkpoint.

The cost is printed next to the cost of a round: wall seconds from the second run's metrics file, and that run's CPU
seconds minus those of a run of one round.
"""

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import seconds_by_rank, spent


def run(every: str, rounds: int, options: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Return the wall and CPU seconds of a run with a checkpoint every `every` rounds."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", str(options.ranks)]
    settings = [f"data.root={options.root}", f"rounds={rounds}", f"checkpoint.every={every}"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [*mpirun, sys.executable, "-m", "fedh2l_mpi", options.config, *words, "--quiet", "--out", str(out)]
    took = spent(command)
    return took.wall_s, took.cpu_s


def paused_ms(log: Path) -> list[float]:
    """Return the pauses of a rank for its checkpoints, from its log [ms]."""
    return [float(text) for text in re.findall(r"paused ([0-9.]+) ms", log.read_text())]


def round_seconds(out: Path, rounds: int) -> float:
    """Return the wall seconds of a round of the busiest rank."""
    return max(sum(seconds.values()) for seconds in seconds_by_rank(out).values()) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=lambda text: str(Path(text).resolve()), help="folder of MNIST's IDX files")
    parser.add_argument("--config", default="configs/rotated_mnist.yaml")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    added: list[tuple[float, float]] = []
    rounds, pauses, size = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            order = ("null", "1") if repeat % 2 else ("1", "null")
            outs = {every: Path(folder) / f"{repeat}-{every}" for every in order}
            seconds = {every: run(every, options.rounds, options, out) for every, out in outs.items()}
            _, one_cpu = run("null", 1, options, Path(folder) / f"{repeat}-one")
            # Both runs make the last checkpoint.
            more = options.rounds - 1
            wall, cpu = ((a - b) / more for a, b in zip(seconds["1"], seconds["null"], strict=True))
            added.append((wall, cpu))
            rounds.append((round_seconds(outs["null"], options.rounds), (seconds["null"][1] - one_cpu) / more))
            pauses += [ms for log in outs["1"].glob("log/*.log") for ms in paused_ms(log)]
            size = sum(path.stat().st_size for path in outs["1"].glob(f"checkpoints/*-{options.rounds:08d}/*"))
            print(f"pair {repeat + 1}: {1e3 * wall:+.1f} ms of wall and {1e3 * cpu:+.1f} ms of CPU a round", flush=True)
    for name, which in (("wall", 0), ("CPU", 1)):
        of_round = statistics.median(both[which] for both in rounds)
        shares = [both[which] / of_round for both in added]
        print(
            f"a checkpoint adds to the {name} seconds of a round ({1e3 * of_round:.0f} ms): median "
            f"{statistics.median(shares):+.1%} ({min(shares):+.1%} to {max(shares):+.1%})"
        )
    pauses.sort()
    print(
        f"pause for a checkpoint: median {statistics.median(pauses):.1f} ms, 99 of 100 within "
        f"{pauses[int(0.99 * len(pauses))]:.1f} ms"
    )
    print(f"a checkpoint has {size / 2**20:.2f} MiB; {options.repeats} pairs of {options.rounds} rounds")


if __name__ == "__main__":
    main()
