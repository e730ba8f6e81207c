"""Seconds of small pieces of work on a device that computes asynchronously."""

import statistics
import time
from collections.abc import Callable

from benchmarks.gpu.findings import ON_GPU, TINY


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if ON_GPU:
        import torch

        torch.cuda.synchronize()


def seconds_of(action: Callable[[], object], budget_s: float = 0.6, repeats: int = 5, warm_up: int = 3) -> float:
    """Return the seconds of one call: the median of `repeats` groups of calls that take about `budget_s` together."""
    budget_s = min(budget_s, 0.05) if TINY else budget_s
    for _ in range(warm_up):
        action()
    once = _seconds(action, 1)
    calls = max(1, round(budget_s / repeats / max(1e-6, once)))
    return statistics.median(_seconds(action, calls) for _ in range(repeats))


def _seconds(action: Callable[[], object], calls: int) -> float:
    synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        action()
    synchronize()
    return (time.perf_counter() - begin) / calls


def short(seconds: float) -> str:
    """Format a duration in microseconds, or in milliseconds from 20 ms on."""
    return f"{1e6 * seconds:.0f} us" if seconds < 0.02 else f"{1e3 * seconds:.0f} ms"
