"""Compute the requirements of a run from its config and data: it builds one model per architecture and trains none.

`memory_check` compares the result with the memory of the device or node before the first round.
"""

import copy
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from fedh2l_mpi import evaluation, methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.labelled import Labelled, Normalisation
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods import Method, batched, second_model
from fedh2l_mpi.metrics import NO_COLUMNS, Columns
from fedh2l_mpi.models import memory_format
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning.memory import RankMemory, rank_memory
from fedh2l_mpi.planning.model_size import measure_model
from fedh2l_mpi.planning.rehearsal import SAMPLES, Minibatches, Rehearsal
from fedh2l_mpi.planning.sizes import ModelSize, SampleCounts
from fedh2l_mpi.planning.step_memory import PhaseInputs
from fedh2l_mpi.planning.traffic import Links, MessageSize
from fedh2l_mpi.planning.view_size import ViewSize, measure_views
from fedh2l_mpi.runtime.hosting import Hosting

log = logging.getLogger("fedh2l_mpi")


def architectures(config: Config) -> Counter[str]:
    """Return the number of participants with each architecture, in the order of their first participants."""
    return Counter(map(config.architecture, range(config.size)))


def build_models(config: Config, source: Source, built: Mapping[str, nn.Module] | None = None) -> dict[str, nn.Module]:
    """Build one model of each architecture of a resolved config, on the CPU, except those in `built`.

    Raises
    ------
    UserError
        If an architecture is unknown or does not fit the data.
    """
    names = architectures(config)
    models.check_weights(config.weights, list(names))
    have = built or {}
    return {
        name: have[name]
        if name in have
        else models.build(name, source.form, source.classes, 0, config.weights.get(name))
        for name in names
    }


def stand_in_participant(config: Config, source: Source, model: nn.Module, samples: int = 1) -> Participant:
    """Return a participant 0 with this model and random data, to measure a method with it.

    The participant takes over the model, whose parameters move into one vector.
    """
    data = random_samples(source, samples)
    augment = AUGMENTATIONS[config.data.augmentation]
    return Participant(
        0, "", model, data, data, config.optimizer.for_model(""), config.evaluation, config.seed, augment
    )


def random_samples(source: Source, samples: int) -> Labelled:
    """Return random samples and labels of the same kind as a data set's."""
    draw = torch.Generator().manual_seed(0)
    shape = (samples, *source.form.shape)
    labels = torch.randint(source.classes, (samples,), generator=draw)
    if source.form.kind == "tokens":
        return Labelled(torch.randint(source.form.vocabulary, shape, generator=draw), labels)
    if not source.is_compact:
        return Labelled(memory_format.as_stored(torch.randn(shape, generator=draw)), labels)
    stored = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    normalisation = Normalisation.of(source, torch.device("cpu"))
    return Labelled(memory_format.as_stored(stored), labels, normalisation)


@dataclass(frozen=True)
class Requirements:
    """Requirements of a run, from which memory, traffic and files are computed.

    Attributes
    ----------
    counts : SampleCounts
        Numbers of samples.
    models : dict of str to ModelSize
        Sizes of the models by architecture.
    message : MessageSize or None
        None: nothing is exchanged.
    views : ViewSize
        Sizes of seed samples in their views, and of samples of a minibatch.
    columns : Columns
        The run's own arrays by round.
    """

    config: Config
    method: Method
    counts: SampleCounts
    models: dict[str, ModelSize]
    message: MessageSize | None
    views: ViewSize
    columns: Columns = NO_COLUMNS

    def memory(self, hosting: Hosting, graph: Links, on_host: bool = False) -> RankMemory:
        """Return the memory of every rank. Set `on_host` if the device is known to be the host."""
        method = self.method
        phases = PhaseInputs(
            self.config,
            self.counts,
            self.models,
            self.views,
            self.message,
            method.phase_memory,
            trains_on_seed_rows=method.seed_steps > 0,
            shares_parameters=method.shares_parameters,
            takes_theirs_one_by_one=method.takes_theirs_one_by_one,
            pools_private_data=method.pools_private_data,
        )
        return rank_memory(
            self.config,
            hosting,
            phases,
            graph,
            method.keeps_published,
            method.drops_published,
            batched.MEMBERS if batched.may_batch(self.config, method.takes_batches, on_host) else 1,
            on_host,
            self.columns,
        )

    @property
    def kept_bytes(self) -> int:
        """State of each participant that the method or the exchange keeps between rounds [bytes]."""
        keeps = self.method.keeps_published and not self.method.drops_published
        arrays = keeps + (self.config.exchange.skip_below is not None)
        return arrays * self.message.held_bytes if self.message is not None else 0

    def sharing_bytes(self, graph: Links) -> float:
        """Return the traffic of a round if participants shared parameters over the same edges [bytes]."""
        shared = [self.models[self.config.architecture(index)].shared_bytes for index in range(self.config.size)]
        return float(graph.degree_P @ np.array(shared, dtype=np.float64))


