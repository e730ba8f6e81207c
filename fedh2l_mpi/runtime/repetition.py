"""Take the steps of a phase, with all that they need from the host prepared beforehand."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Prepared(Protocol):
    """A source of minibatches, which sends those of several steps to the device at once."""

    def announce(self, steps: int) -> None:
        """Prepare for this many steps."""

    def release(self) -> None:
        """Free what was prepared."""


def take(sources: Sequence[Prepared], steps: int | Tensor, step: Callable[..., None], reads: Sequence[Any]) -> None:
    """Take steps of one kind.

    Parameters
    ----------
    sources : sequence of Prepared
        What the steps take minibatches from.
    steps : int or int64 tensor (steps, ...)
        Number of steps, or the rows of the seed minibatch of each, which `step` gets first.
    step : callable
        Takes one step: `step(*reads)`, or `step(rows, *reads)`.
    """
    for source in sources:
        source.announce(steps if isinstance(steps, int) else len(steps))
    try:
        if isinstance(steps, int):
            for _ in range(steps):
                step(*reads)
        else:
            for rows in steps:
                step(rows, *reads)
    finally:
        for source in sources:
            source.release()
