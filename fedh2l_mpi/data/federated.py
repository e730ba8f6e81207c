"""The data of a run: the plan of who holds which rows, on every rank, and the tensors of the participants hosted here.

Shape letters: N samples, T test samples of a domain, C classes, P participants, D domains, X the axes of one sample.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.data import FilePartition
from fedh2l_mpi.config.shift import Shift
from fedh2l_mpi.data import partition_file, shifts, test_sets
from fedh2l_mpi.data.augmentation import refuse_unfit
from fedh2l_mpi.data.labelled import Labelled, Normalisation, memory_format
from fedh2l_mpi.data.made_domains import MadeDomains, made_domains
from fedh2l_mpi.data.partition import (
    Draw,
    Rows,
    Samples,
    Share,
    own_domain,
    partition,
    partition_natural,
)
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.data.sources import ReadTable, Source, Table
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.rng import Purpose

# Calls the first argument, which reads rows of a table, with the second one, or lets another rank do so.
ReadsRows = Callable[[Callable[[Rows], NDArray[Any]], Rows], NDArray[Any]]
PIECE = 128
# Largest number of draws of a partition until every class has enough samples.
DRAWS = 100
# Row of `class_counts`, and remedy if a class has too few of these samples.
PARTS = {
    "private training": "lower seed_set.share, or raise data.partition.samples_per_participant",
    "seed": "raise seed_set.share or seed_set.max_samples",
}


@dataclass(frozen=True)
class Plan:
    """Rows of every participant, of the seed set and of the tests; equal on every rank, and without any image.

    `draws` is the number of draws until every class had enough samples (`data.partition.min_per_class`). `made` are
    the domains that are made of the data; None for data with domains of their own.
    """

    config: Config
    source: Source
    shares: list[Share]
    seed: Samples
    tests: list[Samples]
    draws: int = 1
    made: MadeDomains | None = None

    @property
    def classes(self) -> int:
        return self.source.classes

    @property
    def domains(self) -> int:
        return len(self.domain_names)

    @property
    def seed_samples_per_round(self) -> int:
        """Number of seed samples that are drawn for a round."""
        return self.config.seed_set.samples_per_round or len(self.seed)

    @property
    def seed_rows_per_round(self) -> int:
        """Number of rows of a round, S: its seed samples times the views of each."""
        return self.seed_samples_per_round * self.config.seed_set.views_per_sample

    @property
    def domain_names(self) -> list[str]:
        """Name of every domain: the data's own, or one such as `rotated 15 deg`."""
        if self.source.domains is not None:
            return list(self.source.domains.names)
        return list(self.made.names) if self.made is not None else []

    @property
    def shifts(self) -> tuple[Shift, ...]:
        """Shifts that make the domains; empty if samples stay as they are."""
        return self.made.shifts if self.made is not None else ()

    @property
    def has_local_test(self) -> bool:
        """True if some participant has samples of its own distribution for testing."""
        return any(len(share.local_test) for share in self.shares)

    def own_domain(self, participant: int) -> int:
        """Return the participant's domain, or -1 if it holds a mix of domains."""
        if isinstance(self.config.data.partition, FilePartition):
            held = self.shares[participant].private.domains
            return int(held[0]) if (held == held[0]).all() else -1
        return own_domain(participant, self.config.data.partition, self.domains)

    def unheld_domains(self) -> list[str]:
        """Return the names of the domains of which no participant has private samples; they are tested all the same."""
        held_D = self.domain_histogram().sum(axis=0)
        return [name for name, samples in zip(self.domain_names, held_D, strict=True) if not samples]

    def digest(self) -> bytes:
        """Return the SHA-256 of who holds which rows, in which domain and part."""
        digest = hashlib.sha256()
        for share in self.shares:
            for part in share.parts:
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part.rows.tobytes() + part.domains.tobytes())
        return digest.digest()

    def label_histogram(self) -> NDArray[np.int64]:
        """Count each participant's private training samples of each class, int64 (P, C)."""
        labels = self.source.train.labels
        return np.stack(
            [np.bincount(labels[share.private.rows], minlength=self.classes) for share in self.shares]
        ).astype(np.int64)

    def domain_histogram(self) -> NDArray[np.int64]:
        """Count each participant's private training samples in each domain, int64 (P, D)."""
        return np.stack([np.bincount(share.private.domains, minlength=self.domains) for share in self.shares]).astype(
            np.int64
        )

    def rare_classes(self) -> Rows:
        """Return the classes of which one participant alone has private samples; none if there is one participant."""
        holders_C = (self.label_histogram() > 0).sum(axis=0)
        return np.flatnonzero((holders_C == 1) & (len(self.shares) > 1))

    def absent_classes(self) -> dict[str, Rows]:
        """Return the classes of which there are no samples, by part: `private training`, `seed`."""
        counts = class_counts(self.source, self.shares, self.seed)
        return {part: np.flatnonzero(row == 0) for part, row in zip(PARTS, counts, strict=True)}

    def sample_bytes(self) -> int:
        """Return the size of one sample in memory [bytes]: as a model's input, or uint8 for photographs."""
        return self.source.sample_bytes


