"""Random transformations of samples; all random numbers come from a generator that the caller passes.

The same generator state gives the same samples on every rank. The draws depend on the shape of the samples alone, so
those of many minibatches can be made ahead and go to the device together. Shape letters: N samples, X the axes of one
sample, K channels, H height, W width, L length.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
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

IMAGES: tuple[SampleKind, ...] = ("image",)
NUMBERS: tuple[SampleKind, ...] = ("image", "series", "vector")
TOKENS: tuple[SampleKind, ...] = ("tokens",)


class Augmentation(ABC):
    """Random transformation of samples: draws on the host, and their use on the device."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: np.random.Generator) -> list[Tensor]:
        """Return the draws for samples of a shape (N, X), each with an axis of N samples first, in host memory."""

    @abstractmethod
    def apply(self, samples_NX: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Return new samples (N, X) by draws that are on their device."""

    def __call__(self, samples_NX: Tensor, generator: np.random.Generator) -> Tensor:
        """Return new samples (N, X); the draws do not depend on the values of the samples."""
        draws = self.draw(samples_NX.shape, generator)
        return self.apply(samples_NX, [draw.to(samples_NX.device) for draw in draws])


@dataclass(frozen=True)
class Affine(Augmentation):
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

    def draw(self, shape: Sequence[int], generator: np.random.Generator) -> list[Tensor]:
        """Return the affine map of each image, float32 (N, 2, 3)."""
        count, _, height, width = shape
        angle = np.radians(generator.uniform(-self.rotation_deg, self.rotation_deg, count))
        size = generator.uniform(1 - self.scale, 1 + self.scale, count)
        # The grid spans -1 to 1, so a shift by the whole side is 2.
        shift = 2 * generator.uniform(-self.shift, self.shift, (count, 2))
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        # A unit of the grid is longer along the longer axis.
        tall = height / width
        rows = np.stack(
            [np.stack([cos, -sin * tall, shift[:, 0]], axis=1), np.stack([sin / tall, cos, shift[:, 1]], axis=1)],
            axis=1,
        )
        return [torch.from_numpy(rows).float()]

    def apply(self, samples_NX: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Return new images (N, K, H, W)."""
        darkest = samples_NX.amin(dim=(1, 2, 3), keepdim=True)
        return _sampled(samples_NX - darkest, draws[0], padding="zeros") + darkest


@dataclass(frozen=True)
class Photo(Augmentation):
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

    def draw(self, shape: Sequence[int], generator: np.random.Generator) -> list[Tensor]:
        """Return the affine map of each image, float32 (N, 2, 3), and its changes of colour, each (N, 1, 1, 1)."""
        count = shape[0]
        side = np.sqrt(generator.uniform(self.area, 1.0, count))
        stretch = np.exp(generator.uniform(-math.log(self.ratio), math.log(self.ratio), count) / 2)
        width, height = np.minimum(side * stretch, 1.0), np.minimum(side / stretch, 1.0)
        # A crop of half the width has its centre within half the width of the grid's centre.
        right = generator.uniform(-1, 1, count) * (1 - width)
        down = generator.uniform(-1, 1, count) * (1 - height)
        flip = np.where(generator.random(count) < 0.5, -1.0, 1.0)
        nought = np.zeros(count)
        rows = np.stack(
            [np.stack([width * flip, nought, right], axis=1), np.stack([nought, height, down], axis=1)], axis=1
        )
        colours = [generator.uniform(-self.colour, self.colour, (count, 1, 1, 1)) for _ in range(3)]
        return [torch.from_numpy(values).float() for values in (rows, *colours)]

    def apply(self, samples_NX: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Return new images (N, K, H, W)."""
        maps, brightness, contrast, saturation = draws
        images = _sampled(samples_NX, maps, padding="border")
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + contrast) + mean + brightness
        grey = images.mean(dim=1, keepdim=True)
        return (images - grey) * (1 + saturation) + grey


@dataclass(frozen=True)
class Jitter(Augmentation):
    """Add Gaussian noise to every number of a normalised sample: x + noise z, with z from the normal distribution.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise; normalised data have about 1.
    """

    noise: float = 0.1

    def draw(self, shape: Sequence[int], generator: np.random.Generator) -> list[Tensor]:
        """Return z, float32 (N, X)."""
        return [torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))]

    def apply(self, samples_NX: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Return new samples (N, X)."""
        jittered = samples_NX + self.noise * draws[0]
        return jittered.contiguous(memory_format=memory_format(samples_NX.dim()))


@dataclass(frozen=True)
class WordDropout(Augmentation):
    """Replace each word of a text by the unknown one with a probability; padding stays.

    Attributes
    ----------
    probability : float
        Probability of each word.

    Source: Iyyer, Manjunatha, Boyd-Graber and Daume III, "Deep unordered composition rivals syntactic methods for text
    classification", 2015, section 3.2, with an unknown word instead of no word.
    """

    probability: float = 0.1

    def draw(self, shape: Sequence[int], generator: np.random.Generator) -> list[Tensor]:
        """Return whether each word is replaced, bool (N, L)."""
        return [torch.from_numpy(generator.random(tuple(shape)) < self.probability)]

    def apply(self, samples_NX: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Return new token ids (N, L)."""
        return samples_NX.masked_fill(draws[0] & (samples_NX != PADDING), UNKNOWN)


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


def _sampled(images_NKHW: Tensor, maps_N23: Tensor, padding: str) -> Tensor:
    """Sample each image at the positions to which its affine map moves the result's pixels; return channels last."""
    grid = affine_grid(maps_N23, list(images_NKHW.shape), align_corners=False)
    sampled = grid_sample(images_NKHW, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)
