"""Base class of methods that exchange posteriors on the seed samples.

Shape letters: B minibatch, N neighbours, S seed rows of the round, C classes.
"""

from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import DistillationOptions
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class PosteriorMethod(Method):
    """Base class of methods whose participants publish only their posteriors on the round's seed samples."""

    config: DistillationOptions

    @property
    def temperature(self) -> float:
        """T of the published posteriors, and of the own posteriors that are compared with them."""
        return self.config.temperature

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("posteriors", samples, classes, sums_to_one=True)

    def distillation(
        self,
        now: Round,
        own_logits_BC: Tensor,
        theirs_NBC: Tensor,
        divergence: str = "forward_kl",
        weights_NB: Tensor | None = None,
    ) -> Tensor:
        """Return the mean divergence between neighbours and own on a seed minibatch, in nats, without weight and T^2.

        If `method.prior_correction` is balanced and the seed set is labelled, both sides are posteriors for the prior
        of the seed labels, which the seed samples have. Posteriors for even labels would hold down the classes that
        are rare among them, by the many samples of the others.
        """
        if self.corrects_priors and self.labelled:
            exponent = self.config.prior_strength / self.temperature
            theirs_NBC = losses.posteriors_under_prior(theirs_NBC, now.seed_set.log_prior, exponent)
            own_logits_BC = self.under_seed_prior(now, own_logits_BC)
        return losses.mutual_distillation(own_logits_BC, theirs_NBC, self.temperature, divergence, weights_NB)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return softmax(logits / T) in eval mode, float32 (S, C) in host memory; nothing else leaves a participant."""
        logits_SC = participant.logits(now.seed.inputs)
        return host_memory.to_host(losses.posteriors(logits_SC, self.temperature).float())
