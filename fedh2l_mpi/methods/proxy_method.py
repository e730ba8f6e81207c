"""Base class of methods whose participants exchange the parameters of a second model, the proxy.

Shape letters: B minibatch, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import ProxyOptions
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods import second_model
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.methods.second_model import SecondModel
from fedh2l_mpi.participant import Participant


class ProxyMethod(Method):
    """Base class of methods whose participants train their own model and a proxy on each other's posteriors.

    A step updates both models on one private minibatch, so each of the two makes E + M steps a round, and a round costs
    what both models cost. The own loss is (1 - alpha) CE + alpha KL(proxy || own), and the proxy's the other way round.
    If there are seed labels, CE is the sum over both minibatches, and KL the mean. All cross-entropies leave out the
    prior of their labels by `method.prior_correction`. The proxy's optimiser has the settings of the own model's.

    Only the proxy's parameters and running statistics leave a participant. Only the own model is evaluated, and has an
    average of weights. Proxies begin with common weights.
    """

    config: ProxyOptions
    all_steps_in = "local"
    takes_theirs_one_by_one = True

    def __init__(self, config: ProxyOptions, labelled: bool) -> None:
        super().__init__(config, labelled)
        second_model.check_architecture(config.proxy_model)
        # The module is the same for all participants of a rank; what is a participant's is in `participant.kept`.
        self._second: SecondModel | None = None

    @property
    def publishes_first(self) -> bool:
        return False

    @property
    def second_model(self) -> str | None:
        return self.config.proxy_model

    @contextmanager
    def proxy(self, participant: Participant) -> Iterator[SecondModel]:
        """Return a context in which the second model is a participant's proxy; only after a first local phase."""
        if self._second is None:
            raise RuntimeError("there is no proxy before the first local phase")
        with self._second.of(participant) as proxy:
            yield proxy

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("proxy", 1, second_model.size(self.config.proxy_model, participant, classes))

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the proxy's parameters and running statistics, float32 (1, size) in host memory."""
        with self.proxy(participant) as proxy:
            return host_memory.to_host(proxy.shared_state.read().float())[None]

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps of both models on private minibatches, and on seed labels by `method.local_labels`."""
        if self._second is None:
            self._second = second_model.initial(self.config.proxy_model, participant, now)
        participant.begin(now.index, phase=0)
        steps = self.config.local_steps + self.config.mutual_steps
        with self._second.trained_by(participant) as proxy:
            proxy.model.train()
            if self.uses_local_labels:
                rows_MB = participant.seed_minibatches(len(now.seed), now.index, steps)
                participant.repeat(rows_MB, lambda rows_B, now: self._step(participant, proxy, now, rows_B), now)
            else:
                participant.repeat(steps, lambda: self._step(participant, proxy))

    def _step(
        self, participant: Participant, proxy: SecondModel, now: Round | None = None, rows_B: Tensor | None = None
    ) -> None:
        """Update both models on one private minibatch, and on one of the round's seed samples if there are rows."""
        alpha, (inputs, labels_B) = self.config.proxy_share, participant.private_minibatch()
        if now is not None and rows_B is not None:
            inputs = torch.cat([inputs, now.seed.inputs[rows_B]])
        own_logits_BC, proxy_logits_BC = participant.model(inputs), proxy.model(inputs)
        distillation, mimicry = towards(own_logits_BC, proxy_logits_BC), towards(proxy_logits_BC, own_logits_BC)
        participant.note("loss_distillation", distillation)
        private = len(labels_B)
        label_loss = self.private_loss_of(participant, own_logits_BC[:private], labels_B)
        proxy_label_loss = self.label_loss(participant, proxy_logits_BC[:private], labels_B)
        if now is not None and rows_B is not None:
            label_loss = label_loss + self.seed_loss(participant, now, own_logits_BC[private:], rows_B)
            targets, smoothing = now.seed.targets[rows_B], participant.label_smoothing
            scores_BC = self.under_seed_prior(now, proxy_logits_BC[private:])
            proxy_label_loss = proxy_label_loss + losses.cross_entropy(scores_BC, targets, smoothing=smoothing)
        participant.step(participant.gradient((1 - alpha) * label_loss + alpha * distillation))
        proxy.step((1 - alpha) * proxy_label_loss + alpha * mimicry)


def towards(own_logits_BC: Tensor, others_logits_BC: Tensor) -> Tensor:
    """Return the mean of KL(other || own) over a minibatch, in nats; gradients flow into the own logits alone."""
    return losses.mutual_distillation(own_logits_BC, losses.posteriors(others_logits_BC)[None])
