"""The data of a run: who holds what (indices, on every rank) and the tensors of the participants hosted here.

Shape letters: N samples, T test samples of a domain, C classes, P participants, D domains, K channels, H, W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.config import Config
from fedh2l_mpi.data.partition import Rows, Samples, Share, own_domain, partition
from fedh2l_mpi.data.rotation import rotate
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.data.sources import ImageTable, Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.streams import Purpose, generator

PIECE = 128


@dataclass(frozen=True)
class Labelled:
    """Images float32 (N, K, H, W), normalised, and labels int64 (N,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Plan:
    """Who holds which rows: the same on every rank, and small however many participants there are."""

    config: Config
    source: Source
    shares: list[Share]
    seed: Samples
    test_rows: NDArray[np.int64]

    @property
    def classes(self) -> int:
        return self.source.classes

    @property
    def domains(self) -> int:
        return self.config.data.partition.domains

    @property
    def seed_samples_per_round(self) -> int:
        """S, the seed samples of a round."""
        return self.config.seed_set.samples_per_round or len(self.seed)

    @property
    def domain_names(self) -> list[str]:
        """Such as `rotated 15 deg`, one per domain."""
        step = self.config.data.partition.rotation_step_deg
        return [f"rotated {step * domain:g} deg" for domain in range(self.domains)]

    def own_domain(self, participant: int) -> int:
        """The participant's domain; -1 where it holds a mix of all."""
        return own_domain(participant, self.config.data.partition)

    def label_histogram(self) -> NDArray[np.int64]:
        """int64 (P, C): each participant's private training samples of each class."""
        labels = self.source.train.labels
        return np.stack(
            [np.bincount(labels[share.private.rows], minlength=self.classes) for share in self.shares]
        ).astype(np.int64)

    def image_bytes(self) -> int:
        """Size of one image as it is held in memory, float32 [bytes]."""
        return 4 * self.source.channels * self.source.side**2


def plan(config: Config, source: Source) -> Plan:
    """Deal the rows of `source` to participants, seed set and tests.

    Raises
    ------
    UserError
        If the data do not suffice for what the config asks.
    """
    shares = partition(source.train.labels, config)
    pooled = Samples.join(share.seed for share in shares)
    if len(pooled) == 0:
        raise UserError(
            f"seed_set.share: {config.seed_set.share} gives an empty seed set; "
            f"the smallest participant has {min(len(share.private) for share in shares)} private samples"
        )
    cap = config.seed_set.max_samples
    if cap is not None and len(pooled) > cap:
        kept = generator(config.seed, Purpose.SEED_CAP).choice(len(pooled), cap, replace=False)
        pooled = pooled[np.sort(kept).astype(np.int64)]
    wanted = config.seed_set.samples_per_round
    if wanted is not None and wanted > len(pooled):
        raise UserError(
            f"seed_set.samples_per_round: got {wanted}, but the seed set has {len(pooled)} samples; "
            "take fewer (null: all), or raise seed_set.share"
        )
    return Plan(config, source, shares, pooled, _test_rows(config, len(source.test.labels)))


def _test_rows(config: Config, available: int) -> NDArray[np.int64]:
    # Not from the run's seed: runs that differ in seed only are tested on the same samples.
    wanted = config.evaluation.test_samples_per_domain or available
    if wanted > available:
        raise UserError(
            f"evaluation.test_samples_per_domain: got {wanted}, but {config.data.name} has {available} test samples"
        )
    return np.sort(generator(0, Purpose.TEST_SAMPLES).permutation(available)[:wanted])


@dataclass(frozen=True)
class Federation:
    """The tensors held on this rank, all on its device.

    `private` and `validation` have the hosted participants only; `tests` has every domain's test set, in order.
    """

    private: dict[int, Labelled]
    validation: dict[int, Labelled]
    seed_set: SeedSet
    tests: list[Labelled]


def load(plan: Plan, hosted: Iterable[int], device: torch.device) -> Federation:
    """Read, rotate, normalise and place on `device` what the `hosted` participants need, in one pass over each file."""
    hosted = list(hosted)
    parts = [plan.seed]
    for participant in hosted:
        parts += [plan.shares[participant].private, plan.shares[participant].validation]
    seed, *others = _read(plan, plan.source.train, parts, device)
    config = plan.config
    unrotated = np.zeros(len(plan.test_rows), dtype=np.int64)
    return Federation(
        private=dict(zip(hosted, others[0::2], strict=True)),
        validation=dict(zip(hosted, others[1::2], strict=True)),
        seed_set=SeedSet(seed.images, seed.labels, plan.seed_samples_per_round, config.seed),
        tests=_read(
            plan, plan.source.test, [Samples(plan.test_rows, unrotated + d) for d in range(plan.domains)], device
        ),
    )


def _read(plan: Plan, table: ImageTable, parts: list[Samples], device: torch.device) -> list[Labelled]:
    """The samples of each part, from one pass over the table's file."""
    rows, where = np.unique(np.concatenate([part.rows for part in parts]), return_inverse=True)
    pixels = table.images(rows)
    read, first = [], 0
    for part in parts:
        images = _prepare(plan, pixels, where[first : first + len(part)], part.domains).to(device)
        read.append(Labelled(images, torch.from_numpy(table.labels[part.rows]).to(device)))
        first += len(part)
    return read


def _prepare(plan: Plan, pixels: NDArray[np.uint8], rows: Rows, domains: Rows) -> Tensor:
    """Rows of `pixels` as float32 (N, K, H, W): scaled, turned to their domains, normalised, channels last."""
    source, step = plan.source, plan.config.data.partition.rotation_step_deg
    # Channels last is the order in which convolutions are fastest on a CPU, and no slower on a GPU.
    shape = (len(rows), source.channels, source.side, source.side)
    prepared = torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)
    for domain in np.unique(domains):
        of_domain = np.flatnonzero(domains == domain)
        # In pieces: large temporary arrays would stay with the process as holes in its heap.
        for piece in np.split(of_domain, range(PIECE, len(of_domain), PIECE)):
            images = torch.from_numpy(pixels[rows[piece]]).to(torch.float32).div_(source.full_scale)
            images = rotate(images, float(domain) * step)
            prepared[torch.from_numpy(piece)] = images.sub_(source.mean).div_(source.std)
    return prepared
