"""One learner: its model, its optimiser and its private data, and the few things that every method does with them.

Shape letters: B minibatch, S seed samples, C classes, K channels (in images) or confidence bins, H, W pixels.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedh2l_mpi import losses
from fedh2l_mpi.config import EvaluationConfig, OptimizerConfig
from fedh2l_mpi.data.augmentation import Augmentation
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.errors import DivergedError
from fedh2l_mpi.models import mixed_precision, optimizers
from fedh2l_mpi.models.flat_parameters import FlatParameters, SharedState
from fedh2l_mpi.rng import Purpose, generator, torch_seed

REMEDY = "a smaller optimizer.lr may help"


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class TrainingUnit(Protocol):
    """One participant, or several that step together: all that a method's phases may ask of it.

    For several, tensors have one more axis, of G members, in front: losses (G,), gradients (G, W).
    """

    members: "list[Participant]"
    device: torch.device

    @property
    def model(self) -> nn.Module:
        """The model that takes the minibatches."""

    def begin(self, round_index: int, phase: int) -> None:
        """Enter a training phase."""

    def private_loss(self) -> Tensor:
        """Return the cross-entropy on the next private minibatch, in nats."""

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters, flat."""

    def step(self, gradient: Tensor) -> None:
        """Make one update."""

    def seed_minibatches(self, samples: int, round_index: int, steps: int) -> Iterator[Tensor]:
        """Yield rows of the round's seed samples for each mutual step, int64."""

    def note(self, name: str, value: Tensor) -> None:
        """Record a scalar of this step."""

    def received(self, theirs: Mapping[int, Tensor]) -> Tensor | None:
        """Return what the neighbours have published; None if the members have to learn from it one by one."""


