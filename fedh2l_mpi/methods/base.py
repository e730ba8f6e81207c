"""Base classes of learning methods: the interface to the round loop, and the defaults that most methods share.

Shape letters: N neighbours, S seed rows of the round, C classes, K gradients, W weights of the model. A published
array has rows and columns.
"""

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config import MethodConfig
from fedh2l_mpi.config.method import CombineOptions, DistillationOptions, DPsgdOptions
from fedh2l_mpi.data.seed_set import SeedRound
from fedh2l_mpi.errors import DivergedError
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods.gradients import COMBINERS, InnerProducts, nearest_in_cone
from fedh2l_mpi.participant import REMEDY, Participant
from fedh2l_mpi.topology import Graph


@dataclass(frozen=True)
class Round:
    """Facts of a round that all participants know.

    Attributes
    ----------
    index : int
        Number of the round, from 0.
    graph : Graph
        Neighbours of every participant.
    seed : SeedRound
        The round's seed samples in their views, the same for all participants.
    private_samples : tuple of int
        Number of private training samples of each participant, (P,).
    """

    index: int
    graph: Graph
    seed: SeedRound
    private_samples: tuple[int, ...] = ()


class Method:
    """Base class of learning methods.

    A subclass defines what is exchanged (`array`, `publish`) and how participants learn (`local_phase`,
    `mutual_phase`). One object serves all participants of a rank, so a method stores its state in `participant.kept`.
    Both phases together make `local_steps + mutual_steps` optimiser steps per round, so that methods compare fairly.

    Parameters
    ----------
    config : MethodConfig
        The method's options: section `method` of the config, as an object of the method's own class of options.
    labelled : bool
        True if the seed labels may be used.
    """

    # Participants exchange parameters, so all need one architecture and start with the same weights. They publish the
    # trained weights, and an average of the weights (`optimizer.average`) moves once a round, after the exchange.
    shares_parameters = False
    # Every participant averages with all others, so the graph must be complete.
    needs_complete_graph = False
    # Every participant trains on the private data of all.
    pools_private_data = False
    # Some steps use seed minibatches, so a model that cannot train on one sample is refused if one has a single sample.
    trains_on_seed_set = False
    # Every participant keeps a copy of the array that it published; the memory estimate counts it.
    keeps_published = False
    # The neighbours' arrays are moved to the device one at a time; the memory estimate counts one instead of all.
    takes_theirs_one_by_one = False
    # One phase makes all E + M steps; `plan` times fewer steps there, and scales the time up.
    all_steps_in: Literal["local", "mutual"] | None = None
    # The method supports `method.combine: gem_neighbours`, a constraint for each neighbour, by `step_within_cone`.
    constrains_each_neighbour = False
    # Both phases accept `BatchedParticipants` in place of a participant.
    takes_batches = False
    # Warning that is printed when a run starts.
    caution = ""

    def __init_subclass__(cls) -> None:
        """Reset inherited flags about phases that the subclass replaces: it must set them again."""
        super().__init_subclass__()
        if "local_phase" in vars(cls) or "mutual_phase" in vars(cls):
            cls.constrains_each_neighbour = vars(cls).get("constrains_each_neighbour", False)
            cls.takes_batches = vars(cls).get("takes_batches", False)

    def __init__(self, config: MethodConfig, labelled: bool) -> None:
        self.config, self.labelled = config, labelled

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec | None:
        """Return the name and shape of the array that a participant publishes, or None if nothing is ever exchanged.

        Parameters
        ----------
        participant : Participant
            Any participant; if parameters are shared, all have the same shape.
        samples, classes : int
            S, rows of a round (its seed samples times the views of each), and C.
        """
        return None

    def exchanges_in(self, round_index: int) -> bool:
        """Return True if participants publish in this round; the answer must depend on the round alone."""
        return True

    @property
    def publishes_first(self) -> bool:
        """True if the exchange starts before the local phase, which then hides it; False if it starts after it."""
        return not isinstance(self.config, DistillationOptions | DPsgdOptions) or self.config.publish == "start"

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the array for the neighbours, float32 (rows, columns) in host memory.

        Nothing may write to it until the round ends. The loop copies a view of the participant's own parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} defines array(), so it must define publish(), too")

    def published(self, participant: Participant, now: Round) -> Tensor:
        """Return what `publish` returns within `publishing`, copied if it is a view of the participant's parameters.

        Neighbours on this rank get it without a further copy, while the participant learns on.
        """
        with self.publishing(participant):
            array = self.publish(participant, now)
            return array.clone() if participant.parameters.share_memory_with(array) else array

    def publishing(self, participant: Participant) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a participant publishes: its model holds the weights that publish.

        These are the averaged weights, if there are any; the trained ones if parameters are exchanged, because the
        others' parameters are mixed into those.
        """
        return contextlib.nullcontext() if self.shares_parameters else participant.averaged()

    def evaluating(self, participant: Participant) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a participant is evaluated, on test and validation samples.

        The model holds the averaged weights in it, if there are any.
        """
        return participant.averaged()

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E steps on private minibatches.

        In both phases, `participant` may be a batch of participants (`TrainingUnit`) if `takes_batches` is True.
        """
        participant.begin(now.index, phase=0)
        self.private_steps(participant, self.config.local_steps)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps with the neighbours' arrays.

        Parameters
        ----------
        theirs : float32 tensor (N, rows, columns)
            Arrays in host memory, in the order of `now.graph.neighbours[participant.index]`. N is 0 without neighbours
            and in a round without an exchange.
        """
        raise NotImplementedError(f"{type(self).__name__} must define mutual_phase()")

    @staticmethod
    def private_steps(participant: Participant, steps: int) -> None:
        """Take optimiser steps on private minibatches."""
        for _ in range(steps):
            participant.step(participant.gradient(participant.private_loss()))

    def combined_step(self, participant: Participant, g_private: Tensor, g_seed: Tensor) -> None:
        """Take one step along a combination of the two gradients: `method.combine`, or their sum without that key."""
        products = self._noted_products(participant, g_private, g_seed)
        a, b = COMBINERS[self.config.combine if isinstance(self.config, CombineOptions) else "sum"](products)
        participant.step(g_private.mul_(a[..., None]).add_(g_seed.mul_(b[..., None])))

    def step_within_cone(self, participant: Participant, g_private: Tensor, g_terms: list[Tensor]) -> None:
        """Take one step along the vector nearest to the sum of the gradients that, to first order, raises no loss."""
        gradients_KW = torch.stack([g_private, *g_terms])
        self._noted_products(participant, g_private, gradients_KW[1:].sum(dim=0))
        gram_KK = gradients_KW @ gradients_KW.T
        if not torch.isfinite(gram_KK).all():
            raise DivergedError(f"participant {participant.index} diverged: a gradient is not finite. {REMEDY}")
        participant.step(nearest_in_cone(gram_KK) @ gradients_KW)

    @staticmethod
    def _noted_products(participant: Participant, g_private: Tensor, g_seed: Tensor) -> InnerProducts:
        products = InnerProducts.of(g_private, g_seed)
        participant.note("gradient_cosine", products.cosine)
        participant.note("conflict_rate", products.conflict)
        return products


class PosteriorMethod(Method):
    """Base class of methods whose participants publish only their posteriors on the round's seed samples."""

    config: DistillationOptions

    @property
    def temperature(self) -> float:
        """T of the published posteriors, and of the own posteriors that are compared with them."""
        return self.config.temperature

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("posteriors", samples, classes, sums_to_one=True)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return softmax(logits / T) in eval mode, float32 (S, C) in host memory; nothing else leaves a participant."""
        logits_SC = participant.logits(now.seed.images)
        return host_memory.to_host(losses.posteriors(logits_SC, self.temperature).float())


class ParameterMethod(Method):
    """Base class of methods whose participants average parameters instead of learning from the seed set.

    BatchNorm's running statistics are averaged like parameters if the averaged parameters are the current ones. The
    optimiser's moments stay local.
    """

    shares_parameters = True
    all_steps_in = "local"

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("parameters", 1, participant.shared_state.size)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return parameters and running statistics, float32 (1, size) in host memory."""
        return host_memory.to_host(participant.shared_state.read().float())[None]

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps on private minibatches."""
        participant.begin(now.index, phase=0)
        self.private_steps(participant, self.config.local_steps + self.config.mutual_steps)
