"""Models that an attacker trains: shadow models on samples that it knows, and students of posteriors that were sent.

Shape letters: N samples, S seed rows of a round, C classes, B minibatch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi import evaluation, losses, methods, models
from fedh2l_mpi.build import RankSetup
from fedh2l_mpi.config import Config
from fedh2l_mpi.config.method import MethodConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.methods import Round
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.rng import named_generator

Posteriors = Mapping[int, Tensor]


def alone(config: Config) -> Config:
    """Return the config of an attacker, who trains on samples of its own and the seed labels, if there are any."""
    kind = MethodConfig.class_of("seed_supervised" if config.seed_set.labelled else "independent")
    if kind is None:
        raise RuntimeError("there is no method without an exchange")
    steps = {name: getattr(config.method, name) for name in ("local_steps", "mutual_steps", "prior_correction")}
    method = kind(**steps, prior_strength=config.method.prior_strength)
    return config.model_copy(update={"method": method, "exchange": type(config.exchange).section()()})


def part(samples: Labelled, rows: Tensor) -> Labelled:
    """Return some of the samples."""
    return Labelled(samples.stored[rows], samples.labels[rows], samples.normalisation)


def join(first: Labelled, second: Labelled) -> Labelled:
    """Return two sets of one kind of samples as one."""
    return Labelled(
        torch.cat([first.stored, second.stored]), torch.cat([first.labels, second.labels]), first.normalisation
    )


def new_participant(config: Config, setup: RankSetup, index: int, private: Labelled, seed: int) -> Participant:
    """Return an untrained model of a participant's architecture with an optimiser as in the run, and with samples."""
    architecture, source = config.architecture(index), setup.plan.source
    model = models.build(architecture, source.form, source.classes, seed)
    ours = config.model_copy(update={"seed": seed})
    return Participant.of_run(ours, index, architecture, model, private, part(private, torch.arange(0)), False)


def shadow(config: Config, setup: RankSetup, index: int, private: Labelled, rounds: int, seed: int) -> Participant:
    """Return a model that was trained on these samples as long as the participants of the run were, without exchange.

    Parameters
    ----------
    config : Config
        `alone` of the run's config.
    """
    trained = new_participant(config, setup, index, private, seed)
    method = methods.build(config)
    nothing = torch.empty(0, 0, 0)
    for round_index in range(rounds):
        method.local_phase(trained, round_of(setup, round_index))
        method.mutual_phase(trained, round_of(setup, round_index), nothing)
        trained.end_round()
        trained.noted_means()
    return trained


def round_of(setup: RankSetup, index: int) -> Round:
    """Return a round as the run had it."""
    seed_set, graph = setup.federation.seed_set, setup.topology.graph(index)
    return Round(index, graph, seed_set.of_round(index), setup.private_samples, seed_set, index + 1)


def student(
    config: Config, setup: RankSetup, index: int, sent: Posteriors, temperature: float, steps: int, seed: int
) -> Participant:
    """Return a model that was trained only to predict posteriors that a participant sent, by round, (S, C) each.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
    """
    private = part(setup.federation.seed_set.samples, torch.arange(1))
    trained = new_participant(config, setup, index, private, seed)
    inputs = {index: setup.federation.seed_set.of_round(index).inputs for index in sent}
    draw = named_generator(seed, "leakage student")
    trained.begin(0, 0)
    for _ in range(steps):
        of_round = int(draw.choice(list(sent)))
        size = min(config.optimizer.seed_batch_size, len(sent[of_round]))
        rows_B = torch.from_numpy(draw.choice(len(sent[of_round]), size, replace=False))
        logits_BC = trained.model(inputs[of_round][rows_B])
        loss = losses.mutual_distillation(logits_BC, sent[of_round][rows_B][None], temperature)
        trained.step(trained.gradient(loss))
    trained.end_round()
    return trained


@torch.no_grad()
def publish(participant: Participant, setup: RankSetup, rounds: Sequence[int], temperature: float) -> Posteriors:
    """Return the posteriors that a model would send in these rounds, float32 (S, C) each."""
    seed_set = setup.federation.seed_set
    with participant.averaged():
        return {
            index: losses.posteriors(participant.logits(seed_set.of_round(index).inputs), temperature)
            for index in rounds
        }


@torch.no_grad()
def log_posteriors(participant: Participant, samples: Labelled) -> NDArray[np.float64]:
    """Return the logarithms of a model's posteriors of samples, float64 (N, C), at temperature 1."""
    with participant.averaged():
        return np.asarray(evaluation.logits_of(participant, samples).double().log_softmax(dim=-1).numpy())
