"""The built-in architectures, sized to the shape of a sample; each maps samples to logits.

Shape letters: B minibatch, K channels, H height, W width, C classes. Max-pooling comes before ReLU, because
the two commute and ReLU then has a quarter of the work.
"""

import math
from collections.abc import Sequence
from itertools import islice, pairwise

from torch import Tensor, nn

from fedh2l_mpi.models import wide_layout
from fedh2l_mpi.models.constructor import check_widths
from fedh2l_mpi.models.mobilenet import MobileNet
from fedh2l_mpi.models.resnet import ResNet8, ResNet18
from fedh2l_mpi.models.sequence import Cnn1d, Gru, TextTransformer, TokenMean
from fedh2l_mpi.models.vit import VisionTransformer
from fedh2l_mpi.sample_form import SampleKind


class Mlp(nn.Module):
    """Linear layers with ReLU between them, over all numbers of a sample or the mean of its embedded tokens.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers.
    """

    # Width of a token's embedding.
    EMBEDDING = 64

    def __init__(
        self, shape: tuple[int, ...], classes: int, vocabulary: int = 0, hidden: Sequence[int] = (128, 64)
    ) -> None:
        super().__init__()
        if not isinstance(hidden, list | tuple):
            raise ValueError(f"hidden must be a list of widths, such as [128, 64], got {hidden!r}")
        check_widths(**{f"hidden.{place}": width for place, width in enumerate(hidden)})
        first = TokenMean(vocabulary, self.EMBEDDING) if vocabulary else nn.Flatten()
        widths = (self.EMBEDDING if vocabulary else math.prod(shape), *hidden)
        layers = [part for one, two in pairwise(widths) for part in (nn.Linear(one, two), nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(first, *layers, nn.Linear(widths[-1], classes))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling; 61,706 parameters for MNIST.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    # Layers before the flattening one.
    CONVOLUTIONAL = 6

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        # 28 pixels are padded to the original's 32. Images too small for the second layer are padded there as well.
        first = (0 if height >= 32 else 2, 0 if width >= 32 else 2)
        second = (0 if height >= 20 else 2, 0 if width >= 20 else 2)
        after = [
            ((side + 2 * outer - 4) // 2 + 2 * inner - 4) // 2
            for side, outer, inner in zip((height, width), first, second, strict=True)
        ]
        # ReLU in place would change a view of the pooling's result, and autograd would make two copies.
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * math.prod(after), 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        )

    def forward(self, images_BKHW: Tensor) -> Tensor:
        if images_BKHW.device.type != "cpu":
            return self.layers(images_BKHW)
        layers = iter(self.layers)
        values = wide_layout.forward(islice(layers, self.CONVOLUTIONAL), images_BKHW)
        for layer in layers:
            values = layer(values)
        return values


class Cnn(nn.Module):
    """Two convolutions with batch normalisation, 16 and 32 channels, and one hidden layer of 64."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        after = [side // 4 for side in sides]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(32 * math.prod(after), 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, classes),
        )

    def forward(self, images_BKHW: Tensor) -> Tensor:
        return self.layers(images_BKHW)


ZOO: dict[str, type[nn.Module]] = {
    "mlp": Mlp,
    "lenet5": LeNet5,
    "cnn": Cnn,
    "resnet8": ResNet8,
    "resnet18": ResNet18,
    "mobilenet": MobileNet,
    "vit": VisionTransformer,
    "cnn1d": Cnn1d,
    "gru": Gru,
    "text_transformer": TextTransformer,
}
# Kinds of samples of the architectures that are not for images alone.
TAKES: dict[str, tuple[SampleKind, ...]] = {
    "mlp": ("image", "series", "vector", "tokens"),
    "cnn1d": ("series",),
    "gru": ("series", "tokens"),
    "text_transformer": ("tokens",),
}
IMAGES: tuple[SampleKind, ...] = ("image",)


def taking(kind: SampleKind) -> list[str]:
    """Return the architectures that take samples of this kind."""
    return [name for name in ZOO if kind in TAKES.get(name, IMAGES)]
