"""DS-FL: distillation of a sharpened mean of posteriors on an unlabelled common set.

Shape letters: N answers, S seed rows of the round, C classes.
"""

from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import DsFlOptions
from fedh2l_mpi.methods.consensus_method import ConsensusMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class DsFl(ConsensusMethod):
    """Participants take E steps on private data, publish posteriors, and digest their sharpened mean in M steps.

    Source: Itahara, Nishio, Koda, Morikura and Yamamoto, "Distillation-based semi-supervised federated learning for
    communication-efficient collaborative training with non-IID private data", 2020, arXiv 2008.06180, with entropy
    reduction aggregation. There is no server here, so the mean is that of the own and the neighbours' posteriors, and
    there is no server's model. The unlabelled open set is the seed set in its views, and a round uses all of its rows.
    """

    config: DsFlOptions
    records_steps = True

    def teacher(self, participant: Participant, now: Round, answers_NSC: Tensor) -> Tensor:
        """Return softmax(mean of the posteriors / T), (S, C)."""
        return entropy_reduced(answers_NSC, self.config.sharpening)


def entropy_reduced(posteriors_NSC: Tensor, temperature: float) -> Tensor:
    """Return softmax(mean of the posteriors / T), (S, C): with a small T, surer than the mean.

    Source: Itahara et al., 2020, entropy reduction aggregation.
    """
    return losses.posteriors(posteriors_NSC.mean(dim=0), temperature)
