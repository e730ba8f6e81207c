"""KT-pFL: each participant learns how much to weigh every teacher.

Shape letters: N answers, S seed rows of the round, C classes, P participants.
"""

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import KtPflOptions
from fedh2l_mpi.methods.consensus_method import ConsensusMethod
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant

# Key under which a participant keeps its weights of all participants, itself included, (P,), times their number at the
# time: 1 is an equal weight, with which a neighbour begins.
COEFFICIENTS = "coefficients"


class KtPfl(ConsensusMethod):
    """Participants take E steps on private data, publish posteriors, and digest a weighted mean of them in M steps.

    A participant first moves its weights of the own and the neighbours' posteriors by one step of gradient descent,
    then digests the mean with these weights. The weights last from round to round.

    Source: Zhang, Guo, Ma, Wang, Xu and Wu, "Parameterized knowledge transfer for personalized federated learning",
    2021, arXiv 2111.02862: the knowledge coefficient matrix and its update. There is no server, so each participant
    learns its own row of the matrix, of its neighbourhood alone; a new neighbour begins with an equal weight. Weights
    stay non-negative and sum to 1, which the paper's formula of a step does not ask for.
    """

    config: KtPflOptions
    records_steps = True

    @property
    def phase_memory(self) -> PhaseMemory:
        """All answers, and each of them times its weight."""
        return PhaseMemory(choosing=2.0)

    def teacher(self, participant: Participant, now: Round, answers_NSC: Tensor) -> Tensor:
        """Return the weighted mean of the posteriors, (S, C), after a step of the weights."""
        around = now.graph.neighbours
        near_N = torch.tensor([participant.index, *around[participant.index]], device=participant.device)
        relative_P = participant.kept.get(COEFFICIENTS, torch.ones(len(around), device=participant.device))
        before_N = relative_P[near_N] / relative_P[near_N].sum()
        after_N = stepped(before_N, answers_NSC, self.config.coefficient_rate, self.config.coefficient_pull)
        participant.kept[COEFFICIENTS] = relative_P.index_copy(0, near_N, len(near_N) * after_N)
        return weighted(answers_NSC, after_N)


def weighted(posteriors_NSC: Tensor, weights_N: Tensor) -> Tensor:
    """Return the sum of the posteriors, each times its weight, (S, C)."""
    return (weights_N[:, None, None] * posteriors_NSC).sum(dim=0)


def gradient(weights_N: Tensor, posteriors_NSC: Tensor, pull: float) -> Tensor:
    """Return the derivative of mean over samples of KL(weighted mean || own) + rho |weights - 1/N|^2 by weights, (N,).

    The own posterior is the first. Source: Zhang et al., 2021, the update of the knowledge coefficients.
    """
    mean_SC, own_SC = weighted(posteriors_NSC, weights_N), posteriors_NSC[0]
    log_ratio_SC = mean_SC.clamp(min=losses.FLOOR).log() - own_SC.clamp(min=losses.FLOOR).log()
    of_divergence_N = (posteriors_NSC * (log_ratio_SC + 1)).sum(dim=-1).mean(dim=-1)
    return of_divergence_N + 2 * pull * (weights_N - 1 / len(weights_N))


def stepped(weights_N: Tensor, posteriors_NSC: Tensor, rate: float, pull: float) -> Tensor:
    """Return the weights after a step of gradient descent, non-negative and summing to 1, (N,).

    The mean of the gradient is left out of the step, so that the sum stays. Negative weights become 0, and the others
    are scaled.
    """
    slope_N = gradient(weights_N, posteriors_NSC, pull)
    moved_N = (weights_N - rate * (slope_N - slope_N.mean())).clamp(min=0)
    return moved_N / moved_N.sum()
