"""Decentralised SGD: gossip averaging of parameters."""

from torch import Tensor

from fedh2l_mpi.methods.base import ParameterMethod, Round
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.topology import Graph


class DPsgd(ParameterMethod):
    """E + M steps on private data; parameters are averaged with the neighbours', by the graph's Metropolis weights.

    x_i <- x_i + sum over neighbours j of w_ij (x_j - x_i), where x_i, x_j in the bracket are as published. Published
    after the local steps, this is local SGD with gossip; with `publish: start`, the average is of the weights before
    them, as in the paper, and the exchange is hidden behind them. BatchNorm's running statistics then stay local: old
    differences put on new variances could make them negative.

    Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", 2017, algorithm 1; Xiao,
    Boyd and Kim, "Distributed average consensus with least-mean-square deviation", 2007, for the weights.
    """

    keeps_published = True
    takes_theirs_one_by_one = True

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Parameters and running statistics, kept to take the differences from."""
        participant.kept["published"] = participant.shared_state.read()
        return super().publish(participant, now)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """The average."""
        state, published = participant.shared_state.read(), participant.kept["published"]
        averaged = len(participant.parameters.vector) if self.publishes_first else len(state)
        for neighbour, parameters in zip(now.graph.neighbours[participant.index], theirs, strict=True):
            weight = metropolis_weight(now.graph, participant.index, neighbour)
            state[:averaged] += weight * (parameters[0].to(participant.device) - published)[:averaged]
        participant.shared_state.write(state)


def metropolis_weight(graph: Graph, i: int, j: int) -> float:
    """1 / (1 + the larger degree of two neighbours): symmetric; with the rest of 1 for oneself, doubly stochastic."""
    return 1 / (1 + max(len(graph.neighbours[i]), len(graph.neighbours[j])))
