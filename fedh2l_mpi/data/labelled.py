"""Labelled samples on a device, and their normalisation to a model's input.

Shape letters: N samples, X the axes of one sample, K channels, H, W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedh2l_mpi.data.sources import Source


def memory_format(axes: int) -> torch.memory_format:
    """Return the memory format of a tensor of samples with this number of axes: images (N, K, H, W) are channels last.

    Convolutions on a CPU are fastest with channels last, and on a GPU no slower.
    """
    return torch.channels_last if axes == 4 else torch.contiguous_format


@dataclass(frozen=True)
class Normalisation:
    """Normalise stored values to a model's input, `(value / full_scale - mean) / std`.

    Each is float32, with an axis for every axis of a sample: (K, 1, 1) for images, (K, 1) for series, (F,) for vectors.
    """

    full_scale: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(source: Source, device: torch.device) -> "Normalisation":
        """Return the normalisation of a data set, on a device."""
        axes = [1] * (len(source.form.shape) - 1)
        full_scale, mean, std = (
            torch.tensor(value, dtype=torch.float32, device=device).reshape(-1, *axes)
            for value in (source.full_scale, source.mean, source.std)
        )
        return Normalisation(full_scale, mean, std)

    def __call__(self, stored: Tensor) -> Tensor:
        """Return uint8 or float32 samples as float32 (N, X), images channels last."""
        scaled = stored.to(torch.float32, memory_format=memory_format(stored.dim()), copy=True)
        return scaled.div_(self.full_scale).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Labelled:
    """Samples and labels on one device.

    Attributes
    ----------
    stored : float32, uint8 or int64 (N, X); images (N, K, H, W) channels last
        Normalised float32 values, or token ids; or uint8 as in the file, because photographs would need four times the
        memory as float32.
    labels : int64 (N,)
    normalisation : Normalisation or None
        Normalisation that `inputs` applies to uint8 samples; None if `stored` is a model's input already.
    """

    stored: Tensor
    labels: Tensor
    normalisation: Normalisation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return a model's input for `rows`: normalised float32 or token ids (rows, X), images channels last."""
        stored = self.stored[rows]
        return stored if self.normalisation is None else self.normalisation(stored)
