"""Decentralised SGD: gossip averaging of parameters."""

from torch import Tensor

from fedh2l_mpi.methods.mixing import metropolis_weight
from fedh2l_mpi.methods.parameter_method import ParameterMethod
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class DPsgd(ParameterMethod):
    """Participants take E + M steps on private data, then average parameters with their neighbours.

    The average is x_i <- x_i + sum over neighbours j of w_ij (x_j - x_i), with the graph's Metropolis weights w_ij and
    the published x_i and x_j in the bracket. If parameters are published after the local steps, this is local SGD with
    gossip. If `publish` is `start`, the average is of the weights before the local steps, as in the paper, and the
    exchange is hidden behind these steps. BatchNorm's running statistics stay local in that case, because old
    differences could make new variances negative.

    Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?", 2017, algorithm 1; Xiao,
    Boyd and Kim, "Distributed average consensus with least-mean-square deviation", 2007, for the weights.
    """

    keeps_published = True
    takes_theirs_one_by_one = True
    records_steps = True
    takes_batches = True

    @property
    def phase_memory(self) -> PhaseMemory:
        """The state, and a difference next to what it is computed from."""
        return PhaseMemory(averaging=2)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return parameters and running statistics, and keep them for the differences."""
        participant.kept["published"] = participant.shared_state.read()
        return super().publish(participant, now)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Average with the neighbours."""
        state, published = participant.shared_state.read(), participant.kept["published"]
        averaged = len(participant.parameters.vector) if self.publishes_first else len(state)
        for neighbour, parameters in zip(now.graph.neighbours[participant.index], theirs, strict=True):
            weight = metropolis_weight(now.graph, participant.index, neighbour)
            state[:averaged] += weight * (parameters[0].to(participant.device) - published)[:averaged]
        participant.shared_state.write(state)
