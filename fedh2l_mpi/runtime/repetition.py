"""Take the steps of a phase, with all that they need from the host prepared beforehand."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from fedh2l_mpi.runtime import step_graphs
from fedh2l_mpi.runtime.step_graphs import UnitGraphs


class Unit(step_graphs.Unit, Protocol):
    """One participant, or several that step together.

    Attributes
    ----------
    graphs : UnitGraphs or None
        Its recorded steps; None: every step is taken call by call.
    """

    graphs: UnitGraphs | None


def take(unit: Unit, steps: int | Tensor, step: Callable[..., None], reads: Sequence[Any]) -> None:
    """Take steps of one kind: by recorded steps if the unit has graphs, and the step can be recorded.

    Parameters
    ----------
    steps : int or int64 tensor (steps, ...)
        Number of steps, or the rows of the seed minibatch of each, which `step` gets first.
    step : callable
        Takes one step: `step(*reads)`, or `step(rows, *reads)`.
    """
    done = 0 if unit.graphs is None else unit.graphs.take(unit, steps, step, reads)
    step_graphs.take_each(unit, steps, done, step_graphs.count_of(steps), step, reads)
