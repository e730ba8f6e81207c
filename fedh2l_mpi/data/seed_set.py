"""The seed set: the same samples in the same order on every participant, and each round's subset and views of them.

A memorised seed set teaches little, because every teacher's posterior on it is nearly one-hot. Views avoid this
without additional traffic. Every participant transforms the round's samples with the same random numbers, drawn from
(seed, round), so posteriors are exchanged on inputs that are new to all.

A round has S = n x k rows: n samples, each in k views. Row v n + i is view v of the i-th sample, and the samples are
in the order of the seed set. The first n rows are thus those of a round with one view of each sample.

Shape letters: A all seed samples, S rows of a round, X the axes of one sample, C classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config import SeedSetConfig
from fedh2l_mpi.config.data import MixupViews
from fedh2l_mpi.data.augmentation import kind_of, viewer
from fedh2l_mpi.data.labelled import Labelled, memory_format
from fedh2l_mpi.rng import Purpose, generator

# Number of views of round 0 that are hashed on the CPU; these few reveal a library that transforms differently.
HASHED_VIEWS = 16
# Keys that the digest leaves out if they have the value of runs from before there was the key.
ADDED = (("views_per_sample", 1), ("view_noise", None), ("view_dropout", None))


@dataclass(frozen=True)
class SeedRound:
    """Seed samples of one round in their views, the same for every participant; its length is the number of rows, S.

    Attributes
    ----------
    inputs : float32 (S, X), or int64 (S, L) for token ids
        What a model gets; images are channels last.
    labels : int64 (S,)
        Classes; a mixed pair has the class of its heavier half.
    targets : int64 (S,) or float32 (S, C)
        Targets of the cross-entropy: the classes, or a mixed pair's two classes with their weights.
    """

    round: int
    inputs: Tensor
    labels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """The inputs, by the name that they had when all data were images."""
        return self.inputs

    @staticmethod
    def join(views: Sequence["SeedRound"]) -> "SeedRound":
        """Concatenate views of the same samples."""
        first = views[0]
        if len(views) == 1:
            return first
        inputs, labels, targets = zip(*((view.inputs, view.labels, view.targets) for view in views), strict=True)
        together = torch.cat(inputs).contiguous(memory_format=memory_format(first.inputs.dim()))
        return SeedRound(first.round, together, torch.cat(labels), torch.cat(targets))


@dataclass(frozen=True)
class SeedSet:
    """All seed samples, with the draw and the views of each round.

    Attributes
    ----------
    samples : Labelled
        A samples on the device.
    samples_per_round : int
        n, number of samples that are drawn for a round.
    classes : int
        C.
    seed : int
        The run's seed.
    """

    samples: Labelled
    samples_per_round: int
    classes: int
    config: SeedSetConfig
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def rows_per_round(self) -> int:
        """Number of rows of a round, S: its samples times the views of each."""
        return self.samples_per_round * self.config.views_per_sample

    @property
    def nbytes(self) -> int:
        """Bytes of distributing the set to one participant, once."""
        return self.samples.stored.nbytes + self.samples.labels.nbytes

    @cached_property
    def log_prior(self) -> Tensor:
        """Logarithm of the prior of all seed labels, float32 (C,) on the device; see `losses.log_prior`."""
        return losses.log_prior(self.samples.labels, self.classes)

    def digest(self) -> bytes:
        """Return the SHA-256 of samples, labels, their order and views; equal digests mean equal seed sets."""
        stored, labels = self.samples.stored, self.samples.labels
        # This text is in the digests of stored checkpoints; a key that is added later must not change it.
        values = self.config.model_dump().items()
        keys = ", ".join(f"{key}={value!r}" for key, value in values if (key, value) not in ADDED)
        shape = tuple(stored.shape)
        text = f"({shape}, {self.samples_per_round}, {self.classes}, SeedSetConfig({keys}))"
        sha = hashlib.sha256(text.encode())
        sha.update(stored.cpu().contiguous().numpy().data)
        sha.update(labels.cpu().numpy().data)
        # The CPU computes these views on every device, because GPUs of different kinds may differ in the last bit.
        first = self.samples.inputs(slice(0, HASHED_VIEWS)).cpu()
        hashed = SeedRound(0, first, labels[:HASHED_VIEWS].cpu(), labels[:HASHED_VIEWS].cpu())
        seen = self._viewed(hashed, generator(self.seed, Purpose.SEED_VIEWS, 0))
        sha.update(seen.inputs.contiguous().numpy().data)
        sha.update(seen.targets.contiguous().numpy().data)
        return sha.digest()

    def of_round(self, round_index: int) -> SeedRound:
        """Return the round's subset in its views, drawn from (seed, round): the same on every participant."""
        rows: Tensor | slice = slice(None)
        if self.samples_per_round < len(self):
            draw = generator(self.seed, Purpose.SEED_SUBSET, round_index)
            chosen = np.sort(draw.choice(len(self), self.samples_per_round, replace=False))
            rows = torch.from_numpy(chosen).to(self.samples.labels.device)
        labels = self.samples.labels[rows]
        drawn = SeedRound(round_index, self.samples.inputs(rows), labels, labels)
        # One stream for all views, so that the first view does not depend on the number of views.
        draw = generator(self.seed, Purpose.SEED_VIEWS, round_index)
        return SeedRound.join([self._viewed(drawn, draw) for _ in range(self.config.views_per_sample)])

    def _viewed(self, seed: SeedRound, draw: np.random.Generator) -> SeedRound:
        """Return one view of each of the samples, by `seed_set.views`."""
        config = self.config
        inputs, labels, targets = seed.inputs, seed.labels, seed.targets
        view = viewer(config, kind_of(inputs))
        if view is not None:
            inputs = view(inputs, draw)
        if isinstance(config, MixupViews):
            inputs, labels, targets = mixup(inputs, labels, self.classes, config.mixup_alpha, draw)
        return SeedRound(seed.round, inputs, labels, targets)


def mixup(
    inputs: Tensor, labels: Tensor, classes: int, alpha: float, draw: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each sample with another one.

    The weight of the sample itself is max(b, 1 - b), with b drawn from Beta(alpha, alpha).

    Returns
    -------
    float (S, X), int64 (S,), float (S, C)
        Inputs, labels of the heavier halves, targets.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization", 2018.
    """
    partner = torch.from_numpy(draw.permutation(len(labels))).to(labels.device)
    share = draw.beta(alpha, alpha, len(labels))
    own = torch.from_numpy(np.maximum(share, 1 - share)).to(inputs)
    weight = own.view(-1, *[1] * (inputs.dim() - 1))
    mixed = weight * inputs + (1 - weight) * inputs[partner]
    one_hot = torch.nn.functional.one_hot(labels, classes).to(inputs.dtype)
    targets = own.view(-1, 1) * one_hot + (1 - own.view(-1, 1)) * one_hot[partner]
    return mixed, labels, targets