def plan(config: Config, source: Source) -> Plan:
    """Distribute the rows of `source` to participants, seed set and tests.

    Raises
    ------
    UserError
        If the data do not suffice for the config.
    """
    natural, labels = source.domains, source.train.labels
    refuse_unfit(config, source.form.kind)
    made = made_domains(config.data.partition, source)
    domains = 0 if made is None else len(made.names)
    given = partition_file.read(config, source)
    training, tests = test_sets.divide(config, source, domains, None if given is None else given.of_part("test"))

    def shares_of(draw: Draw) -> list[Share]:
        if given is not None:
            return partition_file.shares(given, training, config, source, domains, draw)
        if natural is None:
            return partition(labels, training, config, domains, draw)
        return partition_natural(labels, training, natural, config, draw)

    shares, pooled, draws = _with_all_classes(config, source, shares_of)
    wanted = config.seed_set.samples_per_round
    if wanted is not None and wanted > len(pooled):
        raise UserError(
            f"seed_set.samples_per_round: got {wanted}, but the seed set has {len(pooled)} samples. "
            "Use fewer (null: all), or raise seed_set.share."
        )
    planned = Plan(config, source, shares, pooled, tests, draws, made)
    if config.evaluation.local_test_share is not None and not planned.has_local_test:
        raise UserError(
            f"evaluation.local_test_share: {config.evaluation.local_test_share} gives no participant a test sample. "
            "Raise it (null: no local test)."
        )
    rule, has_validation = config.run.early_stop, any(len(share.validation) for share in shares)
    if rule.patience is not None and rule.measure == "accuracy_validation" and not has_validation:
        raise UserError(
            f"run.early_stop.measure: got {rule.measure!r}, but evaluation.validation_share="
            f"{config.evaluation.validation_share} gives no participant a validation sample. Fix: raise it."
        )
    return planned


def class_counts(source: Source, shares: list[Share], seed: Samples) -> NDArray[np.int64]:
    """Count the samples of each class, int64 (2, C): all participants' private training samples, and the seed set."""
    private = np.concatenate([share.private.rows for share in shares])
    return np.stack([np.bincount(source.train.labels[rows], minlength=source.classes) for rows in (private, seed.rows)])


