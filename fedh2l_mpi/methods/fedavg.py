"""Federated averaging, and its variant with a proximal term."""

import torch
from torch import Tensor

from fedh2l_mpi.config.method import FedProxOptions
from fedh2l_mpi.methods.base import ParameterMethod, Round
from fedh2l_mpi.participant import Participant


class FedAvg(ParameterMethod):
    """E + M steps on private data from the common weights, then everybody's mean, weighted by private samples.

    Without a server, everyone sends its parameters to everyone: the graph must be complete. Sums are taken in the order
    of participants, so all end with the same bits. With a codec that loses digits, or skipped rows, they differ a
    little: everyone takes its own parameters as they are.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
    """

    needs_complete_graph = True
    # None: the host adds them up. But the own one is read on the device.
    takes_theirs_one_by_one = True

    @property
    def publishes_first(self) -> bool:
        return False

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """The weighted mean of all."""
        states = dict(zip(now.graph.neighbours[participant.index], theirs[:, 0], strict=True))
        states[participant.index] = participant.shared_state.read().float().cpu()
        total = sum(now.private_samples[index] for index in states)
        mean = torch.zeros_like(states[participant.index])
        for index in sorted(states):
            mean += (now.private_samples[index] / total) * states[index]
        participant.shared_state.write(mean)


class FedProx(FedAvg):
    """FedAvg whose local steps also minimise mu / 2 |w - w_0|^2, the pull towards the weights of the last average.

    Source: Li et al., "Federated optimization in heterogeneous networks", 2020.
    """

    config: FedProxOptions

    def local_phase(self, participant: Participant, now: Round) -> None:
        """E + M steps on private minibatches, each gradient with mu (w - w_0) added."""
        participant.begin(now.index, phase=0)
        weights = participant.parameters.vector
        last_average = weights.clone()
        for _ in range(self.config.local_steps + self.config.mutual_steps):
            gradient = participant.gradient(participant.private_loss())
            participant.step(gradient.add_(weights - last_average, alpha=self.config.proximal))
