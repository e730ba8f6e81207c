"""Facts of a round that all participants know.

Shape letters: S seed rows of the round, P participants, K channels, H, W pixels.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fedh2l_mpi.data.seed_set import SeedRound, SeedSet
from fedh2l_mpi.rng import named_generator
from fedh2l_mpi.runtime.step_arguments import OF_ONE_ROUND
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
    seed_set : SeedSet
        The whole seed set, without views.
    rounds : int
        Number of rounds of the run.
    """

    index: int
    graph: Graph
    seed: SeedRound
    private_samples: tuple[int, ...]
    seed_set: SeedSet
    rounds: int

    def draw(self, purpose: str, participant: int | None = None) -> np.random.Generator:
        """Return a new generator from (the run's seed, purpose, round, participant), the same on any number of ranks.

        Parameters
        ----------
        purpose : str
            Any text. Different texts give independent numbers.
        participant : int or None
            Number of a participant; None: numbers that all participants share.
        """
        owner = 0 if participant is None else participant + 1
        return named_generator(self.seed_set.seed, purpose, self.index, owner)

    def with_seed(self, inputs: Tensor, labels: Tensor) -> "Round":
        """Return this round with other seed samples, for a method that makes its own views.

        Parameters
        ----------
        inputs : float32 (S, X), or int64 token ids (S, L)
            Input of the models. Every participant must use the same inputs in the same order.
        labels : int64 (S,)
        """
        return replace(self, seed=SeedRound(self.index, inputs, labels, labels))

    def tensors(self) -> dict[str, Tensor | None]:
        """Return the tensors that differ from round to round, for a recorded step (`devices.graphs`)."""
        return {"inputs": self.seed.inputs, "labels": self.seed.labels, "targets": self.seed.targets}

    def facts(self) -> Hashable:
        """Return what is the same in every round, as far as a step may depend on it."""
        return id(self.seed_set), self.rounds, self.private_samples

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Round":
        """Return a round with other seed tensors, whose number and graph no step may use."""
        return replace(self, index=OF_ONE_ROUND, graph=OF_ONE_ROUND, seed=SeedRound(OF_ONE_ROUND, **tensors))