class Minibatches:
    """An endless walk over samples in epochs: every epoch a new order, cut into whole minibatches.

    Minibatch k depends on (seed, participant, k) alone, so the position is the only state. What an epoch's last whole
    minibatch leaves over is dropped for that epoch; data smaller than a minibatch are one.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, participant: int) -> None:
        self._samples, self.size = samples, min(batch_size, samples)
        self._per_epoch = samples // self.size
        self._seed, self._participant = seed, participant
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        self.position = 0

    def next(self) -> Tensor:
        """Rows of the next minibatch, int64 (B,), in host memory."""
        epoch, within = divmod(self.position, self._per_epoch)
        if self._order[0] != epoch:
            draw = generator(self._seed, Purpose.PRIVATE_BATCHES, self._participant, epoch)
            self._order = (epoch, torch.from_numpy(draw.permutation(self._samples)))
        self.position += 1
        return self._order[1][within * self.size : (within + 1) * self.size]


class Participant:
    """A learner and what belongs to it alone.

    Parameters
    ----------
    index : int
        Its number, 0 to P - 1.
    architecture : str
        Name of the model's architecture, for the record.
    model : nn.Module
        On the CPU or on the device already; it is moved to `private`'s device and its trainable parameters become
        views of one vector.
    private, validation : Labelled
        Disjoint samples on the device.
    seed : int
        The run's seed.
    augment : callable or None
        Transforms the images of every private minibatch.

    Attributes
    ----------
    shared_state : SharedState
        What parameter-sharing methods exchange.
    kept : dict of str to Tensor
        What a method has to remember about this participant, from one phase or round to the next.
    """

    def __init__(
        self,
        index: int,
        architecture: str,
        model: nn.Module,
        private: Labelled,
        validation: Labelled,
        optimizer: OptimizerConfig,
        evaluation: EvaluationConfig,
        seed: int,
        augment: Augmentation | None = None,
    ) -> None:
        self.index, self.architecture = index, architecture
        # A unit of one: the loop treats it as it treats a batch of participants.
        self.members = [self]
        self.private, self.validation = private, validation
        self.device = private.images.device
        self.model = model.to(self.device)
        if optimizer.precision == "bfloat16":
            mixed_precision.mix(self.model)
        self.parameters = FlatParameters(self.model)
        self.shared_state = SharedState(self.model, self.parameters)
        self.kept: dict[str, Tensor] = {}
        self.optimizer = optimizers.build(self.parameters.vector, optimizer)
        self.minibatches = Minibatches(len(private), optimizer.batch_size, seed, index)
        self._seed, self._seed_batch_size, self._augment = seed, optimizer.seed_batch_size, augment
        self.forward_size = evaluation.batch_size
        self._noted: dict[str, list[Tensor]] = {}

    def state(self) -> dict[str, Any]:
        """A copy, in host memory, of all that the next round depends on: tensors, numbers and dicts of them.

        Random numbers need no place in it: they are drawn anew for every participant, round and phase.
        """
        return {
            "model": _copied(self.model.state_dict()),
            "optimizer": _copied(self.optimizer.state()),
            "optimizer_steps": self.optimizer.steps,
            "private_minibatches": self.minibatches.position,
            "kept": _copied(self.kept),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the participant whose `state` this was.

        Raises
        ------
        ValueError
            If it was one with another model or optimiser.
        """
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"participant {self.index}: {' '.join(str(error).split())}") from None
        ours, theirs = self.optimizer.state(), state["optimizer"]
        if {name: value.shape for name, value in ours.items()} != {name: v.shape for name, v in theirs.items()}:
            raise ValueError(f"participant {self.index}: the optimiser's state is {sorted(theirs)}, not {sorted(ours)}")
        for name, value in ours.items():
            value.copy_(theirs[name])
        self.optimizer.steps = state["optimizer_steps"]
        self.minibatches.position = state["private_minibatches"]
        self.kept = {name: value.to(self.device) for name, value in state["kept"].items()}

    @property
    def parameter_count(self) -> int:
        """Trainable and frozen parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def begin(self, round_index: int, phase: int) -> None:
        """Enter a training phase: train mode, and the random numbers of the forward passes (dropout) that belong to it.

        Modules like dropout can draw from torch's global generator only. Seeding it here keeps their numbers apart
        between participants and the same for every number of ranks.
        """
        seed = torch_seed(self._seed, Purpose.FORWARD_NOISE, self.index, round_index, phase)
        # Not torch.manual_seed: for every kind of device that is not there it keeps a note, with a stack trace.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed_all(seed)
        self.model.train()

    def private_minibatch(self) -> tuple[Tensor, Tensor]:
        """The next private minibatch: images (B, K, H, W) as the model sees them, and labels (B,)."""
        position = self.minibatches.position
        rows = self.minibatches.next().to(self.device)
        images = self.private.inputs(rows)
        if self._augment is not None:
            images = self._augment(images, generator(self._seed, Purpose.AUGMENTATION, self.index, position))
        return images, self.private.labels[rows]

    def private_loss(self) -> Tensor:
        """Cross-entropy on the next private minibatch, in nats; gradients flow into the model."""
        images, labels = self.private_minibatch()
        loss = losses.cross_entropy(self.model(images), labels)
        self.note("loss_private", loss)
        return loss

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """d loss / d parameters, flat; `again` if another gradient through the same forward pass will follow."""
        return self.parameters.gradient(loss, again)

    def step(self, gradient: Tensor) -> None:
        """One update by the participant's optimiser, which lives as long as the run."""
        self.optimizer.step(gradient)

    def received(self, theirs: Mapping[int, Tensor]) -> Tensor:
        """Return what this participant's neighbours have published, float32 (N, rows, columns)."""
        return theirs[self.index]

    def seed_minibatches(self, samples: int, round_index: int, steps: int) -> Iterator[Tensor]:
        """Rows of the round's seed samples for each mutual step, int64 (B,), drawn from (seed, participant, round)."""
        size = min(self._seed_batch_size, samples)
        draw = generator(self._seed, Purpose.SEED_BATCHES, self.index, round_index)
        epochs = math.ceil(steps / (samples // size)) if steps else 0
        orders = [draw.permutation(samples)[: samples // size * size] for _ in range(epochs)]
        rows = torch.from_numpy(np.concatenate(orders)) if orders else torch.empty(0, dtype=torch.int64)
        return iter(rows.to(self.device).split(size)[:steps])

    @torch.no_grad()
    def logits(self, images_NKHW: Tensor) -> Tensor:
        """Scores (N, C) on the device in eval mode: running statistics are used and not moved, nothing is dropped."""
        self.model.eval()
        return torch.cat([self.model(piece) for piece in images_NKHW.split(self.forward_size)])

    def note(self, name: str, value: Tensor) -> None:
        """Remember a scalar of this step; nothing leaves the device before `noted_means`."""
        self._noted.setdefault(name, []).append(value.detach())

    @property
    def notes(self) -> int:
        """How many scalars were noted since the last `noted_means`."""
        return sum(map(len, self._noted.values()))

    def noted_means(self) -> dict[str, float]:
        """Mean of each scalar noted since the last call, which it forgets; a name never noted is not there.

        Raises
        ------
        DivergedError
            If one is not finite: a diverged participant would teach nothing to the others.
        """
        means = {name: float(torch.stack(values).double().mean()) for name, values in self._noted.items()}
        self._noted = {}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise DivergedError(f"participant {self.index} diverged: {name} is {mean}; {REMEDY}")
        return means
