"""Numbers that training steps record by name: they stay on the device until their means are asked for."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


class StepNotes:
    """Numbers of a participant's steps since the last `take_means`, by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._sink: Callable[[str, Tensor], None] | None = None

    @property
    def counts(self) -> Counter[str]:
        """Number of recorded numbers by name."""
        return Counter({name: sum(map(Tensor.numel, values)) for name, values in self._values.items()})

    def add(self, name: str, values: Tensor) -> None:
        """Record the number of a step, or those of several steps (steps,)."""
        if self._sink is not None:
            self._sink(name, values)
        else:
            self._values.setdefault(name, []).append(values)

    def redirect(self, sink: Callable[[str, Tensor], None] | None) -> None:
        """Pass numbers to `sink` instead of recording them; None: record them again."""
        self._sink = sink

    def take_means(self) -> dict[str, float]:
        """Return the mean of each name, and forget the numbers. All come from the device in one copy."""
        taken, self._values = self._values, {}
        if not taken:
            return {}
        together = [torch.cat([value.reshape(-1).double() for value in values]) for values in taken.values()]
        return dict(zip(taken, torch.stack([values.mean() for values in together]).tolist(), strict=True))
