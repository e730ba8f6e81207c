"""A small model: a thousand of them train in a few seconds a round."""

from torch import nn


class SmallMlp(nn.Sequential):
    """One hidden layer of 25; 19,885 parameters for MNIST."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(channels * side * side, 25), nn.ReLU(inplace=True), nn.Linear(25, classes)
        )
