"""ProxyFL: proxies are mixed with the neighbours'."""

from torch import Tensor

from fedh2l_mpi.config.method import ProxyFLOptions
from fedh2l_mpi.methods.mixing import metropolis_weight
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.proxy_method import ProxyMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class ProxyFL(ProxyMethod):
    """Participants train their own model and a proxy, then average proxies with their neighbours.

    Source: Kalra, Wen, Cresswell, Volkovs and Tizhoosh, "Decentralized federated learning through proxy model sharing",
    2023, arXiv 2111.11343, algorithm 1. Three things differ. Proxies are averaged over an undirected graph with
    Metropolis weights, as in `d_psgd`, instead of PushSum over a directed exponential graph. There is no differential
    privacy. One weight, `proxy_share`, is that of both models.
    """

    config: ProxyFLOptions

    @property
    def phase_memory(self) -> PhaseMemory:
        """The state, the mixed one, a difference and its product with a weight."""
        return PhaseMemory(averaging=4)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Average the proxy with the neighbours': x_i <- x_i + sum over neighbours j of w_ij (x_j - x_i)."""
        with self.proxy(participant) as proxy:
            state = proxy.shared_state.read()
            mixed = state.clone()
            for neighbour, others in zip(now.graph.neighbours[participant.index], theirs, strict=True):
                weight = metropolis_weight(now.graph, participant.index, neighbour)
                mixed += weight * (others[0].to(participant.device) - state)
            proxy.shared_state.write(mixed)
