"""Train participants with the same architecture as one batch: fewer and larger calls.

Shape letters: G members, B minibatch, N neighbours, S seed rows of the round, C classes, W weights of a model.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedh2l_mpi.config import Config
from fedh2l_mpi.data.labelled import JoinedSamples
from fedh2l_mpi.models import batched_linear, optimizers, stacked, weight_average
from fedh2l_mpi.models.step_numbers import StepNumbers
from fedh2l_mpi.participant import Participant, TrainingUnit
from fedh2l_mpi.runtime import repetition
from fedh2l_mpi.runtime.step_graphs import StepSource, UnitGraphs
from fedh2l_mpi.runtime.step_notes import StepNotes

log = logging.getLogger("fedh2l_mpi")

# More members gain nothing on a CPU, because their gradients would leave the cache.
MEMBERS = 16


class BatchedParticipants:
    """Several participants that take their training steps together.

    It is no participant: it has no number, and it can neither publish nor be evaluated. It offers what a training phase
    asks for (`TrainingUnit`). A number of a participant is a vector of G numbers here.

    Members remain whole participants: their parameters, buffers and the state of their optimisers become rows of the
    batch's tensors, so that publishing, evaluation and checkpoints see every step. On a CPU, weights and losses of
    chains of linear layers are, bit for bit, those of members that step alone.

    Parameters
    ----------
    members : sequence of Participant
        Participants with private minibatches of one size, and with one architecture that `batched_linear.chain` or
        `stacked.refusal` accepts.
    """

    def __init__(self, members: Sequence[Participant]) -> None:
        first = members[0]
        self.members = list(members)
        self.device, self.label_smoothing = first.device, first.label_smoothing
        matrix_GW = batched_linear.join_columns([torch.stack([member.parameters.vector for member in members])])
        for member, row in zip(members, matrix_GW, strict=True):
            member.parameters.move_to(row)
        self.model: batched_linear.BatchedModel | stacked.StackedModel
        if batched_linear.chain(first.model) is not None:
            self.model = batched_linear.BatchedModel(first.model, matrix_GW)
        else:
            self.model = stacked.StackedModel([member.model for member in members], first.parameters, matrix_GW)
        self.optimizer = optimizers.joined([member.optimizer for member in members], matrix_GW)
        averages = [member.average for member in members if member.average is not None]
        self.average = weight_average.JoinedAverage(averages, matrix_GW) if averages else None
        self._private, self._augment = JoinedSamples([member.private for member in members]), first.augment
        self._log_prior: Tensor | None = None
        self.graphs: UnitGraphs | None = None

    def begin(self, round_index: int, phase: int) -> None:
        """Do nothing, because no layer of these models draws random numbers, and they are always in train mode."""

    def private_minibatch(self) -> tuple[Tensor, Tensor]:
        """Return each member's next private minibatch: inputs (G, B, X) and labels (G, B)."""
        drawn = zip(*[member.prepared.next() for member in self.members], strict=True)
        rows_GB, *draws = map(torch.stack, drawn)
        inputs, labels_GB = self._private.minibatches(rows_GB)
        if self._augment is not None:
            inputs = self._augment.apply(inputs, [values.flatten(0, 1) for values in draws])
        return inputs.unflatten(0, rows_GB.shape), labels_GB

    def log_prior(self, classes: int) -> Tensor:
        """Return the logarithm of the prior of each member's private labels, float32 (G, 1, C)."""
        if self._log_prior is None:
            self._log_prior = torch.stack([member.log_prior(classes) for member in self.members]).unsqueeze(1)
        return self._log_prior

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters of each member, (G, W)."""
        return self.model.gradient(loss, again)

    def step(self, gradient: Tensor) -> None:
        """Update every member once."""
        self.optimizer.steps = self.members[0].optimizer.steps
        self.optimizer.step(gradient)
        for member in self.members:
            member.optimizer.steps = self.optimizer.steps
        if self.average is not None:
            self.average.after_step(self.optimizer.steps)

    def seed_minibatches(self, samples: int, round_index: int, steps: int, after: int = 0) -> Tensor:
        """Return rows of the round's seed samples for each of the steps, int64 (steps, G, B)."""
        each = [member.seed_minibatches(samples, round_index, steps, after) for member in self.members]
        return torch.stack(each, dim=1)

    def repeat(self, steps: int | Tensor, step: Callable[..., None], *reads: Any) -> None:
        """Take steps of one kind, as a participant does; `step` gets rows (G, B)."""
        repetition.take(self, steps, step, reads)

    @property
    def sources(self) -> list[StepSource]:
        """The sources from which its steps take minibatches and numbers."""
        numbers = StepNumbers(self.optimizer, self.average, [member.optimizer for member in self.members])
        return [*(member.prepared for member in self.members), numbers]

    @property
    def noting(self) -> list[StepNotes]:
        """The notes of each member."""
        return [member.step_notes for member in self.members]

    @property
    def parts(self) -> list[Tensor]:
        """The weights of all members."""
        return self.model.weights

    def note(self, name: str, value: Tensor) -> None:
        """Record a number (G,) of this step with the members."""
        for member, own in zip(self.members, value.detach().unbind(), strict=True):
            member.note(name, own)

    def received(self, theirs: Mapping[int, Tensor]) -> Tensor | None:
        """Return the arrays of the members' neighbours, (N, G, S, C); None if the members' numbers of them differ."""
        arrays = [theirs[member.index] for member in self.members]
        return torch.stack(arrays, dim=1) if len({len(array) for array in arrays}) == 1 else None


