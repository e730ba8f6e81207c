"""Like participants of a rank that step together: fewer, larger products.

Shape letters: G members, B minibatch, N neighbours, S seed samples of the round, C classes, W weights of a model.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config import Config
from fedh2l_mpi.models import batched_linear, optimizers
from fedh2l_mpi.participant import Participant

# More members gain nothing, and their gradients would leave the cache.
MEMBERS = 16


class BatchedParticipants(Participant):
    """Stands in for its members in the training phases: what is one number for a participant has an axis G here.

    Members remain whole participants: their parameters and the state of their optimisers become rows of the cohort's
    matrices, so that whatever else is done with them (publishing, evaluation, checkpoints) sees every step. Weights
    and losses are, bit for bit, those of members that step alone.

    Parameters
    ----------
    members : sequence of Participant
        With one architecture that `batched_linear.chain` accepts, and private minibatches of one size.
    """

    def __init__(self, members: Sequence[Participant]) -> None:
        first = members[0]
        self._members = list(members)
        # No number of its own: a method that asks for one must learn that it has several participants before it.
        self.architecture, self.device = first.architecture, first.device
        matrix_GW = batched_linear.join_columns([torch.stack([member.parameters.vector for member in members])])
        for member, row in zip(members, matrix_GW, strict=True):
            member.parameters.move_to(row)
        self._stacked = batched_linear.BatchedModel(first.model, matrix_GW)
        self.model = self._stacked
        self.optimizer = optimizers.joined([member.optimizer for member in members], matrix_GW)

    @property
    def members(self) -> list[Participant]:
        """Who steps together, in the order of the matrices' rows."""
        return self._members

    def begin(self, round_index: int, phase: int) -> None:
        """Nothing to do: no layer of these models draws random numbers or has a mode."""

    def private_loss(self) -> Tensor:
        """Cross-entropy of each member on its next private minibatch, (G,), in nats."""
        minibatches = [member.private_minibatch() for member in self.members]
        images, labels = (torch.stack(parts) for parts in zip(*minibatches, strict=True))
        losses_G = losses.cross_entropy(self.model(images), labels)
        self.note("loss_private", losses_G)
        return losses_G

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """d loss / d parameters of each member, (G, W)."""
        return self._stacked.gradient(loss, again)

    def step(self, gradient: Tensor) -> None:
        """One update of every member."""
        self.optimizer.steps = self.members[0].optimizer.steps
        self.optimizer.step(gradient)
        for member in self.members:
            member.optimizer.steps = self.optimizer.steps

    def seed_minibatches(self, samples: int, round_index: int, steps: int) -> Iterator[Tensor]:
        """Rows of the round's seed samples for each mutual step, int64 (G, B)."""
        each = [member.seed_minibatches(samples, round_index, steps) for member in self.members]
        return (torch.stack(rows) for rows in zip(*each, strict=True))

    def note(self, name: str, value: Tensor) -> None:
        """Remember a number (G,) of this step with the members."""
        for member, own in zip(self.members, value.detach().unbind(), strict=True):
            member.note(name, own)

    def taught(self, theirs: Mapping[int, Tensor]) -> Tensor | None:
        """What the members' neighbours have published, float32 (N, G, S, C); None where their numbers differ."""
        arrays = [theirs[member.index] for member in self.members]
        return torch.stack(arrays, dim=1) if len({len(array) for array in arrays}) == 1 else None


def may_batch(config: Config, takes_batches: bool) -> bool:
    """Whether like participants step together in a run, by its config and its method's `takes_batches`.

    Models in bfloat16 step alone: they do more than their layers say.
    """
    return takes_batches and config.devices.batching == "like" and config.optimizer.precision == "float32"


def training_units(participants: Sequence[Participant]) -> list[Participant]:
    """The participants, in their order, with like ones next to each other as cohorts; others as they are."""
    learners: list[Participant] = []
    waiting: dict[tuple[str, int], list[Participant]] = {}
    for participant in participants:
        if batched_linear.chain(participant.model) is None:
            learners.append(participant)
        else:
            waiting.setdefault((participant.architecture, participant.minibatches.size), []).append(participant)
    for like in waiting.values():
        for first in range(0, len(like), MEMBERS):
            members = like[first : first + MEMBERS]
            learners.append(BatchedParticipants(members) if len(members) > 1 else members[0])
    return sorted(learners, key=lambda learner: learner.members[0].index)
