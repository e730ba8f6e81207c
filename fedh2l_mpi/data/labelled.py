"""Labelled samples on a device, and their normalisation to a model's input.

Shape letters: N samples, X the axes of one sample, K channels, H, W pixels, G participants, B minibatch.
"""

from collections.abc import Sequence
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


class JoinedSamples:
    """Samples of several participants in one tensor, so that one call gathers the minibatches of all.

    Parameters
    ----------
    parts : sequence of Labelled
        The samples of each participant, on one device. They refer to the joined tensor from now on. Participants may
        have a part in common, which stays as it is if all have it.
    """

    def __init__(self, parts: Sequence[Labelled]) -> None:
        unique = {id(part.stored): part for part in parts}
        starts: dict[int, int] = {}
        total = 0
        for key, part in unique.items():
            starts[key] = total
            total += len(part)
        self._samples = parts[0] if len(unique) == 1 else _joined(list(unique.values()))
        first_rows = torch.tensor([starts[id(part.stored)] for part in parts], device=parts[0].labels.device)
        self._first_G1 = first_rows[:, None]

    def minibatches(self, rows_GB: Tensor) -> tuple[Tensor, Tensor]:
        """Return a model's inputs (G B, X) and labels (G, B), from the rows of each participant's own samples."""
        rows_GB = rows_GB + self._first_G1
        return self._samples.inputs(rows_GB.flatten()), self._samples.labels[rows_GB]


def _joined(parts: Sequence[Labelled]) -> Labelled:
    """Return all samples in new tensors, to which the parts refer from now on."""
    first, total = parts[0], sum(map(len, parts))
    # torch.cat would give images of one channel other strides, by which convolutions choose their kernels.
    like, shape = first.stored, (total, *first.stored.shape[1:])
    stored = torch.empty_strided(shape, like.stride(), dtype=like.dtype, device=like.device)
    whole = Labelled(stored, torch.cat([part.labels for part in parts]), first.normalisation)
    row = 0
    for part in parts:
        rows = slice(row, row + len(part))
        part.stored.data = whole.stored[rows].copy_(part.stored)
        part.labels.data = whole.labels[rows]
        row += len(part)
    return whole
