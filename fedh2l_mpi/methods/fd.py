"""Federated distillation: participants exchange their mean posterior of each class, and need no seed set.

Shape letters: B minibatch, C classes, N neighbours.
"""

from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import FdOptions
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods import class_means
from fedh2l_mpi.methods.by_class_method import ByClassMethod
from fedh2l_mpi.participant import Participant


class FederatedDistillation(ByClassMethod):
    """Participants take E + M steps on private data, and publish the mean posterior of the samples of each class.

    The posteriors are those of the round's own steps. In the next round, the loss on a sample of class y is
    CE + w_kd KL(mean of the others' posteriors of y || own posterior).

    Source: Jeong et al., "Communication-efficient on-device machine learning: federated distillation and augmentation
    under non-IID private data", 2018, arXiv 1811.11479, algorithm 1. Four things differ. The mean is over the
    neighbours instead of all others, because there is no server. It leaves out neighbours without a sample of the
    class. The paper's cross-entropy with the teacher is a divergence here, which differs by the teacher's entropy and
    has the same gradient. The paper's augmentation of private data by a generative model is left out.
    """

    config: FdOptions

    @property
    def weight(self) -> float:
        return self.config.weight_kd

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("class posteriors", classes, classes + 1)

    def vectors(self, participant: Participant, own_logits_BC: Tensor) -> Tensor:
        """Return the posteriors of a minibatch, (B, C)."""
        return losses.posteriors(own_logits_BC)

    def combined(self, own_CK: Tensor, theirs_NCK: Tensor) -> Tensor | None:
        """Return the mean of the neighbours' means; the own one is left out, as in the paper."""
        return class_means.mean_of_means(theirs_NCK) if len(theirs_NCK) else None

    def pull(self, own_logits_BC: Tensor, vectors_BK: Tensor, teacher_BK: Tensor, is_known_B: Tensor) -> Tensor:
        """Return the mean of KL(teacher of the class || own), in nats."""
        return losses.mutual_distillation(own_logits_BC, teacher_BK[None], weights_NB=is_known_B[None])
