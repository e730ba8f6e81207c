"""Federated mutual learning: the second model is a meme, which all participants average."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedh2l_mpi.config.method import FmlOptions
from fedh2l_mpi.methods.fedavg import weighted_mean
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.proxy_method import ProxyMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class Fml(ProxyMethod):
    """Participants train their own model and a meme, then adopt the mean of all memes, weighted by private samples.

    Source: Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu and Wu, "Federated mutual learning", 2020, arXiv 2006.16765.
    Two things differ. There is no server, so every participant sends its meme to all others, and the graph must be
    complete. One weight, `proxy_share`, is that of the divergence in both losses, alpha and beta of the paper being
    1 - `proxy_share`.
    """

    config: FmlOptions
    needs_complete_graph = True
    averages_everyone = True

    @property
    def phase_memory(self) -> PhaseMemory:
        """Sum and summand of the mean."""
        return PhaseMemory(averaging=2)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Adopt the weighted mean of all memes."""
        states = dict(zip(now.graph.neighbours[participant.index], theirs[:, 0], strict=True))
        with self.proxy(participant) as meme:
            states[participant.index] = meme.shared_state.read().float().cpu()
        self.adopt(participant, self.mean(states, now, torch.device("cpu")))

    def mean(self, states: Mapping[int, Tensor], now: Round, device: torch.device) -> Tensor:
        """Return the mean of the memes, float32 (size,), weighted by private samples and summed in their order."""
        return weighted_mean(states, now.private_samples, device)

    def adopt(self, participant: Participant, mean: Tensor) -> None:
        """Replace a participant's meme by the mean."""
        with self.proxy(participant) as meme:
            meme.shared_state.write(mean)
