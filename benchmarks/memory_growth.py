"""Growth of a run's memory: private memory of every rank over many tiny rounds.

    python -m benchmarks.memory_growth [--rounds 20000] [--ranks 2]

It starts a run of four small models on the digits, one step in each phase, and samples the private memory (RssAnon) of
each rank while it runs. It prints the samples, and the growth per round over the last half of the rounds. A rank that
keeps nothing of a round grows by less than LIMIT_KIB a round. 20,000 rounds take some minutes.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import REPOSITORY
from fedh2l_mpi.launch.sweep.runner import mpi_command
from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.run_directory import RunDirectory

SETTINGS = (
    *(
        "participants=4",
        "models=[mlp]",
        "method.local_steps=1",
        "method.mutual_steps=1",
        "seed_set.samples_per_round=8",
    ),
    *("optimizer.batch_size=2", "optimizer.seed_batch_size=2", "data.partition.samples_per_participant=16"),
    *("evaluation.test_samples_per_domain=16", "evaluation.every=100", "checkpoint.every=500"),
)
SAMPLES = 40
LIMIT_KIB = 0.1


def main() -> None:
    """Run, sample, print; exit with 1 if a rank grows by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(RunDirectory(Path(folder) / "run"), options.rounds, options.ranks)
    print("round    " + "".join(f"rank {rank} [KiB]  " for rank in range(options.ranks)))
    for done, *kib in samples:
        print(f"{done:6,}  " + "".join(f"{value:12,}  " for value in kib))
    grown = [growth_kib(samples, rank, options.rounds // 2) for rank in range(options.ranks)]
    print("growth over the last half [KiB a round]: " + ", ".join(f"{value:.3f}" for value in grown))
    sys.exit(max(grown) > LIMIT_KIB)


def measure(directory: RunDirectory, rounds: int, ranks: int) -> list[tuple[int, ...]]:
    """Run the rounds, and return rows of the number of finished rounds and each rank's private memory [KiB]."""
    command = [*mpi_command(ranks if ranks > 1 else None), sys.executable, "-m", "fedh2l_mpi", "--quiet"]
    words = [word for setting in (*SETTINGS, f"rounds={rounds}") for word in ("--set", setting)]
    process = subprocess.Popen([*command, *words, "--out", str(directory.path)], cwd=REPOSITORY)
    samples: list[tuple[int, ...]] = []
    try:
        while process.poll() is None:
            now = status.read(directory.status)
            if now is not None and now.round >= len(samples) * rounds / SAMPLES and now.state == "running":
                pids = [_pid_of(directory.log(rank)) for rank in range(ranks)]
                samples.append((now.round, *map(_private_kib, pids)))
            time.sleep(0.2)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return samples


def growth_kib(samples: list[tuple[int, ...]], rank: int, after: int) -> float:
    """Return the slope of a rank's memory over the samples after `after` rounds, by least squares [KiB a round]."""
    late = np.array([row for row in samples if row[0] >= after], dtype=float)
    return float(np.polyfit(late[:, 0], late[:, 1 + rank], 1)[0])


def _pid_of(log: Path) -> int:
    found = re.search(r"INFO rank \d+ of \d+ \(host .*, pid (\d+)\)", log.read_text())
    if found is None:
        raise SystemExit(f"{log} does not say the rank's process")
    return int(found[1])


def _private_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise SystemExit(f"process {pid} has ended")


if __name__ == "__main__":
    main()
