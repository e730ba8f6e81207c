"""Random transformations of samples; all random numbers come from a generator that the caller passes.

The same generator state gives the same samples on every rank. Shape letters: N samples, X the axes of one sample, K
channels, H height, W width, L length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedh2l_mpi.config import Config, SeedSetConfig
from fedh2l_mpi.config.data import AffineViews, JitterViews, WordDropoutViews
from fedh2l_mpi.data.labelled import memory_format
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.sample_form import PADDING, PLURAL, UNKNOWN, SampleKind

Augmentation = Callable[[Tensor, np.random.Generator], Tensor]

IMAGES: tuple[SampleKind, ...] = ("image",)
NUMBERS: tuple[SampleKind, ...] = ("image", "series", "vector")
TOKENS: tuple[SampleKind, ...] = ("tokens",)


@dataclass(frozen=True)
class Affine:
    """Shift, turn and resize each image a little; pixels from outside the image get its darkest value.

    Attributes
    ----------
    rotation_deg : float
        Largest turn in either direction [degrees].
    scale : float
        Largest change of size in either direction, as a share.
    shift : float
        Largest shift along each axis, as a share of the image's side. The shift comes before the turn and the change
        of size, so the turn distributes it between the axes again.
    """

    rotation_deg: float = 15.0
    scale: float = 0.1
    shift: float = 0.05

    def __call__(self, images_NKHW: Tensor, draw: np.random.Generator) -> Tensor:
        """Return new images (N, K, H, W); the draws do not depend on the images."""
        count = len(images_NKHW)
        angle = np.radians(draw.uniform(-self.rotation_deg, self.rotation_deg, count))
        size = draw.uniform(1 - self.scale, 1 + self.scale, count)
        # The grid spans -1 to 1, so a shift by the whole side is 2.
        shift = 2 * draw.uniform(-self.shift, self.shift, (count, 2))
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        # A unit of the grid is longer along the longer axis.
        tall = images_NKHW.shape[2] / images_NKHW.shape[3]
        rows = np.stack(
            [np.stack([cos, -sin * tall, shift[:, 0]], axis=1), np.stack([sin / tall, cos, shift[:, 1]], axis=1)],
            axis=1,
        )
        darkest = images_NKHW.amin(dim=(1, 2, 3), keepdim=True)
        return _sampled(images_NKHW - darkest, rows, padding="zeros") + darkest


@dataclass(frozen=True)
class Photo:
    """Crop and resize each image at random, flip it horizontally and change its colour, as is usual for photographs.

    Colour changes apply to normalised values: brightness is added, contrast scales about the image's mean, saturation
    about the mean of its channels. Each changes by up to `colour` in either direction.

    Attributes
    ----------
    area : float
        Smallest share of the image's area that a crop keeps.
    ratio : float
        Largest ratio of a crop's longer side to its shorter side.
    colour : float
        Largest change of brightness, contrast and saturation.
    """

    area: float = 0.4
    ratio: float = 4 / 3
    colour: float = 0.2

    def __call__(self, images_NKHW: Tensor, draw: np.random.Generator) -> Tensor:
        """Return new images (N, K, H, W); the draws do not depend on the images."""
        count = len(images_NKHW)
        side = np.sqrt(draw.uniform(self.area, 1.0, count))
        stretch = np.exp(draw.uniform(-math.log(self.ratio), math.log(self.ratio), count) / 2)
        width, height = np.minimum(side * stretch, 1.0), np.minimum(side / stretch, 1.0)
        # A crop of half the width has its centre within half the width of the grid's centre.
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


@dataclass(frozen=True)
class Jitter:
    """Add Gaussian noise to every number of a normalised sample: x + noise z, with z from the normal distribution.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise; normalised data have about 1.
    """

    noise: float = 0.1

    def __call__(self, values_NX: Tensor, draw: np.random.Generator) -> Tensor:
        """Return new samples (N, X); the draws do not depend on the samples."""
        normals_NX = torch.from_numpy(draw.standard_normal(tuple(values_NX.shape), dtype=np.float32)).to(values_NX)
        jittered = values_NX + self.noise * normals_NX
        return jittered.contiguous(memory_format=memory_format(values_NX.dim()))


@dataclass(frozen=True)
class WordDropout:
    """Replace each word of a text by the unknown one with a probability; padding stays.

    Attributes
    ----------
    probability : float
        Probability of each word.

    Source: Iyyer, Manjunatha, Boyd-Graber and Daume III, "Deep unordered composition rivals syntactic methods for text
    classification", 2015, section 3.2, with an unknown word instead of no word.
    """

    probability: float = 0.1

    def __call__(self, ids_NL: Tensor, draw: np.random.Generator) -> Tensor:
        """Return new token ids (N, L); the draws do not depend on the ids."""
        is_dropped_NL = torch.from_numpy(draw.random(tuple(ids_NL.shape)) < self.probability).to(ids_NL.device)
        return ids_NL.masked_fill(is_dropped_NL & (ids_NL != PADDING), UNKNOWN)


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "affine": Affine(),
    "photo": Photo(),
    "jitter": Jitter(),
    "word_dropout": WordDropout(),
}
# Kinds of samples that each transformation fits, by the names of `data.augmentation` and `seed_set.views`.
FITS: dict[str, tuple[SampleKind, ...]] = {
    "none": (*NUMBERS, *TOKENS),
    "affine": IMAGES,
    "photo": IMAGES,
    "jitter": NUMBERS,
    "word_dropout": TOKENS,
    "mixup": NUMBERS,
    "both": IMAGES,
    "auto": (*NUMBERS, *TOKENS),
}
# The views of `auto`.
AUTO: dict[SampleKind, str] = {
    "image": "affine",
    "series": "jitter",
    "vector": "jitter",
    "tokens": "word_dropout",
}


def refuse_unfit(config: Config, kind: SampleKind) -> None:
    """Raise `UserError` if the views of the seed set or the augmentation do not fit samples of this kind."""
    for key, name, known in (
        ("seed_set.views", config.seed_set.views, SeedSetConfig.kinds),
        ("data.augmentation", config.data.augmentation, AUGMENTATIONS),
    ):
        if kind not in FITS[name]:
            fitting = ", ".join(other for other in known if kind in FITS[other])
            raise UserError(f"{key}: {name!r} does not fit {PLURAL[kind]}. Kinds that fit: {fitting}.")


def kind_of(inputs: Tensor) -> SampleKind:
    """Return the kind of samples of a model's input."""
    if inputs.dim() == 2:
        return "vector" if inputs.is_floating_point() else "tokens"
    return "image" if inputs.dim() == 4 else "series"


def viewer(config: SeedSetConfig, kind: SampleKind) -> Augmentation | None:
    """Return the transformation of each seed sample by `seed_set.views`, apart from mixtures; None if there is none."""
    name = AUTO[kind] if config.views == "auto" else config.views
    if name in ("affine", "both") and isinstance(config, AffineViews):
        return Affine(config.view_rotation_deg, config.view_scale, config.view_shift)
    if name == "jitter" and isinstance(config, JitterViews):
        return Jitter(config.view_noise)
    if name == "word_dropout" and isinstance(config, WordDropoutViews):
        return WordDropout(config.view_dropout)
    return Photo() if name == "photo" else None


def _sampled(images_NKHW: Tensor, rows_N23: np.ndarray, padding: str) -> Tensor:
    """Sample each image at the positions to which its affine map moves the result's pixels; return channels last."""
    maps = torch.from_numpy(rows_N23).to(images_NKHW)
    grid = affine_grid(maps, list(images_NKHW.shape), align_corners=False)
    sampled = grid_sample(images_NKHW, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)
