"""What a command takes, as the operating system counts it, and how repeated measurements are told.

A command's processes are found by a mark in their environment, which they hand on: also those whose parent has gone.
"""

import os
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedh2l_mpi import metrics

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = "BENCHMARK_OF"
# Adding up page tables takes a processor from what is measured: at most this share of one.
SAMPLE_EVERY_S, SAMPLING_SHARE = 0.5, 0.03


@dataclass(frozen=True)
class Spent:
    """What a command and all that it started took.

    Attributes
    ----------
    cpu_s : float
        User and system time of all processes that were waited for: of all, but for ranks with `--share-imports`, which
        are children of a process that nobody waits for (`start_up` knows how).
    pss_bytes : int
        Largest sum of their proportional set sizes, of samples taken while they ran: a page that several processes
        share counts once.
    """

    cpu_s: float
    wall_s: float
    pss_bytes: int


def spent(command: Sequence[str]) -> Spent:
    """Run a command from the repository's root, and what it took.

    Raises
    ------
    SystemExit
        If it fails, with what it wrote.
    """
    mark = uuid.uuid4().hex
    ended = threading.Event()
    with tempfile.TemporaryFile("w+") as output, ThreadPoolExecutor(1) as pool:
        begin = time.perf_counter()
        environment = {**os.environ, MARK: mark, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment)
        peak = pool.submit(_peak_pss, mark, ended)
        # Of this child alone, and of those it waited for: several commands may run at a time.
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read()}")
        return Spent(used.ru_utime + used.ru_stime, wall, peak.result())


def spent_together(commands: Sequence[Sequence[str]]) -> list[Spent]:
    """What each of several commands took that ran at the same time."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(spent, commands))


def _peak_pss(mark: str, ended: threading.Event) -> int:
    peak, pause = 0, SAMPLE_EVERY_S
    while not ended.wait(pause):
        # Not wall seconds: where all cores are busy, they are mostly waiting, and short runs would be looked at once.
        begin = time.thread_time()
        peak = max(peak, sum(_pss_of_running(process) for process in _marked(mark)))
        pause = max(SAMPLE_EVERY_S, (time.thread_time() - begin) / SAMPLING_SHARE)
    return peak


def _marked(mark: str) -> list[Path]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes():
                found.append(process)
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def _pss_of_running(process: Path) -> int:
    try:
        return pss_bytes(process)
    except (OSError, StopIteration):  # it has ended
        return 0


def pss_bytes(process: Path) -> int:
    """Proportional set size of a process, which is a folder of /proc."""
    lines = (process / "smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def seconds_by_rank(run: Path) -> dict[int, dict[str, float]]:
    """Each rank's seconds of each timing of metrics.h5, over all rounds of a run, from its directory."""
    result = metrics.read(run / "metrics.h5")
    ranks_P = result["rank"]
    seconds = {name: np.nansum(result[name], axis=0) for name in metrics.TIMINGS}
    return {
        int(rank): {name: float(values_P[ranks_P == rank].sum()) for name, values_P in seconds.items()}
        for rank in np.unique(ranks_P)
    }


def waited_shares(run: Path) -> dict[int, float]:
    """Of each rank: seconds of waiting for messages over those of all phases of its rounds."""
    return {rank: seconds["seconds_wait"] / sum(seconds.values()) for rank, seconds in seconds_by_rank(run).items()}


def step_seconds(ways: Mapping[str, Callable[[], object]], steps: int, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of a step by each of several ways, in every repetition; they take turns, first once to warm up."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, step in ways.items():
            begin = time.process_time()
            for _ in range(steps):
                step()
            if repeat:
                taken[way].append((time.process_time() - begin) / steps)
    return taken


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """`spread` of what is so many times the other, repetition by repetition."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Such as `0.72 (0.70 to 0.75)`: median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
