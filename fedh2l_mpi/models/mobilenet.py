"""A small network of depthwise-separable inverted residuals.

Shape letters: B minibatch, K channels, H height, W width, C classes.
"""

from torch import Tensor, nn


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1 without ReLU; add the input if shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        wide = expansion * channels_in
        self.adds = stride == 1 and channels_in == channels_out
        self.path = nn.Sequential(
            _convolution(channels_in, wide, 1),
            _convolution(wide, wide, 3, stride=stride, groups=wide),
            nn.Conv2d(wide, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x) if self.adds else self.path(x)


class MobileNet(nn.Module):
    """Six inverted residuals, 16 to 64 channels wide, between a 3 x 3 stem and a 1 x 1 head, then average pooling.

    The building block is MobileNetV2's, the table is smaller: 6 blocks instead of 17, channels widened 4 times instead
    of 6, a head of 128 instead of 1280 channels, no dropout. Initial weights are PyTorch's default. Images are halved
    three times instead of five; the stem halves images of more than 64 pixels once more.

    Source: Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals and linear bottlenecks", 2018,
    section 3.3.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        self.layers = nn.Sequential(
            _convolution(channels, 16, 3, stride=1 if max(sides) <= 64 else 2),
            _InvertedResidual(16, 24, stride=2),
            _InvertedResidual(24, 24, stride=1),
            _InvertedResidual(24, 32, stride=2),
            _InvertedResidual(32, 32, stride=1),
            _InvertedResidual(32, 64, stride=2),
            _InvertedResidual(64, 64, stride=1),
            _convolution(64, 128, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes),
        )

    def forward(self, images_BKHW: Tensor) -> Tensor:
        return self.layers(images_BKHW)