def may_batch(config: Config, takes_batches: bool, on_host: bool = True) -> bool:
    """Return whether a run steps like participants together, by its config and its method's `takes_batches`.

    On a CPU, models in bfloat16 step alone, because they do more than their layers say. Participants that may be absent
    step alone, because a batch takes its steps with all its members.
    """
    if config.faults.participation.kind != "always":
        return False
    exact = config.optimizer.precision != "bfloat16"
    return takes_batches and config.devices.batching == "like" and (exact or not on_host)


def training_units(participants: Sequence[Participant], stacks: bool | None = None) -> list[TrainingUnit]:
    """Return the participants in their order, with like ones joined into batches and the others as they are.

    Like ones have one architecture, and so the same settings of the optimiser (`optimizer.per_model`).

    Parameters
    ----------
    stacks : bool or None
        False: only chains of linear layers are joined, because their numbers do not change. True: all models that
        `stacked.refusal` accepts, whose last digits do. None: True unless the device is a CPU, which is slower so.
    """
    if stacks is None:
        stacks = participants[0].device.type != "cpu"
    units: list[TrainingUnit] = []
    waiting: dict[tuple[str, int, bool], list[Participant]] = {}
    for participant in participants:
        is_chain = batched_linear.chain(participant.model) is not None
        if not (is_chain or stacks):
            units.append(participant)
        else:
            key = (participant.architecture, participant.minibatches.size, is_chain)
            waiting.setdefault(key, []).append(participant)
    refused: dict[str, str] = {}
    for (_, _, is_chain), like in waiting.items():
        size = MEMBERS if is_chain or _stacks(like, refused) else 1
        for first in range(0, len(like), size):
            members = like[first : first + size]
            units.append(BatchedParticipants(members) if len(members) > 1 else members[0])
    for architecture, reason in refused.items():
        log.info("devices.batching: participants with %s step one by one, because %s", architecture, reason)
    return sorted(units, key=lambda unit: unit.members[0].index)


def _stacks(like: Sequence[Participant], refused: dict[str, str]) -> bool:
    """Return whether participants of one architecture can step together, and add the reason to `refused` if not."""
    if len(like) == 1:
        return False
    some = slice(min(stacked.TRIAL_SAMPLES, like[0].minibatches.size))
    reason = stacked.refusal([one.model for one in like], [one.private.inputs(some) for one in like])
    if reason:
        refused[like[0].architecture] = reason
    return not reason
