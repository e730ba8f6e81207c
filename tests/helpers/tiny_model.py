"""A model that is small enough to keep the checkpoints of a run among the tests."""

from torch import nn


class Tiny(nn.Sequential):
    """Logits as a linear function of the pixels."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * side * side, classes))
