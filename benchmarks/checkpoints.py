"""What a checkpoint after every round costs, over a run that makes none: wall and CPU seconds of a round, in pairs.

    python -m benchmarks.checkpoints MNIST_FOLDER [--config configs/rotated_mnist.yaml] [--repeats 5] [--ranks 2]

A round's seconds are those of a long run less those of a short one, so that start-up cancels out. Both runs of a pair
follow each other, so that a machine that slows down slows both.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def spent(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and all it starts."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    wall = time.perf_counter() - begin
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def round_seconds(every: str, options: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a round, with a checkpoint every so many rounds."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", str(options.ranks)]
    seconds = []
    for rounds in (options.rounds, options.rounds // 4):
        settings = [f"data.root={options.root}", f"rounds={rounds}", f"checkpoint.every={every}"]
        words = [word for setting in settings for word in ("--set", setting)]
        program = [sys.executable, "-m", "fedh2l_mpi", options.config, *words, "--quiet", "--out", f"{out}-{rounds}"]
        seconds.append(spent([*mpirun, *program]))
    difference = options.rounds - options.rounds // 4
    wall, cpu = ((long - short) / difference for long, short in zip(*seconds, strict=True))
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=lambda text: str(Path(text).resolve()), help="folder of MNIST's IDX files")
    parser.add_argument("--config", default="configs/rotated_mnist.yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            never = round_seconds("null", options, Path(folder) / f"{repeat}-never")
            always = round_seconds("1", options, Path(folder) / f"{repeat}-always")
            pairs.append((never, always))
            print(f"pair {repeat + 1}: {1e3 * never[0]:.0f} and {1e3 * always[0]:.0f} ms a round", flush=True)
        size = sum(path.stat().st_size for path in Path(folder).glob("0-always-*/checkpoints/*40/*"))
    for name, which in (("wall", 0), ("CPU", 1)):
        ratios = [always[which] / never[which] for never, always in pairs]
        low, high = min(ratios), max(ratios)
        print(f"{name} seconds of a round, over none: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")
    print(f"a checkpoint has {size / 2**20:.2f} MiB; {options.repeats} pairs of {options.rounds} rounds")


if __name__ == "__main__":
    main()
