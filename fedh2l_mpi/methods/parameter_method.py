"""Base class of methods that exchange parameters. Shape letter: B minibatch."""

from collections.abc import Iterator

from torch import Tensor

from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class ParameterMethod(Method):
    """Base class of methods whose participants average parameters instead of learning from the seed set.

    BatchNorm's running statistics are averaged like parameters if the averaged parameters are the current ones. The
    optimiser's moments stay local.
    """

    shares_parameters = True
    all_steps_in = "local"

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("parameters", 1, participant.shared_state.size)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return parameters and running statistics, float32 (1, size) in host memory."""
        return host_memory.to_host(participant.shared_state.read().float())[None]

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps on private minibatches, and on seed labels too if `method.local_labels` says so."""
        participant.begin(now.index, phase=0)
        for loss in self.local_losses(participant, now):
            participant.step(participant.gradient(loss))

    def local_losses(self, participant: Participant, now: Round) -> Iterator[Tensor]:
        """Yield the loss of each of the E + M steps, in nats. The caller takes a step before it asks for the next one.

        A seed minibatch shares the pass of the private one, because there are no rules for two gradients here.
        """
        steps = self.config.local_steps + self.config.mutual_steps
        if not self.uses_local_labels:
            for _ in range(steps):
                yield self.private_loss(participant)
            return
        for rows_B in participant.seed_minibatches(len(now.seed), now.index, steps):
            yield self.joint_loss(participant, now, rows_B, self.label_terms(participant, now, rows_B))
