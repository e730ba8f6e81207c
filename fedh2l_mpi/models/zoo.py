"""The built-in architectures, sized to the input's channels and side; each maps images to logits.

Shape letters: B minibatch, K channels, H side, C classes. Max-pooling comes before ReLU, because the two commute and
ReLU then has a quarter of the work.
"""

from collections.abc import Sequence
from itertools import islice, pairwise

from torch import Tensor, nn

from fedh2l_mpi.models import wide_layout
from fedh2l_mpi.models.mobilenet import MobileNet
from fedh2l_mpi.models.resnet import ResNet8, ResNet18
from fedh2l_mpi.models.vit import VisionTransformer


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers.
    """

    def __init__(self, channels: int, side: int, classes: int, hidden: Sequence[int] = (128, 64)) -> None:
        super().__init__()
        widths = (channels * side * side, *hidden)
        layers = [part for one, two in pairwise(widths) for part in (nn.Linear(one, two), nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], classes))

    def forward(self, images_BKHH: Tensor) -> Tensor:
        return self.layers(images_BKHH)


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling; 61,706 parameters for MNIST.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    # Layers before the flattening one.
    CONVOLUTIONAL = 6

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        # 28 pixels are padded to the original's 32. Images too small for the second layer are padded there as well.
        first, second = (0 if side >= 32 else 2), (0 if side >= 20 else 2)
        after = ((side + 2 * first - 4) // 2 + 2 * second - 4) // 2
        # ReLU in place would change a view of the pooling's result, and autograd would make two copies.
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * after * after, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        )

    def forward(self, images_BKHH: Tensor) -> Tensor:
        if images_BKHH.device.type != "cpu":
            return self.layers(images_BKHH)
        layers = iter(self.layers)
        values = wide_layout.forward(islice(layers, self.CONVOLUTIONAL), images_BKHH)
        for layer in layers:
            values = layer(values)
        return values


class Cnn(nn.Module):
    """Two convolutions with batch normalisation, 16 and 32 channels, and one hidden layer of 64."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        after = side // 4
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
            nn.Linear(32 * after * after, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, classes),
        )

    def forward(self, images_BKHH: Tensor) -> Tensor:
        return self.layers(images_BKHH)


ZOO: dict[str, type[nn.Module]] = {
    "mlp": Mlp,
    "lenet5": LeNet5,
    "cnn": Cnn,
    "resnet8": ResNet8,
    "resnet18": ResNet18,
    "mobilenet": MobileNet,
    "vit": VisionTransformer,
}
