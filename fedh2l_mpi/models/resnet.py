"""Residual networks: the smallest of the CIFAR family, and ResNet-18.

Shape letters: B minibatch, K channels, H height, W width, C classes.

Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.
"""

from torch import Tensor, nn


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

    Source: section 4.2 with n = 1.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *_sides = shape
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

    def forward(self, images_BKHW: Tensor) -> Tensor:
        return self.layers(images_BKHW)


class _BasicBlock(nn.Module):
    """A `_Residual` whose parts have the names of published ResNet-18 weights."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        path = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(path + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18; 11,689,512 parameters for images of more than 64 pixels, 3 channels and 1000 classes.

    Images of up to 64 pixels enter through one 3 x 3 convolution at full resolution, as is usual for CIFAR. The
    original stem, a 7 x 7 convolution and a max-pooling, both of stride 2, would leave little of them.

    Initial weights are PyTorch's default instead of the paper's. Parameters are named as in torchvision, so weights
    published for its `resnet18` load into models with the original stem.

    Source: table 1, 18 layers.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        small = max(sides) <= 64
        self.conv1 = nn.Conv2d(
            channels, 64, kernel_size=3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_BasicBlock(64, 64, stride=1), _BasicBlock(64, 64, stride=1))
        self.layer2 = nn.Sequential(_BasicBlock(64, 128, stride=2), _BasicBlock(128, 128, stride=1))
        self.layer3 = nn.Sequential(_BasicBlock(128, 256, stride=2), _BasicBlock(256, 256, stride=1))
        self.layer4 = nn.Sequential(_BasicBlock(256, 512, stride=2), _BasicBlock(512, 512, stride=1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)

    def forward(self, images_BKHW: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images_BKHW))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))