def _with_all_classes(
    config: Config, source: Source, shares_of: Callable[[Draw], list[Share]]
) -> tuple[list[Share], Samples, int]:
    """Draw the partition until every class has `min_per_class` samples in both parts; also return the number of draws.

    Raises
    ------
    UserError
        If no draw has enough samples of every class.
    """
    least, best = config.data.partition.min_per_class, (-1, 0, "")
    for number in range(DRAWS if least is not None else 1):
        draw = Draw(config.seed, number)
        shares = shares_of(draw)
        seed = _seed_samples(config, shares, draw)
        if least is None:
            return shares, seed, 1
        counts = class_counts(source, shares, seed)
        rarest = np.unravel_index(counts.argmin(), counts.shape)
        if counts[rarest] >= least:
            return shares, seed, number + 1
        best = max(best, (int(counts[rarest]), int(rarest[1]), list(PARTS)[rarest[0]]), key=lambda one: one[0])
    count, label, part = best
    raise UserError(
        f"data.partition.min_per_class: got {least}, but in the best of {DRAWS} draws class {label} has only {count} "
        f"{part} samples. Use {count or 'null'}, or {PARTS[part]}."
    )


def _seed_samples(config: Config, shares: list[Share], draw: Draw) -> Samples:
    """Return the participants' parts of the seed set as one set, cut to `seed_set.max_samples`."""
    pooled = Samples.join(share.seed for share in shares)
    if len(pooled) == 0:
        raise UserError(
            f"seed_set.share: {config.seed_set.share} gives an empty seed set. "
            f"The smallest participant has {min(len(share.private) for share in shares)} private samples. Raise it."
        )
    cap = config.seed_set.max_samples
    if cap is None or len(pooled) <= cap:
        return pooled
    kept = draw.stream(Purpose.SEED_CAP).choice(len(pooled), cap, replace=False)
    return pooled[np.sort(kept).astype(np.int64)]


@dataclass(frozen=True)
class Federation:
    """The tensors of this rank, all on its device.

    `private`, `validation` and `local_test` contain the hosted participants only; `tests` contains every domain's test
    set, in order.
    """

    private: dict[int, Labelled]
    validation: dict[int, Labelled]
    local_test: dict[int, Labelled]
    seed_set: SeedSet
    tests: list[Labelled]


def read_files(plan: Plan, hosted: Iterable[int], pooled: bool, read: ReadsRows) -> Plan:
    """Return the plan with the samples that `load` will need in memory, if each read of the data takes a whole file.

    Parameters
    ----------
    hosted, pooled
        As for `load`.
    read : callable
        Returns what its first argument returns for the second one. It may read for several ranks at a time.
    """
    source = plan.source
    training, tests = _training_parts(plan, list(hosted), pooled), plan.tests
    if source.test is None:
        return replace(plan, source=replace(source, train=_read_table(source.train, [*training, *tests], read)))
    train, test = _read_table(source.train, training, read), _read_table(source.test, tests, read)
    return replace(plan, source=replace(source, train=train, test=test))


def _read_table(table: Table, parts: list[Samples], read: ReadsRows) -> Table:
    """Return the table with these parts in memory; unchanged if small reads of it are cheap."""
    if table.reads_pieces:
        return table
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    return ReadTable(table.labels, rows, read(table.samples, rows))


def _training_parts(plan: Plan, hosted: list[int], pooled: bool) -> list[Samples]:
    """Return the parts of the training table: the seed set, then private, validation and local test samples."""
    private = [plan.shares[participant].private for participant in hosted]
    if pooled:
        private = [Samples.join(share.private for share in plan.shares)]
    validation = [plan.shares[participant].validation for participant in hosted]
    local_test = [plan.shares[participant].local_test for participant in hosted]
    return [plan.seed, *private, *validation, *local_test]


def load(plan: Plan, hosted: Iterable[int], device: torch.device, pooled: bool = False) -> Federation:
    """Read the samples of the `hosted` participants in one pass over each file; transform, normalise and move them.

    Parameters
    ----------
    plan : Plan
        The rows of every participant.
    hosted : iterable of int
        Participants of this rank.
    device : torch.device
        Where the tensors are placed.
    pooled : bool
        Give every participant the private data of all, as one set that the participants of this rank share.
    """
    hosted, config = list(hosted), plan.config
    seed, *others = _read(plan, plan.source.train, _training_parts(plan, hosted, pooled), device)
    private = 1 if pooled else len(hosted)
    own = others[:private] if not pooled else others[:1] * len(hosted)
    others = others[private:]
    return Federation(
        private=dict(zip(hosted, own, strict=True)),
        validation=dict(zip(hosted, others[: len(hosted)], strict=True)),
        local_test=dict(zip(hosted, others[len(hosted) :], strict=True)),
        seed_set=SeedSet(seed, plan.seed_samples_per_round, plan.classes, config.seed_set, config.seed),
        tests=_read(plan, plan.source.test or plan.source.train, plan.tests, device),
    )


