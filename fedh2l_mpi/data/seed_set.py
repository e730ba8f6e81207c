"""The seed set: the same samples in the same order on every participant, and each round's subset of them.

Shape letters: A all seed samples, S seed samples of a round, K channels, H height, W width.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedh2l_mpi.streams import Purpose, generator


@dataclass(frozen=True)
class SeedRound:
    """The seed samples of one round: images float32 (S, K, H, W), labels int64 (S,)."""

    round: int
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SeedSet:
    """All seed samples: images float32 (A, K, H, W), labels int64 (A,)."""

    images: Tensor
    labels: Tensor
    samples_per_round: int
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """What handing the set to one participant costs once [bytes]."""
        return self.images.nbytes + self.labels.nbytes

    def digest(self) -> bytes:
        """SHA-256 of samples, labels and their order: equal digests mean the same seed set."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.samples_per_round)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        sha.update(self.labels.cpu().numpy().data)
        return sha.digest()

    def of_round(self, round_index: int) -> SeedRound:
        """The round's subset, drawn from (seed, round): the same on every participant."""
        if self.samples_per_round == len(self):
            return SeedRound(round_index, self.images, self.labels)
        draw = generator(self.seed, Purpose.SEED_SUBSET, round_index)
        chosen = np.sort(draw.choice(len(self), self.samples_per_round, replace=False))
        rows = torch.from_numpy(chosen).to(self.images.device)
        return SeedRound(round_index, self.images[rows], self.labels[rows])
