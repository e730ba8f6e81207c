"""FedH2L as its abstract describes it: mutual distillation on a shared seed set, gradients combined.

Shape letters: B minibatch, S seed samples of the round, C classes, N neighbours.
"""

from torch import Tensor

from fedh2l_mpi import objectives
from fedh2l_mpi.config import MethodConfig
from fedh2l_mpi.data.seed_set import SeedRound
from fedh2l_mpi.gradients import COMBINERS, InnerProducts
from fedh2l_mpi.participant import Participant


class FedH2L:
    """Publish posteriors, learn from private data, then from private data and the neighbours' posteriors together.

    Source: Li, Zhou, Wang, Mi and Hospedales, "FedH2L: Federated learning with model and statistical heterogeneity",
    arXiv 2101.11296. Schedule and weights are this project's definition.
    """

    def __init__(self, config: MethodConfig, labelled: bool) -> None:
        self._config, self._labelled = config, labelled
        self._combine = COMBINERS[config.combine]

    def publish(self, participant: Participant, seed: SeedRound) -> Tensor:
        """Posteriors on the round's seed samples, float32 (S, C) in host memory: all that ever leaves a participant."""
        logits_SC = participant.logits(seed.images)
        return objectives.posteriors(logits_SC, self._config.temperature).float().cpu().contiguous()

    def local_phase(self, participant: Participant, round_index: int) -> None:
        """E steps on private minibatches."""
        participant.begin(round_index, phase=0)
        for _ in range(self._config.local_steps):
            participant.step(participant.gradient(participant.private_loss()))

    def mutual_phase(self, participant: Participant, seed: SeedRound, theirs_NSC: Tensor) -> None:
        """M steps, each along a combination of the private and the seed gradient at the same weights."""
        participant.begin(seed.round, phase=1)
        theirs_NSC = theirs_NSC.to(participant.device)
        for rows_B in participant.seed_minibatches(len(seed), seed.round, self._config.mutual_steps):
            g_private = participant.gradient(participant.private_loss())
            g_seed = participant.gradient(self._seed_loss(participant, seed, rows_B, theirs_NSC[:, rows_B]))
            products = InnerProducts.of(g_private, g_seed)
            participant.note("gradient_cosine", products.cosine)
            participant.note("conflict_rate", products.conflict)
            a, b = self._combine(products)
            participant.step(g_private.mul_(a).add_(g_seed.mul_(b)))

    def _seed_loss(self, participant: Participant, seed: SeedRound, rows_B: Tensor, theirs_NBC: Tensor) -> Tensor:
        """w_ce CE(seed minibatch) + w_kd T^2 mean over neighbours of KL(theirs || own), in nats."""
        temperature = self._config.temperature
        own_logits_BC = participant.model(seed.images[rows_B])
        distillation = objectives.mutual_distillation(own_logits_BC, theirs_NBC, temperature)
        participant.note("loss_distillation", distillation)
        loss = self._config.weight_kd * temperature**2 * distillation
        if self._labelled:
            supervised = objectives.cross_entropy(own_logits_BC, seed.labels[rows_B])
            participant.note("loss_seed", supervised)
            loss = loss + self._config.weight_ce * supervised
        return loss
