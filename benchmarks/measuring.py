"""Cost of commands as the operating system counts it, and the spread of repeated measurements.

A command's processes are found by a mark in their environment. Children inherit it, so processes whose parent has
exited are found as well.
"""

import os
import statistics
import subprocess
import sys
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

MIB = 2**20
REPOSITORY = Path(__file__).resolve().parent.parent
MARK = "BENCHMARK_OF"
# It becomes the parent of every orphan among the command's processes, and waits for all of them (prctl(2)).
PR_SET_CHILD_SUBREAPER = 36
WAITS_FOR_ALL = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({PR_SET_CHILD_SUBREAPER}, 1, 0, 0, 0)
own = os.posix_spawnp(sys.argv[2], sys.argv[2:], {{**os.environ, "{MARK}": sys.argv[1]}})
codes = {{}}
try:
    while True:
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
except ChildProcessError:
    os._exit(codes[own] if codes[own] >= 0 else 1)
"""
# Adding up page tables takes time from the measured processes; this is the largest share of one CPU that it may use.
SAMPLE_EVERY_S, SAMPLING_SHARE = 0.5, 0.03


@dataclass(frozen=True)
class Spent:
    """Cost of a command with all processes that it started.

    Attributes
    ----------
    cpu_s : float
        User and system time of all processes, also of those that nobody waits for, such as the process that imports for
        the ranks of a node.
    pss_bytes : int
        Largest sum of their proportional set sizes, sampled while they ran. A page that several processes share counts
        once.
    """

    cpu_s: float
    wall_s: float
    pss_bytes: int


def spent(command: Sequence[str]) -> Spent:
    """Run a command in the repository's root; return its cost.

    Raises
    ------
    SystemExit
        If it fails; the message contains its output.
    """
    mark = uuid.uuid4().hex
    ended = threading.Event()
    with tempfile.TemporaryFile("w+") as output, ThreadPoolExecutor(1) as pool:
        begin = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        waiting = [sys.executable, "-I", "-S", "-c", WAITS_FOR_ALL, mark, *command]
        process = subprocess.Popen(waiting, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment)
        peak = pool.submit(_peak_pss, mark, ended)
        # Several commands may run at a time, so this counts one child and the processes that it waited for.
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read()}")
        return Spent(used.ru_utime + used.ru_stime, wall, peak.result())


def spent_together(commands: Sequence[Sequence[str]]) -> list[Spent]:
    """Run several commands at the same time; return the cost of each."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(spent, commands))


def _peak_pss(mark: str, ended: threading.Event) -> int:
    peak, pause = 0, SAMPLE_EVERY_S
    while not ended.wait(pause):
        # Wall seconds would be mostly waiting if all cores are busy, and short runs would be sampled only once.
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
        except OSError:  # the process has ended, or belongs to another user
            continue
    return found


def _pss_of_running(process: Path) -> int:
    try:
        return pss_bytes(process)
    except (OSError, StopIteration):  # the process has ended
        return 0


def pss_bytes(process: Path) -> int:
    """Return the proportional set size of a process, given its folder in /proc [bytes]."""
    lines = (process / "smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def seconds_by_rank(run: Path) -> dict[int, dict[str, float]]:
    """Sum each timing of a run's metrics.h5 over all rounds, for each rank [s]."""
    result = metrics.read(run / "metrics.h5")
    ranks_P = result["rank"]
    seconds = {name: np.nansum(result[name], axis=0) for name in metrics.TIMINGS}
    return {
        int(rank): {name: float(values_P[ranks_P == rank].sum()) for name, values_P in seconds.items()}
        for rank in np.unique(ranks_P)
    }


def waited_shares(run: Path) -> dict[int, float]:
    """Return, for each rank, the share of its time that it waited for messages."""
    return {rank: seconds["seconds_wait"] / sum(seconds.values()) for rank, seconds in seconds_by_rank(run).items()}


def step_seconds(ways: Mapping[str, Callable[[], object]], steps: int, repeats: int) -> dict[str, list[float]]:
    """Measure the CPU seconds of a step in several ways that take turns; the first turn of each is a warm-up."""
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
    """Return the `spread` of the ratios of two series, repetition by repetition."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format median and range, such as `0.72 (0.70 to 0.75)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
