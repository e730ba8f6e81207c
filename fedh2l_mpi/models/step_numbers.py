"""Numbers of updates that differ from step to step, such as the learning rate, as a table of many steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedh2l_mpi.models.optimizers import Optimizer
from fedh2l_mpi.models.weight_average import JoinedAverage, WeightAverage


class StepNumbers:
    """The numbers of an optimiser and of an average of weights, by step; see `runtime.step_graphs.StepSource`.

    Parameters
    ----------
    optimizer : Optimizer
        The one that steps.
    counting : sequence of Optimizer
        Optimisers of the members of a batch, which count its steps as well.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        average: WeightAverage | JoinedAverage | None,
        counting: Sequence[Optimizer] = (),
    ) -> None:
        self._optimizer, self._average, self._counting = optimizer, average, [*counting, optimizer]

    @property
    def count(self) -> int:
        """Number of updates so far."""
        return self._counting[0].steps

    @count.setter
    def count(self, steps: int) -> None:
        for one in self._counting:
            one.steps = steps

    def announce(self, steps: int) -> None:
        """Do nothing: numbers are made when a step needs them."""

    def prepare(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    def drawn(self, steps: int, largest_bytes: int) -> list[Tensor]:
        """Return the numbers of the next updates, float64 (steps, numbers), in host memory."""
        table = [self._numbers(self.count + index) for index in range(steps)]
        return [torch.tensor(table, dtype=torch.float64)]

    def bind(self, row: Sequence[Tensor] | None) -> None:
        """Let updates use numbers that are on the device; None: compute them on the host again."""
        if row is None:
            self._optimizer.numbers_on_device = None
            if self._average is not None:
                self._average.decay_on_device = None
            return
        *numbers, kept = row[0].unbind()
        self._optimizer.numbers_on_device = numbers
        if self._average is not None:
            self._average.decay_on_device = kept

    def _numbers(self, steps: int) -> list[float]:
        kept = 1.0 if self._average is None else self._average.kept_by(steps + 1)
        return [*self._optimizer.numbers(steps), kept]
