"""Distribution of training rows and domains to participants, by labels only, without reading an image.

The result is the same on every rank, because it depends only on the labels, the config and the seed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config, PartitionConfig
from fedh2l_mpi.config.data import DirichletPartition, PathologicalPartition, QuantityPartition, ShardPartition
from fedh2l_mpi.data.sources import NaturalDomains
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.rng import Purpose, generator

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Training rows, and the domain in which each is used."""

    rows: Rows
    domains: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | Rows) -> "Samples":
        return Samples(self.rows[part], self.domains[part])

    @staticmethod
    def join(parts: Iterable["Samples"]) -> "Samples":
        """Concatenate samples."""
        rows, domains = zip(*((part.rows, part.domains) for part in parts), strict=True)
        return Samples(np.concatenate(rows), np.concatenate(domains))


# One object for all participants, because every rank holds the shares of all.
NO_SAMPLES = Samples(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Share:
    """A participant's samples, in disjoint parts; `local_test` is empty without `evaluation.local_test_share`."""

    private: Samples
    validation: Samples
    seed: Samples
    local_test: Samples = NO_SAMPLES

    @property
    def parts(self) -> tuple[Samples, ...]:
        """All parts."""
        return self.private, self.validation, self.seed, self.local_test


@dataclass(frozen=True)
class Draw:
    """One of the draws of a partition, with random streams of its own.

    The first draw, number 0, has the streams of a partition that is drawn only once.
    """

    seed: int
    number: int = 0

    def stream(self, purpose: Purpose, *key: int) -> np.random.Generator:
        """Return a new generator for (seed, purpose, key...) of this draw."""
        if self.number == 0:
            return generator(self.seed, purpose, *key)
        return generator(self.seed, Purpose.REDRAW, self.number, purpose, *key)


def partition(labels: Rows, rows: Rows, config: Config, domains: int, draw: Draw) -> list[Share]:
    """Distribute rows that may be used in any domain to the participants' private, validation and seed samples.

    Parameters
    ----------
    labels : int64 (N,)
        Class of every row of the table.
    rows : int64
        The rows for training.
    config : Config
        A resolved config.
    domains : int
        D.
    draw : Draw
        The draw of this partition.

    Raises
    ------
    UserError
        If the data do not suffice, or a share leaves a participant without private data.
    """
    part = config.data.partition
    dealt = _deal(labels[rows], part, config.size, draw.stream(Purpose.PARTITION))
    shares = []
    for participant, picked in enumerate(dealt):
        split = draw.stream(Purpose.SPLIT, participant)
        mine = split.permutation(rows[picked])
        seen = (
            split.integers(domains, size=len(mine)) if part.kind == "iid" else np.full(len(mine), participant % domains)
        )
        shares.append(split_parts(Samples(mine, seen.astype(np.int64)), participant, config))
    _check_disjoint(shares)
    return shares


def partition_natural(labels: Rows, rows: Rows, domains: NaturalDomains, config: Config, draw: Draw) -> list[Share]:
    """Distribute rows that belong to one domain each; a participant gets rows of its own domain only.

    Every kind distributes a domain's rows to the participants that share it, except `iid`, which ignores the domains.

    Parameters
    ----------
    labels : int64 (N,)
        Class of every row of the table.
    rows : int64
        The rows for training.
    domains : NaturalDomains
        Domains of all rows of the table.
    config : Config
        A resolved config.
    draw : Draw
        The draw of this partition.
    """
    part, everyone = config.data.partition, range(config.size)
    held: dict[int, Rows] = {}
    if part.kind == "iid":
        dealt = _deal(labels[rows], part, config.size, draw.stream(Purpose.PARTITION))
        held = {participant: rows[picked] for participant, picked in enumerate(dealt)}
    else:
        for domain, name in enumerate(domains.names):
            own = rows[domains.of_row[rows] == domain]
            # With fewer participants than domains, the remaining domains are for testing only.
            sharers = everyone[domain :: len(domains.names)]
            stream, where = draw.stream(Purpose.PARTITION, domain), f" of domain {name!r}"
            dealt = _deal(labels[own], part, len(sharers), stream, where) if sharers else []
            held |= {participant: own[picked] for participant, picked in zip(sharers, dealt, strict=True)}
    shares = []
    for participant in everyone:
        mine = draw.stream(Purpose.SPLIT, participant).permutation(held[participant])
        shares.append(split_parts(Samples(mine, domains.of_row[mine]), participant, config))
    _check_disjoint(shares)
    return shares


def own_domain(participant: int, part: PartitionConfig, domains: int) -> int:
    """Return the domain of a participant, or -1 if all hold a mix of domains (kind `iid`, several domains)."""
    return -1 if part.kind == "iid" and domains > 1 else participant % domains


def split_parts(samples: Samples, participant: int, config: Config) -> Share:
    """Split a participant's samples, in their order, into the parts that the config's shares give.

    Raises
    ------
    UserError
        If no private sample remains.
    """
    seed = round(config.seed_set.share * len(samples))
    validation = round(config.evaluation.validation_share * (len(samples) - seed))
    local_share = config.evaluation.local_test_share
    # The last samples, so that the seed set and the validation samples are the same as without a local test.
    local_test = round((local_share or 0.0) * (len(samples) - seed))
    trained = len(samples) - seed - validation - local_test
    if trained < 1:
        shares = f"evaluation.validation_share {config.evaluation.validation_share}"
        goes = f"{seed} of its {len(samples)} samples go to the seed set and {validation} to validation"
        if local_share is not None:
            shares += f", evaluation.local_test_share {local_share}"
            goes += f" and {local_test} to its local test"
        raise UserError(
            f"seed_set.share: {config.seed_set.share} (with {shares}) leaves participant {participant} no private "
            f"data: {goes}. Lower a share."
        )
    begin = seed + validation
    return Share(
        private=samples[begin : begin + trained],
        validation=samples[seed:begin],
        seed=samples[:seed],
        local_test=samples[begin + trained :] if local_test else NO_SAMPLES,
    )


def _check_disjoint(shares: list[Share]) -> None:
    rows = np.concatenate([part.rows for share in shares for part in share.parts])
    # Not by np.unique, which imports numpy.ma on every rank.
    in_order = np.sort(rows)
    if (in_order[1:] == in_order[:-1]).any():
        raise RuntimeError("the partition gave a training row to two parts")


def _deal(
    labels: Rows, part: PartitionConfig, participants: int, draw: np.random.Generator, where: str = ""
) -> list[Rows]:
    """Distribute positions in `labels` to participants; `where` follows "the training data" in a message."""
    each = part.samples_per_participant or len(labels) // participants
    if each == 0:
        raise UserError(
            f"participants: got {participants}{where}, but there are only {len(labels)} training samples{where}. "
            "Use fewer participants."
        )
    if each * participants > len(labels):
        raise UserError(
            f"data.partition.samples_per_participant: {participants} participants with {each} samples each need "
            f"{each * participants}, but the training data{where} have {len(labels)}. Use fewer."
        )
    if isinstance(part, QuantityPartition):
        return _quantity(labels, participants, each, part.alpha, draw)
    if isinstance(part, ShardPartition):
        return _shards(labels, participants, each, part.shards_per_participant, draw)
    if isinstance(part, DirichletPartition):
        return _dirichlet(labels, participants, each, part, draw)
    if isinstance(part, PathologicalPartition):
        return _pathological(labels, participants, part, draw, where)
    return _equal(labels, participants, each, draw)


def _equal(labels: Rows, participants: int, each: int, draw: np.random.Generator) -> list[Rows]:
    """Draw equal IID shares."""
    return list(draw.permutation(len(labels))[: participants * each].reshape(participants, each))


def _quantity(labels: Rows, participants: int, each: int, alpha: float, draw: np.random.Generator) -> list[Rows]:
    """Draw IID shares whose sizes are Dirichlet(alpha) proportions of the whole.

    Source: Li, Diao, Chen and He, "Federated learning on non-IID data silos", 2022, quantity skew.
    """
    sizes = _sizes(participants, each, alpha, draw)
    return np.split(draw.permutation(len(labels))[: sizes.sum()], np.cumsum(sizes)[:-1])


def _sizes(participants: int, each: int, alpha: float, draw: np.random.Generator) -> Rows:
    """Draw sizes that are Dirichlet(alpha) proportions of participants x each, int64 (P,).

    Every participant has at least a tenth of the mean, rounded down, and at least one sample.
    """
    floor = max(1, each // 10)
    spread = participants * (each - floor)
    return floor + np.floor(draw.dirichlet(np.full(participants, alpha)) * spread).astype(np.int64)


def _shards(labels: Rows, participants: int, each: int, shards: int, draw: np.random.Generator) -> list[Rows]:
    """Sort rows by label, cut them into participants x shards pieces, and distribute these at random.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
    """
    if shards > each:
        raise UserError(
            f"data.partition.shards_per_participant: got {shards}, but a participant has only {each} samples. "
            "Use fewer."
        )
    chosen = draw.permutation(len(labels))[: participants * each]
    by_label = chosen[np.argsort(labels[chosen], kind="stable")]
    pieces = np.array_split(by_label, participants * shards)
    dealt = draw.permutation(participants * shards).reshape(participants, shards)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]


def _dirichlet(
    labels: Rows, participants: int, each: int, part: DirichletPartition, draw: np.random.Generator
) -> list[Rows]:
    """Draw shares without replacement; each participant's class proportions come from Dirichlet(alpha).

    Sizes are equal, or with `quantity_alpha` Dirichlet proportions, too. A class that has run out is replaced by the
    remaining classes, in the participant's own proportions.

    Source: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution", 2019.
    """
    pools = [draw.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    sizes = [each] * participants
    if part.quantity_alpha is not None:
        sizes = _sizes(participants, each, part.quantity_alpha, draw).tolist()
    held = []
    for missing in sizes:
        wish = draw.dirichlet(np.full(len(pools), part.alpha))
        taken: list[Rows] = []
        while missing:
            left = np.array([len(pool) for pool in pools])
            # The small constant lets a participant take any other class once all classes it wants have run out.
            chance = np.where(left > 0, wish + 1e-9, 0.0)
            counts = np.minimum(draw.multinomial(missing, chance / chance.sum()), left)
            for label, count in enumerate(counts):
                taken.append(pools[label][:count])
                pools[label] = pools[label][count:]
            missing -= int(counts.sum())
        held.append(np.concatenate(taken))
    return held


def _pathological(
    labels: Rows, participants: int, part: PathologicalPartition, draw: np.random.Generator, where: str
) -> list[Rows]:
    """Draw equal shares of a few classes each, about as many samples of each class.

    Each participant in turn gets the classes that the fewest participants hold so far, at random among equals. All
    classes are held if participants x classes_per_participant reaches their number, and all by the same number of
    participants, or by one more. Without samples_per_participant, shares are as large as the rarest class allows.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017, the
    pathological non-IID partition, with exact numbers of classes as benchmarks use it: Li, Diao, Chen and He,
    "Federated learning on non-IID data silos", 2022, `#C = k`.
    """
    wanted, asked = part.classes_per_participant, part.samples_per_participant
    # Not by np.unique, which imports numpy.ma on every rank.
    counted = np.bincount(labels)
    present = np.flatnonzero(counted)
    per_class = counted[present]
    if wanted > len(present):
        raise UserError(
            f"data.partition.classes_per_participant: got {wanted}, but the training data{where} have {len(present)} "
            "classes. Use fewer."
        )
    holders = np.zeros(len(present), dtype=np.int64)
    chosen: list[list[int]] = []
    for _ in range(participants):
        fewest = np.lexsort((draw.random(len(present)), holders))[:wanted]
        holders[fewest] += 1
        chosen.append(sorted(fewest.tolist()))
    held_by = holders > 0
    most = int((per_class[held_by] // holders[held_by]).min()) * wanted
    if (asked or 1) > most:
        rarest = int(np.argmin(np.where(held_by, per_class / np.maximum(holders, 1), np.inf)))
        key = "participants" if asked is None else "data.partition.samples_per_participant"
        raise UserError(
            f"{key}: got {participants if asked is None else asked}, but class {present[rarest]}{where} has only "
            f"{per_class[rarest]} training samples for the {holders[rarest]} participants that hold it. "
            f"Use {'fewer participants' if most == 0 else f'at most {most} samples per participant'}."
        )
    each = asked or most
    if each < wanted:
        raise UserError(
            f"data.partition.samples_per_participant: got {each}, but each participant holds {wanted} classes. "
            f"Use at least {wanted}."
        )
    pools = [draw.permutation(np.flatnonzero(labels == label)) for label in present]
    dealt = []
    for hand in chosen:
        # The first classes have one sample more if the number of samples is no multiple of that of classes.
        counts = [each // wanted + (place < each % wanted) for place in range(wanted)]
        dealt.append(np.concatenate([pools[label][:count] for label, count in zip(hand, counts, strict=True)]))
        for label, count in zip(hand, counts, strict=True):
            pools[label] = pools[label][count:]
    return dealt
