"""Random transformations of images, on tensors, every random number from a generator that the caller gives.

The same generator state gives the same images on every rank. Shape letters: N images, K channels, H height, W width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

Augmentation = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Affine:
    """Each image shifted, turned and resized a little; what comes in from outside has the image's darkest value.

    Attributes
    ----------
    rotation_deg : float
        Largest turn either way [degrees].
    scale : float
        Largest change of size either way, as a share.
    shift : float
        Largest shift along each axis, as a share of the image's side, before the turn, which shares it out between
        the axes anew, and the change of size.
    """

    rotation_deg: float = 15.0
    scale: float = 0.1
    shift: float = 0.05

    def __call__(self, images_NKHW: Tensor, draw: np.random.Generator) -> Tensor:
        """New images (N, K, H, W); the draws do not depend on the images."""
        count = len(images_NKHW)
        angle = np.radians(draw.uniform(-self.rotation_deg, self.rotation_deg, count))
        size = draw.uniform(1 - self.scale, 1 + self.scale, count)
        # The grid spans -1 to 1: a shift by the whole side is 2.
        shift = 2 * draw.uniform(-self.shift, self.shift, (count, 2))
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        rows = np.stack([np.stack([cos, -sin, shift[:, 0]], axis=1), np.stack([sin, cos, shift[:, 1]], axis=1)], axis=1)
        darkest = images_NKHW.amin(dim=(1, 2, 3), keepdim=True)
        return _sampled(images_NKHW - darkest, rows, padding="zeros") + darkest


@dataclass(frozen=True)
class Photo:
    """Random resized crop, horizontal flip and a little colour, as usual for photographs.

    Colour is changed on normalised values: brightness by adding, contrast about the image's mean, saturation about the
    mean of its channels, each by up to `colour` either way.

    Attributes
    ----------
    area : float
        Smallest share of the image's area that a crop keeps.
    ratio : float
        Largest ratio of a crop's sides, either way.
    colour : float
        Largest change of brightness, contrast and saturation.
    """

    area: float = 0.4
    ratio: float = 4 / 3
    colour: float = 0.2

    def __call__(self, images_NKHW: Tensor, draw: np.random.Generator) -> Tensor:
        """New images (N, K, H, W); the draws do not depend on the images."""
        count = len(images_NKHW)
        side = np.sqrt(draw.uniform(self.area, 1.0, count))
        stretch = np.exp(draw.uniform(-math.log(self.ratio), math.log(self.ratio), count) / 2)
        width, height = np.minimum(side * stretch, 1.0), np.minimum(side / stretch, 1.0)
        # A crop of half the width has its middle within half the width of the grid's middle.
        right = draw.uniform(-1, 1, count) * (1 - width)
        down = draw.uniform(-1, 1, count) * (1 - height)
        flip = np.where(draw.random(count) < 0.5, -1.0, 1.0)
        nought = np.zeros(count)
        rows = np.stack(
            [np.stack([width * flip, nought, right], axis=1), np.stack([nought, height, down], axis=1)], axis=1
        )
        images = _sampled(images_NKHW, rows, padding="border")
        brightness, contrast, saturation = (
            torch.from_numpy(draw.uniform(-self.colour, self.colour, (count, 1, 1, 1))).to(images) for _ in range(3)
        )
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + contrast) + mean + brightness
        grey = images.mean(dim=1, keepdim=True)
        return (images - grey) * (1 + saturation) + grey


AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "affine": Affine(), "photo": Photo()}


def _sampled(images_NKHW: Tensor, rows_N23: np.ndarray, padding: str) -> Tensor:
    """Each image looked up where its affine map takes the pixels of the result; channels last, like the data."""
    maps = torch.from_numpy(rows_N23).to(images_NKHW)
    grid = affine_grid(maps, list(images_NKHW.shape), align_corners=False)
    sampled = grid_sample(images_NKHW, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)
