"""The built-in architectures, sized to the input's channels and side; each maps images to logits.

Shape letters: B minibatch, K channels, H side, C classes. Max-pooling stands before ReLU: the two commute, and ReLU
then has a quarter of the work.
"""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Two hidden layers, 128 and 64 wide."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, classes),
        )

    def forward(self, images_BKHH: Tensor) -> Tensor:
        return self.layers(images_BKHH)


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling; 61,706 parameters for MNIST.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        # 28 pixels are padded to the 32 of the original; images too small for its second layer are padded there too.
        first, second = (0 if side >= 32 else 2), (0 if side >= 20 else 2)
        after = ((side + 2 * first - 4) // 2 + 2 * second - 4) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(16 * after * after, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        )

    def forward(self, images_BKHH: Tensor) -> Tensor:
        return self.layers(images_BKHH)


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


class _Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), with batch normalisation, and a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.path(x) + self.shortcut(x)).relu()


class ResNet8(nn.Module):
    """A residual network of 8 weight layers, 16, 32 and 64 channels wide, with global average pooling.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, section 4.2 with n = 1.
    """

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            _Residual(16, 16, stride=1),
            _Residual(16, 32, stride=2),
            _Residual(32, 64, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, classes),
        )

    def forward(self, images_BKHH: Tensor) -> Tensor:
        return self.layers(images_BKHH)


ZOO: dict[str, type[nn.Module]] = {"mlp": Mlp, "lenet5": LeNet5, "cnn": Cnn, "resnet8": ResNet8}
