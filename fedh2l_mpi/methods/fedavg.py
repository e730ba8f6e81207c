"""Federated averaging, and its variant with a proximal term."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedh2l_mpi.config.method import FedProxOptions
from fedh2l_mpi.methods.parameter_method import ParameterMethod
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class FedAvg(ParameterMethod):
    """Participants take E + M steps from common weights, then adopt the mean, weighted by private samples.

    There is no server, so every participant sends its parameters to all others, and the graph must be complete. Sums
    are taken in the order of participants, so all participants end with the same bits. They differ a little if a codec
    loses digits or rows are skipped, because a participant uses its own parameters unchanged.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
    """

    needs_complete_graph = True
    averages_everyone = True
    # The host adds the arrays up; only the own parameters are read on the device.
    takes_theirs_one_by_one = True
    records_steps = True
    takes_batches = True

    @property
    def publishes_first(self) -> bool:
        return False

    @property
    def phase_memory(self) -> PhaseMemory:
        """Sum and summand of the mean."""
        return PhaseMemory(averaging=2)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Adopt the weighted mean of all participants."""
        states = dict(zip(now.graph.neighbours[participant.index], theirs[:, 0], strict=True))
        states[participant.index] = participant.shared_state.read().float().cpu()
        self.adopt(participant, self.mean(states, now, torch.device("cpu")))

    def mean(self, states: Mapping[int, Tensor], now: Round, device: torch.device) -> Tensor:
        """Return the mean of the states, float32 (size,), weighted by private samples and summed in their order."""
        return weighted_mean(states, now.private_samples, device)

    def adopt(self, participant: Participant, mean: Tensor) -> None:
        """Replace a participant's parameters and running statistics by the mean."""
        participant.shared_state.write(mean)


class FedProx(FedAvg):
    """FedAvg with a proximal term: local steps also minimise mu / 2 |w - w_0|^2, with the last average w_0.

    Source: Li et al., "Federated optimization in heterogeneous networks", 2020.
    """

    config: FedProxOptions
    needs_start = True
    records_steps = True
    takes_batches = True

    @property
    def phase_memory(self) -> PhaseMemory:
        """Like FedAvg's, with the last average in all steps."""
        return replace(super().phase_memory, vectors=1)

    def local_step(self, participant: Participant, loss: Tensor, start: Tensor | None) -> None:
        """Take a step like FedAvg's, with mu (w - w_0) added to the gradient."""
        gradient = participant.gradient(loss)
        if start is not None:
            gradient.add_(participant.optimizer.parameters - start, alpha=self.config.proximal)
        participant.step(gradient)


def weighted_mean(states: Mapping[int, Tensor], private_samples: Sequence[int], device: torch.device) -> Tensor:
    """Return the mean of participants' states, float32 (size,), weighted by private samples and summed in their order.

    Source: McMahan et al., 2017, algorithm 1.
    """
    total = sum(private_samples[index] for index in states)
    mean, summand = (torch.zeros(len(next(iter(states.values()))), device=device) for _ in range(2))
    for index in sorted(states):
        torch.mul(states[index].to(device), private_samples[index] / total, out=summand)
        mean += summand
    return mean
