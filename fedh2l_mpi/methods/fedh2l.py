"""FedH2L as its abstract describes it: mutual distillation on a shared seed set, with combined gradients.

Shape letters: B minibatch, S seed rows of the round, C classes, N neighbours.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedh2l_mpi.config.method import FedH2LOptions
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import teachers
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.posterior_method import PosteriorMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.methods.teachers import Teachers
from fedh2l_mpi.participant import Participant

# Key under which a participant keeps its own posteriors until the mutual phase.
OWN = "own_posteriors"


class FedH2L(PosteriorMethod):
    """Participants publish posteriors, learn from private data, then from private data and neighbours' posteriors.

    Source: Li, Zhou, Wang, Mi and Hospedales, "FedH2L: Federated learning with model and statistical heterogeneity",
    arXiv 2101.11296. Its abstract leaves schedule and weights open; they are defined here.
    """

    config: FedH2LOptions
    trains_on_seed_set = True
    constrains_each_neighbour = True
    takes_batches = True
    records_steps = True

    def __init__(self, config: FedH2LOptions, labelled: bool) -> None:
        super().__init__(config, labelled)
        # Some teachers and constraints for each neighbour are computed for one participant at a time.
        alone = config.combine == "gem_neighbours" or config.teachers not in teachers.BATCHED
        self.takes_batches = self.takes_batches and not alone
        self.keeps_published = self.drops_published = config.teachers in teachers.COMPARED
        if not labelled:
            if config.teachers in teachers.LABELLED:
                raise UserError(
                    f"method.teachers: got {config.teachers!r}, but seed_set.labelled is false. Fix: set it to true, "
                    "or choose other teachers."
                )
            if config.warmup_rounds:
                raise UserError(
                    "method.warmup_rounds: needs seed labels, but seed_set.labelled is false. Fix: set it to true, or "
                    "method.warmup_rounds to 0."
                )

    def exchanges_in(self, round_index: int) -> bool:
        return round_index >= self.config.warmup_rounds

    @property
    def phase_memory(self) -> PhaseMemory:
        """Gradients by the rule `combine`, and what the choice of teachers makes of the neighbours' posteriors."""
        return replace(super().phase_memory, choosing=teachers.CHOOSING.get(self.config.teachers, 0.0))

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the posteriors, and keep them until the mutual phase if the choice of teachers needs them."""
        posteriors_SC = super().publish(participant, now)
        if self.keeps_published:
            participant.kept[OWN] = posteriors_SC.to(participant.device)
        return posteriors_SC

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps, each along a combination of the private and the seed gradient at the same weights."""
        participant.begin(now.index, phase=1)
        own = [member.kept.pop(OWN) for member in participant.members if OWN in member.kept]
        theirs_NSC = theirs.to(participant.device)
        own_SC = torch.stack(own).view(theirs_NSC.shape[1:]) if own and len(theirs_NSC) else None
        taught = teachers.choose(self.config.teachers, theirs_NSC, now.seed.labels, own_SC)

        def step(rows_B: Tensor, now: Round, taught: Teachers, weight_kd: float) -> None:
            terms = self._seed_terms(participant, now, rows_B, taught.on(rows_B), weight_kd)
            self.paired_step(participant, now, rows_B, terms)

        rows_MB = self.mutual_minibatches(participant, now)
        participant.repeat(rows_MB, step, now, taught, self.weight_kd(now.index))

    def weight_kd(self, round_index: int) -> float:
        """Return w_kd of a round: 0 in the warm-up, then a linear rise to its value over the ramp."""
        since = round_index - self.config.warmup_rounds
        if since < 0:
            return 0.0
        return self.config.weight_kd * min(1.0, (since + 1) / (self.config.ramp_rounds + 1))

    def _seed_terms(
        self, participant: Participant, now: Round, rows_B: Tensor, taught: Teachers, weight_kd: float
    ) -> Callable[[Tensor], list[Tensor]]:
        """Return the function from logits to the terms of w_ce CE + w_kd T^2 mean over teachers of KL(teacher || own).

        The mean is one term. If each neighbour has a constraint, its part of the mean is a separate term. Under
        `method.backoff`, the cross-entropy has the weight w_ce + w_kd where no teacher counts.

        Source: Meng et al., "Conditional teacher-student learning", 2019, for back-off to the label.
        """
        parts = taught.apart() if self.config.combine == "gem_neighbours" else [taught]

        def terms(own_logits_BC: Tensor) -> list[Tensor]:
            supervised = []
            if self.labelled:
                untaught_B = taught.untaught if self.config.backoff else None
                extra_B = None if untaught_B is None else weight_kd * untaught_B
                supervised.append(self.seed_loss(participant, now, own_logits_BC, rows_B, extra_B))
            distillations = [
                self.distillation(now, own_logits_BC, part.posteriors, self.config.divergence, part.weights)
                for part in parts
            ]
            participant.note("loss_distillation", torch.stack(distillations).sum(dim=0))
            return supervised + [weight_kd * self.temperature**2 * distillation for distillation in distillations]

        return terms