def _read(plan: Plan, table: Table, parts: list[Samples], device: torch.device) -> list[Labelled]:
    """Read the samples of each part; samples that are transformed come from one pass over the table's file."""
    labels = [torch.from_numpy(table.labels[part.rows]).to(device) for part in parts]
    normalisation = Normalisation.of(plan.source, device)
    is_compact = plan.source.is_compact
    if is_compact and table.reads_pieces:
        stored = [_stored(plan, table, part.rows, device) for part in parts]
        return [Labelled(*both, normalisation) for both in zip(stored, labels, strict=True)]
    rows, where = np.unique(np.concatenate([part.rows for part in parts]), return_inverse=True)
    values = table.samples(rows)
    splits = np.split(where, np.cumsum([len(part) for part in parts])[:-1])
    if is_compact or plan.source.form.kind == "tokens":
        stored = [_as_stored(values[at]).to(device) for at in splits]
        applied = normalisation if is_compact else None
        return [Labelled(*both, applied) for both in zip(stored, labels, strict=True)]
    is_test = table is plan.source.test
    inputs = [_inputs(plan, values, at, part, is_test).to(device) for at, part in zip(splits, parts, strict=True)]
    return [Labelled(*both) for both in zip(inputs, labels, strict=True)]


def _as_stored(values: NDArray[Any]) -> Tensor:
    """Return uint8 samples as they are and token ids as int64, images channels last."""
    tensor = torch.from_numpy(values)
    if values.dtype != np.uint8:
        tensor = tensor.to(torch.int64)
    return tensor.contiguous(memory_format=memory_format(tensor.dim()))


def _stored(plan: Plan, table: Table, rows: Rows, device: torch.device) -> Tensor:
    """Read `rows` of the table unchanged, uint8 (N, X)."""
    order = np.argsort(rows, kind="stable")
    shape = (len(rows), *plan.source.form.shape)
    stored = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=memory_format(len(shape)))
    # Reading in pieces, in the order of the file, keeps only one piece in host memory next to the device's copy.
    for piece in np.split(order, range(PIECE, len(order), PIECE)):
        stored[torch.from_numpy(piece).to(device)] = torch.from_numpy(table.samples(rows[piece])).to(device)
    return stored


def _inputs(plan: Plan, values: NDArray[Any], at: Rows, part: Samples, is_test: bool) -> Tensor:
    """Return a part, which is `at` these places of `values`, as float32 (N, X): scaled, shifted, normalised."""
    source = plan.source
    normalisation = Normalisation.of(source, torch.device("cpu"))
    shape = (len(part), *source.form.shape)
    prepared = torch.empty(shape, dtype=torch.float32, memory_format=memory_format(len(shape)))
    for domain in np.unique(part.domains):
        of_domain = np.flatnonzero(part.domains == domain)
        # Large temporary arrays would remain in the process as holes in its heap, so samples are shifted in pieces.
        for piece in np.split(of_domain, range(PIECE, len(of_domain), PIECE)):
            scaled = torch.from_numpy(values[at[piece]]).to(torch.float32).div_(normalisation.full_scale)
            seen = shifts.Samples(part.rows[piece], int(is_test), int(domain), normalisation.std, source.form.kind)
            scaled = shifts.apply(plan.shifts, scaled, seen)
            prepared[torch.from_numpy(piece)] = scaled.sub_(normalisation.mean).div_(normalisation.std)
    return prepared
