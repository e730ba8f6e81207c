"""Base class of methods that digest one teacher, made of the own and the neighbours' answers on the seed samples.

Shape letters: B minibatch, N answers, S seed rows of the round, C classes.
"""

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import PublishOptions
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant

# Key under which a participant keeps its own answers until the mutual phase.
OWN = "own_answers"


class ConsensusMethod(Method):
    """Base class of methods that take E steps on private data, then M steps on KL(teacher || own) on seed samples.

    Seed labels are used in the E steps if `method.local_labels` says so, and never in the others. A subclass makes the
    teacher (`teacher`).
    """

    config: PublishOptions
    trains_on_seed_set = True
    keeps_published = True
    drops_published = True

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("posteriors", samples, classes, sums_to_one=True)

    @property
    def phase_memory(self) -> PhaseMemory:
        """The neighbours' answers, joined with the own ones."""
        return PhaseMemory(choosing=1.0)

    def answers(self, participant: Participant, now: Round) -> Tensor:
        """Return what is published, on the device, float32 (S, C): the posteriors on the round's seed samples."""
        return losses.posteriors(participant.logits(now.seed.inputs)).float()

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the answers, float32 (S, C) in host memory, and keep them until the mutual phase."""
        participant.kept[OWN] = self.answers(participant, now)
        return host_memory.to_host(participant.kept[OWN])

    def teacher(self, participant: Participant, now: Round, answers_NSC: Tensor) -> Tensor:
        """Return the posteriors that a participant approaches, (S, C), each row summing to 1.

        Parameters
        ----------
        answers_NSC : float32 tensor (N, S, C)
            The own answers, then those of the neighbours in participant order.
        """
        raise NotImplementedError(f"{type(self).__name__} must define teacher()")

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps on KL(teacher || own)."""
        participant.begin(now.index, phase=1)
        answers_NSC = torch.cat([participant.kept.pop(OWN)[None], theirs.to(participant.device)])
        teacher_1SC = self.teacher(participant, now, answers_NSC)[None]

        def step(rows_B: Tensor, now: Round, teacher_1SC: Tensor) -> None:
            own_logits_BC = participant.model(now.seed.inputs[rows_B])
            distillation = losses.mutual_distillation(own_logits_BC, teacher_1SC[:, rows_B])
            participant.note("loss_distillation", distillation)
            participant.step(participant.gradient(distillation))

        participant.repeat(self.mutual_minibatches(participant, now), step, now, teacher_1SC)
