"""Labelled images on a device, and how they become what a model sees.

Shape letters: N samples, K channels, H, W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedh2l_mpi.data.sources import Source


@dataclass(frozen=True)
class Normalisation:
    """From stored values to what a model sees, `(value / full_scale - mean) / std`; float32 (K, 1, 1) on one device."""

    full_scale: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(source: Source, device: torch.device) -> "Normalisation":
        """The one that belongs to a data set."""
        full_scale, mean, std = (
            torch.tensor(value, dtype=torch.float32, device=device).reshape(-1, 1, 1)
            for value in (source.full_scale, source.mean, source.std)
        )
        return Normalisation(full_scale, mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (N, K, H, W), channels last, of uint8 or float32 images."""
        # Channels last is the order in which convolutions are fastest on a CPU, and no slower on a GPU.
        scaled = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        return scaled.div_(self.full_scale).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Labelled:
    """Images and labels on one device.

    Attributes
    ----------
    images : float32 or uint8 (N, K, H, W), channels last
        Normalised float32, or as they are stored: photographs would take four times the memory as float32.
    labels : int64 (N,)
    normalisation : Normalisation or None
        What `inputs` does to uint8 images; None where they are normalised already.
    """

    images: Tensor
    labels: Tensor
    normalisation: Normalisation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """What a model sees of `rows`: float32 (rows, K, H, W), normalised, channels last."""
        images = self.images[rows]
        return images if self.normalisation is None else self.normalisation(images)
