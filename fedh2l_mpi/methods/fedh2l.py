"""FedH2L as its abstract describes it: mutual distillation on a shared seed set, with combined gradients.

Shape letters: B minibatch, S seed rows of the round, C classes, N neighbours.
"""

import torch
from torch import Tensor

from fedh2l_mpi import losses as objectives
from fedh2l_mpi.config.method import FedH2LOptions
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import teachers
from fedh2l_mpi.methods.base import PosteriorMethod, Round
from fedh2l_mpi.methods.teachers import Teachers
from fedh2l_mpi.participant import Participant


class FedH2L(PosteriorMethod):
    """Participants publish posteriors, learn from private data, then from private data and neighbours' posteriors.

    Source: Li, Zhou, Wang, Mi and Hospedales, "FedH2L: Federated learning with model and statistical heterogeneity",
    arXiv 2101.11296. Its abstract leaves schedule and weights open; they are defined here.
    """

    config: FedH2LOptions
    trains_on_seed_set = True
    constrains_each_neighbour = True
    takes_batches = True

    def __init__(self, config: FedH2LOptions, labelled: bool) -> None:
        super().__init__(config, labelled)
        # Weights of teachers and constraints for each neighbour are computed for one participant at a time.
        alone = config.combine == "gem_neighbours" or config.teachers not in ("each", "mean")
        self.takes_batches = self.takes_batches and not alone
        if not labelled:
            if config.teachers == "seed_accuracy":
                raise UserError(
                    "method.teachers: got 'seed_accuracy', but seed_set.labelled is false. Fix: set it to true, "
                    "or choose other teachers."
                )
            if config.warmup_rounds:
                raise UserError(
                    "method.warmup_rounds: needs seed labels, but seed_set.labelled is false. Fix: set it to true, or "
                    "method.warmup_rounds to 0."
                )

    def exchanges_in(self, round_index: int) -> bool:
        return round_index >= self.config.warmup_rounds

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps, each along a combination of the private and the seed gradient at the same weights."""
        participant.begin(now.index, phase=1)
        theirs_NSC = theirs.to(participant.device)
        taught = teachers.choose(self.config.teachers, theirs_NSC, now.seed.labels)
        weight_kd = self.weight_kd(now.index)
        for rows_B in participant.seed_minibatches(len(now.seed), now.index, self.config.mutual_steps):
            g_private = participant.gradient(participant.private_loss())
            losses = self._seed_losses(participant, now, rows_B, taught, weight_kd)
            if self.config.combine == "gem_neighbours":
                self.step_within_cone(participant, g_private, [participant.gradient(loss, True) for loss in losses])
            else:
                self.combined_step(participant, g_private, participant.gradient(torch.stack(losses).sum(dim=0)))

    def weight_kd(self, round_index: int) -> float:
        """Return w_kd of a round: 0 in the warm-up, then a linear rise to its value over the ramp."""
        since = round_index - self.config.warmup_rounds
        if since < 0:
            return 0.0
        return self.config.weight_kd * min(1.0, (since + 1) / (self.config.ramp_rounds + 1))

    def _seed_losses(
        self, participant: Participant, now: Round, rows_B: Tensor, taught: Teachers, weight_kd: float
    ) -> list[Tensor]:
        """Return the terms of w_ce CE + w_kd T^2 mean over teachers of KL(teacher || own), in nats.

        The mean is one term. If each neighbour has a constraint, its part of the mean is a separate term.
        """
        own_logits_BC = participant.model(now.seed.images[rows_B])
        losses = []
        if self.labelled:
            supervised = objectives.cross_entropy(own_logits_BC, now.seed.targets[rows_B])
            participant.note("loss_seed", supervised)
            losses.append(self.config.weight_ce * supervised)
        minibatch = taught.on(rows_B)
        parts = minibatch.apart() if self.config.combine == "gem_neighbours" else [minibatch]
        distillations = [self._distillation(own_logits_BC, part) for part in parts]
        participant.note("loss_distillation", torch.stack(distillations).sum(dim=0))
        return losses + [weight_kd * self.temperature**2 * distillation for distillation in distillations]

    def _distillation(self, own_logits_BC: Tensor, taught: Teachers) -> Tensor:
        return objectives.mutual_distillation(
            own_logits_BC, taught.posteriors, self.temperature, self.config.divergence, taught.weights
        )