def compute(
    config: Config, source: Source, method: Method, counts: SampleCounts, built: Mapping[str, nn.Module] | None = None
) -> Requirements:
    """Compute the requirements of a resolved config.

    Raises
    ------
    UserError
        If a model is unknown or does not fit the data or the method, if a rehearsal with a user's own model or method
        or with a minibatch of one sample fails, or if the codec does not fit the exchanged arrays.
    """
    built = build_models(config, source, built)
    for name, model in built.items():
        method.check_model(name, model, source.classes)
    metrics, has_local_test = evaluation.chosen_metrics(config.evaluation, source.classes), np.any(counts.local_test_P)
    columns = evaluation.columns_of(
        config.method.name,
        method.notes,
        bool(has_local_test),
        metrics,
        config.size,
        source.classes,
        may_be_absent=config.faults.participation.kind != "always",
    )
    _rehearse(config, source, method, counts, built, columns)
    sizes = {name: measure_model(model, source) for name, model in built.items()}
    if method.second_model is not None:
        second = measure_model(second_model.build(method.second_model, source.form, source.classes, 0), source)
        sizes = {name: _with_second(size, second) for name, size in sizes.items()}
    model = copy.deepcopy(built[config.architecture(0)])
    array = method.array(stand_in_participant(config, source, model), counts.seed_rows_per_round, source.classes)
    message = None
    if array is not None:
        array = array.coded(config.exchange)
        fixed = array.message_bytes(0)
        is_coded = not array.codec.exact or array.skip_below is not None
        message = MessageSize(fixed, array.message_bytes(1) - fixed, array.memory_bytes, is_coded)
    return Requirements(config, method, counts, sizes, message, _measure_views(config, source, counts), columns)


def _measure_views(config: Config, source: Source, counts: SampleCounts) -> ViewSize:
    """Measure the memory of a seed sample in its views, and of a sample of a minibatch."""
    is_subset = counts.seed_rows_per_round < counts.seed * config.seed_set.views_per_sample
    few, more = (random_samples(source, samples) for samples in (3, 5))
    return measure_views(config.seed_set, AUGMENTATIONS[config.data.augmentation], few, more, source.classes, is_subset)


def _with_second(size: ModelSize, second: ModelSize) -> ModelSize:
    """Return the size of a model whose participants train a second one in the same steps.

    Gradients and the optimiser's vectors are those of both. Only the first one is evaluated, averaged over the steps,
    or compared with what sharing parameters would send.
    """
    both = ("trainable_bytes", "state_bytes", "kept_bytes", "tensors")
    return replace(
        size,
        largest_bytes=max(size.largest_bytes, second.largest_bytes),
        **{name: getattr(size, name) + getattr(second, name) for name in both},
    )


def _rehearse(
    config: Config,
    source: Source,
    method: Method,
    counts: SampleCounts,
    built: Mapping[str, nn.Module],
    columns: Columns,
) -> None:
    """Rehearse the run with every architecture for which something may fail: a user's own code, single samples.

    Raises
    ------
    UserError
        If the run would fail, or participants would publish different arrays.
    """
    published: dict[str, ArraySpec | None] = {}
    for name, model in built.items():
        own = [int(counts.private_P[index]) for index in range(config.size) if config.architecture(index) == name]
        private = int(sum(counts.private_P)) if method.pools_private_data else min(own)
        has_single = _has_single_samples(config, method, private, counts.seed_rows_per_round)
        if not (models.is_own(name) or methods.is_own(config.method.name) or has_single):
            continue
        own_tests = [*counts.validation_P.tolist(), *np.atleast_1d(counts.local_test_P).tolist()]
        evaluated = [*counts.tests, *own_tests, counts.seed_rows_per_round]
        size = config.evaluation.batch_size
        minibatches = Minibatches(private, counts.seed_rows_per_round, any(n % size == 1 % size for n in evaluated))
        samples = random_samples(source, SAMPLES)
        try:
            published[name] = Rehearsal(config, name, model, source.classes, minibatches, samples, columns).play()
        except UserError as error:
            if not has_single or not isinstance(error.__cause__, ValueError | RuntimeError | IndexError):
                raise
            raise UserError(
                f"models: {name!r} cannot be trained on a minibatch of one sample ({error.__cause__}), but this run "
                "has one. Set optimizer.batch_size, optimizer.seed_batch_size and seed_set.samples_per_round to 2 or "
                "more, and give every participant at least 2 private samples."
            ) from None
    if len(set(published.values())) > 1:
        shapes = ", ".join(
            f"{'nothing' if one is None else (one.rows, one.columns)} with {name}" for name, one in published.items()
        )
        raise UserError(
            f"method.name: {config.method.name!r} publishes arrays of different shapes: {shapes}. All participants "
            "must publish one shape."
        )


def _has_single_samples(config: Config, method: Method, private: int, seed_rows: int) -> bool:
    """Return True if some minibatch of an architecture has one sample."""
    steps, optimizer = config.method, config.optimizer
    minibatches = [min(optimizer.batch_size, private)] if steps.local_steps + steps.mutual_steps else []
    if method.seed_steps:
        minibatches.append(min(optimizer.seed_batch_size, seed_rows))
    return 1 in minibatches


def count_samples(plan: federated.Plan) -> SampleCounts:
    """Count the samples of every participant, of the seed set and of the test sets."""
    return SampleCounts(
        private_P=np.array([len(share.private) for share in plan.shares]),
        validation_P=np.array([len(share.validation) for share in plan.shares]),
        seed=len(plan.seed),
        seed_rows_per_round=plan.seed_rows_per_round,
        tests=[len(test) for test in plan.tests],
        classes=plan.classes,
        stored_bytes=plan.sample_bytes() + 8,
        input_bytes=plan.source.form.input_bytes,
        draws=plan.draws,
        local_test_P=np.array([len(share.local_test) for share in plan.shares]),
    )
