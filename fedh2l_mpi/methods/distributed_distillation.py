"""Distributed distillation on an unlabelled common set.

Shape letters: B minibatch, S seed rows of the round, C classes, N neighbours.
"""

from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.posterior_method import PosteriorMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.methods.teachers import Teachers
from fedh2l_mpi.participant import Participant


class DistributedDistillation(PosteriorMethod):
    """Participants take E steps on private data, then M steps on private data and the neighbours' posteriors.

    Seed labels are never used.

    Source: Bistritz, Mann and Bambos, "Distributed distillation for on-device learning", 2020. The paper averages soft
    decisions over the graph from step to step; here, the neighbours' posteriors are used unchanged.
    """

    trains_on_seed_set = True
    records_steps = True
    takes_batches = True

    @property
    def phase_memory(self) -> PhaseMemory:
        """Both gradients of a step."""
        return PhaseMemory(gradients=2)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps on CE(private) + w_kd T^2 mean over neighbours of KL(theirs || own); gradients are summed."""
        participant.begin(now.index, phase=1)
        scale = self.config.weight_kd * self.temperature**2

        def step(rows_B: Tensor, now: Round, theirs_NSC: Tensor, scale: float) -> None:
            g_private = participant.gradient(self.private_loss(participant))
            own_logits_BC = participant.model(now.seed.inputs[rows_B])
            theirs_NBC = Teachers(theirs_NSC).on(rows_B).posteriors
            distillation = losses.mutual_distillation(own_logits_BC, theirs_NBC, self.temperature)
            participant.note("loss_distillation", distillation)
            self.combined_step(participant, g_private, participant.gradient(scale * distillation))

        theirs_NSC = theirs.to(participant.device)
        participant.repeat(self.mutual_minibatches(participant, now), step, now, theirs_NSC, scale)
