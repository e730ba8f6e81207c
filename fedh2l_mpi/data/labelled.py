"""Labelled images on a device, and their normalisation to a model's input.

Shape letters: N samples, K channels, H, W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedh2l_mpi.data.sources import Source


@dataclass(frozen=True)
class Normalisation:
    """Normalise stored values to a model's input, `(value / full_scale - mean) / std`; float32 (K, 1, 1) each."""

    full_scale: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(source: Source, device: torch.device) -> "Normalisation":
        """Return the normalisation of a data set, on a device."""
        full_scale, mean, std = (
            torch.tensor(value, dtype=torch.float32, device=device).reshape(-1, 1, 1)
            for value in (source.full_scale, source.mean, source.std)
        )
        return Normalisation(full_scale, mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 or float32 images as float32 (N, K, H, W), channels last."""
        # Convolutions on a CPU are fastest with channels last, and on a GPU no slower.
        scaled = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        return scaled.div_(self.full_scale).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Labelled:
    """Images and labels on one device.

    Attributes
    ----------
    images : float32 or uint8 (N, K, H, W), channels last
        Normalised float32, or stored uint8, because photographs would need four times the memory as float32.
    labels : int64 (N,)
    normalisation : Normalisation or None
        Normalisation that `inputs` applies to uint8 images; None if the images are already normalised.
    """

    images: Tensor
    labels: Tensor
    normalisation: Normalisation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return a model's input for `rows`: float32 (rows, K, H, W), normalised, channels last."""
        images = self.images[rows]
        return images if self.normalisation is None else self.normalisation(images)
