"""Count the samples of a planned run: those of a real run or, if it would be refused, those of the config."""

import numpy as np

from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.made_domains import made_domains
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.planning import requirements
from fedh2l_mpi.planning.sizes import SampleCounts


def count_or_assume(config: Config, source: Source) -> tuple[SampleCounts, str]:
    """Return the numbers of samples, and the reason why a run would be refused (empty if it would not)."""
    try:
        return requirements.count_samples(federated.plan(config, source)), ""
    except UserError as error:
        return assume_counts(config, source), str(error)


def assume_counts(config: Config, source: Source) -> SampleCounts:
    """Return the numbers of samples as if there were enough data: equal shares of the size in the config.

    If the config divides too few samples equally, every participant gets one minibatch.
    """
    labels = len(source.train.labels)
    training = round(labels * (1 - config.data.share_for_testing)) if source.test is None else labels
    each = config.data.partition.samples_per_participant or training // config.size
    seed, validation, local_test = _split(config, each)
    if each - seed - validation - local_test < 1:
        each = config.optimizer.batch_size
        seed, validation, local_test = _split(config, each)
    pooled = max(1, seed * config.size)
    in_seed_set = min(pooled, config.seed_set.max_samples or pooled)
    return SampleCounts(
        private_P=np.full(config.size, max(1, each - seed - validation - local_test)),
        validation_P=np.full(config.size, validation),
        seed=in_seed_set,
        seed_rows_per_round=(config.seed_set.samples_per_round or in_seed_set) * config.seed_set.views_per_sample,
        tests=_tests(config, source),
        classes=source.classes,
        stored_bytes=source.sample_bytes + 8,
        input_bytes=source.form.input_bytes,
        local_test_P=np.full(config.size, local_test),
    )


def _split(config: Config, each: int) -> tuple[int, int, int]:
    """Return the numbers of seed, validation and local test samples among `each` samples of a participant."""
    seed, evaluation = round(config.seed_set.share * each), config.evaluation
    validation = round(evaluation.validation_share * (each - seed))
    return seed, validation, round((evaluation.local_test_share or 0.0) * (each - seed))


def _tests(config: Config, source: Source) -> list[int]:
    wanted = config.evaluation.test_samples_per_domain
    share = config.data.share_for_testing
    labels = source.train.labels if source.test is None else source.test.labels
    kept = share if source.test is None else 1.0
    if source.domains is None:
        made = made_domains(config.data.partition, source)
        return [wanted or round(kept * len(labels))] * (len(made.names) if made is not None else 1)
    of_row = source.domains.of_row if source.domains.of_test_row is None else source.domains.of_test_row
    rows = np.bincount(of_row, minlength=len(source.domains.names))
    return [wanted or round(kept * int(count)) for count in rows]
