"""Federated distillation: participants exchange their mean posterior of each class, and need no seed set.

Shape letters: B minibatch, C classes, N neighbours.
"""

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import FdOptions
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods import class_means
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant

# Keys under which a participant keeps the sums of this round's posteriors, and the teacher of the next round's steps.
SUMS, TEACHER = "class_sums", "class_teacher"


class FederatedDistillation(Method):
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
    keeps_published = True
    publishes_classes = True
    all_steps_in = "local"

    @property
    def publishes_first(self) -> bool:
        return False

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("class posteriors", classes, classes + 1)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the mean posterior of each class and the number of its samples, float32 (C, C + 1) in host memory."""
        return host_memory.to_host(class_means.means(participant.kept.pop(SUMS)))

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps on private minibatches, and on seed labels too if `method.local_labels` says so."""
        participant.begin(now.index, phase=0)
        classes = now.seed_set.classes
        participant.kept[SUMS] = torch.zeros(classes, classes + 1, device=participant.device)
        self.labelled_steps(participant, now, self.config.local_steps + self.config.mutual_steps)

    def private_loss_of(self, participant: Participant, own_logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return CE + w_kd KL(teacher of the class || own) on a private minibatch, in nats; add up the posteriors."""
        loss = super().private_loss_of(participant, own_logits_BC, labels_B)
        kept, classes = participant.kept, own_logits_BC.shape[-1]
        if SUMS in kept:
            kept[SUMS] += class_means.sums(losses.posteriors(own_logits_BC), labels_B, classes)
        if TEACHER not in kept:
            return loss
        teacher_B = kept[TEACHER][labels_B]
        is_known_B = (teacher_B[:, -1] > 0).to(teacher_B.dtype)
        distillation = losses.mutual_distillation(own_logits_BC, teacher_B[None, :, :-1], weights_NB=is_known_B[None])
        participant.note("loss_distillation", distillation)
        return loss + self.config.weight_kd * distillation

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Keep the mean of the neighbours' means for the next round; nothing without neighbours."""
        participant.kept.pop(TEACHER, None)
        if len(theirs):
            participant.kept[TEACHER] = class_means.mean_of_means(theirs).to(participant.device)
