"""Base class of methods that exchange parameters. Shape letter: B minibatch."""

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
    # Local steps need the weights with which the local phase begins.
    needs_start = False
    all_steps_in = "local"

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("parameters", 1, participant.shared_state.size)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return parameters and running statistics, float32 (1, size) in host memory."""
        return host_memory.to_host(participant.shared_state.read().float())[None]

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps on private minibatches, and on seed labels too if `method.local_labels` says so."""
        participant.begin(now.index, phase=0)
        start = participant.optimizer.parameters.clone() if self.needs_start else None
        steps = self.config.local_steps + self.config.mutual_steps

        def step(start: Tensor | None) -> None:
            self.local_step(participant, self.private_loss(participant), start)

        def step_with_labels(rows_B: Tensor, now: Round, start: Tensor | None) -> None:
            # Both minibatches share a pass, because there are no rules for two gradients here.
            loss = self.joint_loss(participant, now, rows_B, self.label_terms(participant, now, rows_B))
            self.local_step(participant, loss, start)

        if self.uses_local_labels:
            rows_MB = participant.seed_minibatches(len(now.seed), now.index, steps)
            participant.repeat(rows_MB, step_with_labels, now, start)
        else:
            participant.repeat(steps, step, start)

    def local_step(self, participant: Participant, loss: Tensor, start: Tensor | None) -> None:
        """Take one of the E + M steps; `start` are the weights at their beginning, if `needs_start`."""
        participant.step(participant.gradient(loss))
