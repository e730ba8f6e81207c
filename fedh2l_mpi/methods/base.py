"""What the round loop asks of a method, and what most methods do when asked.

Shape letters: N neighbours, S seed samples of the round, C classes, K gradients, W weights of the model; a published
array has rows and columns.
"""

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
    """What all participants know about a round.

    Attributes
    ----------
    index : int
        From 0.
    graph : Graph
        Who is whose neighbour.
    seed : SeedRound
        The round's seed samples, as everyone sees them.
    private_samples : tuple of int
        How many private training samples each participant has, (P,).
    """

    index: int
    graph: Graph
    seed: SeedRound
    private_samples: tuple[int, ...] = ()


class Method:
    """A learning method; one object serves all participants of a rank, so what it remembers belongs into them.

    A subclass says what is exchanged (`array`, `publish`) and how participants learn (`local_phase`, `mutual_phase`).
    For a fair comparison, both phases together make `local_steps + mutual_steps` optimiser steps in every round.

    Parameters
    ----------
    config : MethodConfig
        The section `method` of the config.
    labelled : bool
        Whether the seed labels may be used.
    """

    # Parameters are exchanged: all participants need one architecture, and begin with the same weights.
    shares_parameters = False
    # Everyone averages with everyone: the graph must be complete.
    needs_complete_graph = False
    # Everyone trains on everybody's private data.
    pools_private_data = False
    # Some steps are on seed minibatches: a model that cannot be trained on one sample is refused where they have one.
    trains_on_seed_set = False
    # Every participant keeps a copy of the array that it published: the memory estimate counts it.
    keeps_published = False
    # Of the neighbours' arrays, one at a time lies on the device, not all at once: the memory estimate counts it.
    takes_theirs_one_by_one = False
    # Not E steps in the one phase and M in the other, but E + M in this one: `plan` times fewer, and scales them up.
    all_steps_in: Literal["local", "mutual"] | None = None
    # Knows `method.combine: gem_neighbours`: a constraint for every neighbour, by `step_within_cone`.
    constrains_each_neighbour = False
    # Both phases treat a `BatchedParticipants` as they treat a participant.
    takes_batches = False
    # What whoever starts a run should be told.
    caution = ""

    def __init_subclass__(cls) -> None:
        """What a class inherits was said of phases that it may replace: one with its own must say it again."""
        super().__init_subclass__()
        if "local_phase" in vars(cls) or "mutual_phase" in vars(cls):
            cls.constrains_each_neighbour = vars(cls).get("constrains_each_neighbour", False)
            cls.takes_batches = vars(cls).get("takes_batches", False)

    def __init__(self, config: MethodConfig, labelled: bool) -> None:
        self.config, self.labelled = config, labelled

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec | None:
        """Name and shape of what a participant publishes in a round; None: nothing is ever exchanged.

        Parameters
        ----------
        participant : Participant
            Any one; for those that share parameters, all are alike.
        samples, classes : int
            S, seed samples of a round, and C.
        """
        return None

    def exchanges_in(self, round_index: int) -> bool:
        """Whether participants publish in this round; must depend on the round alone."""
        return True

    @property
    def publishes_first(self) -> bool:
        """True if the exchange starts before the local phase, which then hides it; False if it starts after it."""
        return not isinstance(self.config, DistillationOptions | DPsgdOptions) or self.config.publish == "start"

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """The array that goes to the neighbours, float32 (rows, columns) in host memory.

        Until the round ends, nothing may write to it; of the participant's own parameters, a copy is taken.
        """
        raise NotImplementedError(f"{type(self).__name__} has an array to exchange, but does not say which numbers")

    def published(self, participant: Participant, now: Round) -> Tensor:
        """Return the published array, copied if it is a view of the participant's parameters.

        Neighbours on this rank get it without a further copy, while the participant learns on.
        """
        array = self.publish(participant, now)
        return array.clone() if participant.parameters.share_memory_with(array) else array

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Make E steps on private minibatches.

        With `takes_batches`, `participant` may be a batch of participants in both phases (`TrainingUnit`).
        """
        participant.begin(now.index, phase=0)
        self.private_steps(participant, self.config.local_steps)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """M steps with what the neighbours sent.

        Parameters
        ----------
        theirs : float32 tensor (N, rows, columns)
            In host memory, in the order of `now.graph.neighbours[participant.index]`; N = 0 without neighbours, and
            in a round without exchange.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how participants learn from each other")

    @staticmethod
    def private_steps(participant: Participant, steps: int) -> None:
        """Optimiser steps on private minibatches."""
        for _ in range(steps):
            participant.step(participant.gradient(participant.private_loss()))

    def combined_step(self, participant: Participant, g_private: Tensor, g_seed: Tensor) -> None:
        """Take one step along a combination of the two gradients: `method.combine`, or their sum without that key."""
        products = self._noted_products(participant, g_private, g_seed)
        a, b = COMBINERS[self.config.combine if isinstance(self.config, CombineOptions) else "sum"](products)
        participant.step(g_private.mul_(a[..., None]).add_(g_seed.mul_(b[..., None])))

    def step_within_cone(self, participant: Participant, g_private: Tensor, g_terms: list[Tensor]) -> None:
        """One step along the vector nearest to the sum of all that, to first order, raises none of their losses."""
        gradients_KW = torch.stack([g_private, *g_terms])
        self._noted_products(participant, g_private, gradients_KW[1:].sum(dim=0))
        gram_KK = gradients_KW @ gradients_KW.T
        if not torch.isfinite(gram_KK).all():
            raise DivergedError(f"participant {participant.index} diverged: a gradient is not finite; {REMEDY}")
        participant.step(nearest_in_cone(gram_KK) @ gradients_KW)

    @staticmethod
    def _noted_products(participant: Participant, g_private: Tensor, g_seed: Tensor) -> InnerProducts:
        products = InnerProducts.of(g_private, g_seed)
        participant.note("gradient_cosine", products.cosine)
        participant.note("conflict_rate", products.conflict)
        return products


class PosteriorMethod(Method):
    """A method whose participants publish their posteriors on the round's seed samples, and nothing else."""

    config: DistillationOptions

    @property
    def temperature(self) -> float:
        """T of the published posteriors, and of the own posteriors that are compared with them."""
        return self.config.temperature

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("posteriors", samples, classes, sums_to_one=True)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """softmax(logits / T) in eval mode, float32 (S, C) in host memory: all that ever leaves a participant."""
        logits_SC = participant.logits(now.seed.images)
        return host_memory.to_host(losses.posteriors(logits_SC, self.temperature).float())


class ParameterMethod(Method):
    """A method whose participants publish parameters, and average them instead of learning from the seed set.

    BatchNorm's running statistics are averaged like parameters, where the average is of current ones; the optimiser's
    moments stay local.
    """

    shares_parameters = True
    all_steps_in = "local"

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("parameters", 1, participant.shared_state.size)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Parameters and running statistics, float32 (1, size) in host memory."""
        return host_memory.to_host(participant.shared_state.read().float())[None]

    def local_phase(self, participant: Participant, now: Round) -> None:
        """E + M steps on private minibatches."""
        participant.begin(now.index, phase=0)
        self.private_steps(participant, self.config.local_steps + self.config.mutual_steps)
