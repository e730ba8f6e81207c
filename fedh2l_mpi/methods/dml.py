"""Deep mutual learning on the seed set.

Shape letters: B minibatch, S seed rows of the round, C classes, N neighbours.
"""

from torch import Tensor

from fedh2l_mpi.config.method import DmlOptions
from fedh2l_mpi.methods.posterior_method import PosteriorMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.methods.teachers import Teachers
from fedh2l_mpi.participant import Participant


class DeepMutualLearning(PosteriorMethod):
    """Participants take E steps on private data, then M steps on the seed set: its labels and all divergences.

    Source: Zhang, Xiang, Hospedales and Lu, "Deep mutual learning", 2018. Three things differ. The common data are the
    seed set. Posteriors are exchanged once per round instead of at every step. The sum over neighbours is not divided
    by their number; `weight_kd` = 1 / degree does that.
    """

    config: DmlOptions
    trains_on_seed_set = True
    records_steps = True
    takes_batches = True

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps on w_ce CE + w_kd T^2 sum over neighbours of KL(theirs || own)."""
        participant.begin(now.index, phase=1)
        theirs_NSC = theirs.to(participant.device)

        def step(rows_B: Tensor, now: Round, theirs_NSC: Tensor) -> None:
            own_logits_BC = participant.model(now.seed.inputs[rows_B])
            distillation = self.distillation(now, own_logits_BC, Teachers(theirs_NSC).on(rows_B).posteriors)
            participant.note("loss_distillation", distillation)
            loss = self.config.weight_kd * self.temperature**2 * len(theirs_NSC) * distillation
            if self.labelled:
                loss = loss + self.seed_loss(participant, now, own_logits_BC, rows_B)
            participant.step(participant.gradient(loss))

        participant.repeat(self.mutual_minibatches(participant, now), step, now, theirs_NSC)
