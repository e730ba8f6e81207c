"""Test samples of every domain, and the rows that remain for training. The run's seed has no part in either.

Runs that differ only in their seed thus have the same test samples.
"""

import numpy as np

from fedh2l_mpi.config import Config
from fedh2l_mpi.data.partition import Rows, Samples
from fedh2l_mpi.data.sources import NaturalDomains, Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.rng import Purpose, generator


def divide(config: Config, source: Source, made_domains: int, given: Rows | None = None) -> tuple[Rows, list[Samples]]:
    """Return the rows of the training table that are for training, and each domain's test samples.

    The test samples are rows of the test table. If there is none, `data.test_share` of every class in every domain of
    the training table is kept for testing, or the rows that a partition file gives the part test.

    Parameters
    ----------
    made_domains : int
        Number of domains that are made of data without domains of their own; each has the same originals.
    given : int64 or None
        Rows of the training table that a partition file gives the part test; None if there is no file with parts.

    Raises
    ------
    UserError
        If a domain has no sample to test on, or fewer than the config wants.
    """
    labels, natural = source.train.labels, source.domains
    training = np.arange(len(labels))
    if source.test is not None:
        if natural is None:
            return training, _of_each_domain(_drawn(np.arange(len(source.test.labels)), config, ""), made_domains)
        if natural.of_test_row is None:
            raise RuntimeError("a source with domains and a test table must have the domain of every test row")
        rows_D = [np.flatnonzero(natural.of_test_row == domain) for domain in range(len(natural.names))]
        for name, rows in zip(natural.names, rows_D, strict=True):
            if len(rows) == 0:
                raise UserError(f"data.name: domain {name!r} has no test sample. Give it some, or remove the domain.")
    else:
        groups = natural or one_domain(len(labels))
        if given is None:
            rows_D = kept_for_testing(labels, groups, config.data.share_for_testing)
        else:
            rows_D = _of_file(given, groups)
        training = np.setdiff1d(training, np.concatenate(rows_D))
        if natural is None:
            return training, _of_each_domain(_drawn(rows_D[0], config, ""), made_domains)
    tests = []
    for domain, rows in enumerate(rows_D):
        chosen = _drawn(rows, config, natural.names[domain], domain)
        tests.append(Samples(chosen, np.full(len(chosen), domain)))
    return training, tests


def one_domain(rows: int) -> NaturalDomains:
    """Return one domain of all rows of a table."""
    return NaturalDomains(("all",), np.zeros(rows, dtype=np.int64))


def kept_for_testing(labels: Rows, domains: NaturalDomains, share: float) -> list[Rows]:
    """Choose each domain's rows for testing: `share` of every class in it, the same for any seed of the run.

    A class with at least two samples in a domain has at least one for training and one for testing.

    Raises
    ------
    UserError
        If a domain has no sample to test on.
    """
    classes = int(labels.max()) + 1
    kept = []
    for domain, name in enumerate(domains.names):
        own = np.flatnonzero(domains.of_row == domain)
        parts = [np.empty(0, dtype=np.int64)]
        for label in range(classes):
            group = own[labels[own] == label]
            if len(group) > 1:
                count = min(max(round(share * len(group)), 1), len(group) - 1)
                draw = generator(0, Purpose.TEST_SAMPLES, domain, label)
                parts.append(draw.permutation(group)[:count])
        kept.append(np.sort(np.concatenate(parts)))
        if len(kept[-1]) == 0:
            raise UserError(
                f"data.test_share: {share} leaves domain {name!r} no test sample, because none of its classes has two "
                f"samples (it has {len(own)} in total). Add samples, or remove the domain from the data."
            )
    return kept


def _of_file(given: Rows, domains: NaturalDomains) -> list[Rows]:
    """Return each domain's rows among those that a partition file gives for testing."""
    rows_D = [given[domains.of_row[given] == domain] for domain in range(len(domains.names))]
    for name, rows in zip(domains.names, rows_D, strict=True):
        if len(rows) == 0:
            raise UserError(
                f"data.partition.path: no row of domain {name!r} has the part test, and the data have no test part of "
                "their own. Give some rows that part, or remove the column part."
            )
    return rows_D


def _of_each_domain(rows: Rows, domains: int) -> list[Samples]:
    return [Samples(rows, np.full(len(rows), domain)) for domain in range(domains)]


def _drawn(rows: Rows, config: Config, domain: str, *key: int) -> Rows:
    """Draw as many of the rows for testing as the config wants."""
    wanted = config.evaluation.test_samples_per_domain or len(rows)
    if wanted > len(rows):
        whose = f"domain {domain!r}" if domain else config.data.name
        more = ", or raise data.test_share" if domain else ""
        raise UserError(
            f"evaluation.test_samples_per_domain: got {wanted}, but {whose} has {len(rows)} test samples. "
            f"Use fewer (null: all){more}."
        )
    return np.sort(generator(0, Purpose.TEST_SAMPLES, *key).permutation(rows)[:wanted])
