"""What a run will need, from its config and data: one model of each architecture is built, none is trained.

Compared with the memory of the device, or of the node, before the first round.
"""

import copy
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedh2l_mpi import models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.labelled import Labelled, Normalisation
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import Method, batched
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning.memory import ModelSize, RankMemory, SampleCounts, rank_memory
from fedh2l_mpi.planning.model_size import measure_model, measure_pass
from fedh2l_mpi.planning.traffic import Links, MessageSize
from fedh2l_mpi.runtime.hosting import Hosting

log = logging.getLogger("fedh2l_mpi")


def architectures(config: Config) -> Counter[str]:
    """How many participants have each architecture of a resolved config, in the order of their first."""
    return Counter(map(config.architecture, range(config.size)))


def build_models(config: Config, source: Source) -> dict[str, nn.Module]:
    """One model of each architecture of a resolved config, on the CPU.

    Raises
    ------
    UserError
        If one is unknown or does not fit the data.
    """
    names = architectures(config)
    models.check_weights(config.weights, list(names))
    return {
        name: models.build(name, source.channels, source.side, source.classes, 0, config.weights.get(name))
        for name in names
    }


def stand_in_participant(config: Config, source: Source, model: nn.Module, samples: int = 1) -> Participant:
    """A participant 0 with this model and random data, for what a method wants to know of a model, or takes.

    The model becomes its own: its parameters move into one vector.
    """
    data = random_samples(source, samples)
    augment = AUGMENTATIONS[config.data.augmentation]
    return Participant(0, "", model, data, data, config.optimizer, config.evaluation, config.seed, augment)


def random_samples(source: Source, samples: int) -> Labelled:
    """Images and labels of the kind that a data set's are, drawn at random."""
    draw = torch.Generator().manual_seed(0)
    shape = (samples, source.channels, source.side, source.side)
    labels = torch.randint(source.classes, (samples,), generator=draw)
    if source.domains is None:
        images = torch.randn(shape, generator=draw).contiguous(memory_format=torch.channels_last)
        return Labelled(images, labels)
    stored = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    normalisation = Normalisation.of(source, torch.device("cpu"))
    return Labelled(stored.contiguous(memory_format=torch.channels_last), labels, normalisation)


@dataclass(frozen=True)
class Requirements:
    """What footprint's arithmetic needs to know of a run.

    Attributes
    ----------
    models : dict of str to ModelSize
        By architecture.
    message : MessageSize or None
        None: nothing is exchanged.
    """

    config: Config
    method: Method
    counts: SampleCounts
    models: dict[str, ModelSize]
    message: MessageSize | None

    def memory(self, hosting: Hosting, graph: Links, on_host: bool = False) -> RankMemory:
        """Bytes of every rank; `on_host` if the device is known to be the host."""
        return rank_memory(
            self.config,
            hosting,
            self.counts,
            self.models,
            graph,
            self.message,
            self.method.pools_private_data,
            self.method.keeps_published,
            batched.MEMBERS if batched.may_batch(self.config, self.method.takes_batches) else 1,
            self.method.takes_theirs_one_by_one,
            on_host,
        )

    @property
    def kept_bytes(self) -> int:
        """What is kept of each participant from round to round, by the method or to skip unchanged rows [bytes]."""
        arrays = self.method.keeps_published + (self.config.exchange.skip_below is not None)
        return arrays * self.message.held_bytes if self.message is not None else 0

    def sharing_bytes(self, graph: Links) -> float:
        """What sharing parameters over the same edges would take in a round [bytes]."""
        shared = [self.models[self.config.architecture(index)].shared_bytes for index in range(self.config.size)]
        return float(graph.degree_P @ np.array(shared, dtype=np.float64))


def compute(config: Config, source: Source, method: Method, held: SampleCounts) -> Requirements:
    """Of a resolved config.

    Raises
    ------
    UserError
        If a model is unknown, does not fit the data or cannot be trained on minibatches of the size they have, or the
        codec does not fit what is exchanged.
    """
    built = build_models(config, source)
    _refuse_single_samples(config, source, method, held, built)
    sizes = {name: measure_model(model, source) for name, model in built.items()}
    model = built[config.architecture(0)]
    array = method.array(stand_in_participant(config, source, model), held.seed_per_round, source.classes)
    message = None
    if array is not None:
        array = array.coded(config.exchange)
        fixed = array.message_bytes(0)
        is_coded = not array.codec.exact or array.skip_below is not None
        message = MessageSize(fixed, array.message_bytes(1) - fixed, array.held_bytes, is_coded)
    return Requirements(config, method, held, sizes, message)


def _refuse_single_samples(
    config: Config, source: Source, method: Method, held: SampleCounts, built: dict[str, nn.Module]
) -> None:
    """Refuse a model that cannot be trained on one sample, as BatchNorm of a single pixel, where a minibatch is one."""
    steps, optimizer = config.method, config.optimizer
    for name, model in built.items():
        own = [held.private_P[index] for index in range(config.size) if config.architecture(index) == name]
        private = sum(held.private_P) if method.pools_private_data else min(own)
        minibatches = [min(optimizer.batch_size, private)] if steps.local_steps + steps.mutual_steps else []
        if method.trains_on_seed_set and steps.mutual_steps:
            minibatches.append(min(optimizer.seed_batch_size, held.seed_per_round))
        if 1 not in minibatches:
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                measure_pass(copy.deepcopy(model).train(), source, samples=1)
        except (ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                f"models: {name!r} cannot be trained on a minibatch of one sample ({error}), which this run has; raise "
                "optimizer.batch_size, optimizer.seed_batch_size or seed_set.samples_per_round to 2 or more, and give "
                "every participant as many private samples"
            ) from None


def count_samples(plan: federated.Plan) -> SampleCounts:
    """Who holds how many samples."""
    return SampleCounts(
        private_P=np.array([len(share.private) for share in plan.shares]),
        validation_P=np.array([len(share.validation) for share in plan.shares]),
        seed=len(plan.seed),
        seed_per_round=plan.seed_samples_per_round,
        tests=[len(test) for test in plan.tests],
        classes=plan.classes,
        stored_bytes=plan.image_bytes() + 8,
        input_bytes=plan.source.input_bytes,
    )
