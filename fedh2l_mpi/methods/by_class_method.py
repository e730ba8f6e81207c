"""Base class of methods that exchange the mean vector of each class, and need no seed set.

Shape letters: B minibatch, C classes, K numbers of a vector, N neighbours.
"""

import torch
from torch import Tensor

from fedh2l_mpi.exchange import host_memory
from fedh2l_mpi.methods import class_means
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant

# Keys under which a participant keeps the sums of a round's vectors until they are published, and the mean vectors that
# it has received until the next round ends.
SUMS, TEACHER = "class_sums", "class_teacher"


class ByClassMethod(Method):
    """Base class of methods whose participants take E + M steps on private data, then publish means by class.

    A subclass names the array, whose width is K + 1 for vectors of K numbers. It makes the vectors of a minibatch
    (`vectors`), the teacher of each class (`combined`), and the term of the loss that pulls towards it (`pull`).
    """

    keeps_published = True
    publishes_classes = True
    all_steps_in = "local"

    @property
    def publishes_first(self) -> bool:
        return False

    def vectors(self, participant: Participant, own_logits_BC: Tensor) -> Tensor | None:
        """Return the vectors (B, K) of a private minibatch; None outside of a local phase."""
        raise NotImplementedError(f"{type(self).__name__} must define vectors()")

    def combined(self, own_CK: Tensor, theirs_NCK: Tensor) -> Tensor | None:
        """Return the teacher's array of means, float32 (C, K + 1), from those of a round; None if there is none."""
        raise NotImplementedError(f"{type(self).__name__} must define combined()")

    def pull(self, own_logits_BC: Tensor, vectors_BK: Tensor, teacher_BK: Tensor, is_known_B: Tensor) -> Tensor:
        """Return the distance of a minibatch from the teachers of its classes, and 0 for samples without one."""
        raise NotImplementedError(f"{type(self).__name__} must define pull()")

    @property
    def weight(self) -> float:
        """Weight of `pull` in the loss."""
        raise NotImplementedError(f"{type(self).__name__} must define weight")

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the mean vector of each class and the number of its samples, float32 (C, K + 1) in host memory."""
        return host_memory.to_host(class_means.means(participant.kept[SUMS]))

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps on private minibatches, and on seed labels too if `method.local_labels` says so."""
        participant.begin(now.index, phase=0)
        array = self.array(participant, len(now.seed), now.seed_set.classes)
        if array is not None:
            participant.kept[SUMS] = torch.zeros(array.rows, array.columns, device=participant.device)
        self.labelled_steps(participant, now, self.config.local_steps + self.config.mutual_steps)

    def private_loss_of(self, participant: Participant, own_logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the loss on a private minibatch, with the pull towards the teachers; add up the vectors by class."""
        loss = super().private_loss_of(participant, own_logits_BC, labels_B)
        kept, vectors_BK = participant.kept, self.vectors(participant, own_logits_BC)
        if vectors_BK is None or SUMS not in kept:
            return loss
        kept[SUMS] += class_means.sums(vectors_BK, labels_B, own_logits_BC.shape[-1])
        if TEACHER not in kept:
            return loss
        teacher_BK = kept[TEACHER][labels_B]
        is_known_B = (teacher_BK[:, -1] > 0).to(teacher_BK.dtype)
        distance = self.pull(own_logits_BC, vectors_BK, teacher_BK[:, :-1], is_known_B)
        participant.note("loss_distillation", distance)
        return loss + self.weight * distance

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Keep the teachers of the classes for the next round."""
        own_CK = class_means.means(participant.kept.pop(SUMS))
        teacher_CK = self.combined(own_CK, theirs.to(participant.device))
        if teacher_CK is None:
            participant.kept.pop(TEACHER, None)
        else:
            participant.kept[TEACHER] = teacher_CK
