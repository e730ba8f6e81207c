"""One participant: its model, optimiser and private data, and the operations on them that methods share.

Shape letters: B minibatch, S seed samples, C classes, X the axes of one sample.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedh2l_mpi import losses
from fedh2l_mpi.config import Config, EvaluationConfig, OptimizerConfig
from fedh2l_mpi.data.augmentation import AUGMENTATIONS, Augmentation
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.minibatches import Minibatches, PreparedMinibatches
from fedh2l_mpi.errors import DivergedError
from fedh2l_mpi.models import mixed_precision, optimizers, weight_average
from fedh2l_mpi.models.flat_parameters import FlatParameters, SharedState
from fedh2l_mpi.models.step_numbers import StepNumbers
from fedh2l_mpi.rng import Purpose, generator, seed_global_generators, torch_seed
from fedh2l_mpi.runtime import repetition
from fedh2l_mpi.runtime.step_graphs import StepSource, UnitGraphs
from fedh2l_mpi.runtime.step_notes import StepNotes
from fedh2l_mpi.runtime.transfers import to_device

REMEDY = "Fix: try a smaller optimizer.lr."


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) for name, value in values.items()}


def _copy(value: Any) -> Any:
    """Return a copy in host memory of a tensor, of containers of them, or of what else a model keeps in its state."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) is dict:
        return _copied(value)
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return copy.deepcopy(value)


class TrainingUnit(Protocol):
    """One participant, or a batch of G participants that step together, as the phases of a method use it.

    The tensors of a batch have one more axis in front, of its G members: losses (G,), gradients (G, W).
    """

    members: "list[Participant]"
    device: torch.device
    label_smoothing: float
    graphs: UnitGraphs | None

    @property
    def model(self) -> nn.Module:
        """Model that maps the minibatches to logits."""

    def begin(self, round_index: int, phase: int) -> None:
        """Enter a training phase."""

    def private_minibatch(self) -> tuple[Tensor, Tensor]:
        """Return the next private minibatch: a model's input (B, X) and labels (B,)."""

    def log_prior(self, classes: int) -> Tensor:
        """Return the logarithm of the prior of the private labels, float32 (C,); (G, 1, C) for a batch."""

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters, flat."""

    def step(self, gradient: Tensor) -> None:
        """Make one update."""

    def seed_minibatches(self, samples: int, round_index: int, steps: int, after: int = 0) -> Tensor:
        """Return rows of the round's seed samples for each of the steps, int64 (steps, B)."""

    def repeat(self, steps: int | Tensor, step: Callable[..., None], *reads: Any) -> None:
        """Take steps of one kind: `step(rows_B, *reads)` for seed minibatches (steps, B), else `step(*reads)`."""

    def note(self, name: str, value: Tensor) -> None:
        """Record a scalar of this step."""

    def received(self, theirs: Mapping[int, Tensor]) -> Tensor | None:
        """Return the neighbours' published arrays; None if the members have to learn from them one by one."""


class Participant:
    """Participant with its model, optimiser and private data.

    Parameters
    ----------
    index : int
        Its number, 0 to P - 1.
    architecture : str
        Name of the model's architecture.
    model : nn.Module
        A model on the CPU or on the device. It is moved to `private`'s device, and its trainable parameters become
        views of one vector.
    private, validation : Labelled
        Disjoint samples on the device.
    local_test : Labelled or None
        Samples of its own distribution that it is tested on; None: there are none.
    optimizer : OptimizerConfig
        Section `optimizer` as it applies to the architecture.
    seed : int
        The run's seed.
    augment : Augmentation or None
        Transformation of every private minibatch.
    round_steps : int
        E + M, optimiser steps of a round.
    average_follows : {"step", "round"}
        When the average of the weights moves: after each step, or after each round, when parameters were exchanged.

    Attributes
    ----------
    shared_state : SharedState
        The parameters and buffers that parameter-sharing methods exchange.
    prepared : PreparedMinibatches
        Rows and random draws of the private minibatches to come, on the device.
    kept : dict of str to Tensor
        Tensors that a method keeps for this participant between phases and rounds. Checkpoints contain them.
    graphs : UnitGraphs or None
        Its recorded steps (`devices.graphs`); None: steps are taken call by call.
    label_smoothing : float
        Share of a label that is spread evenly over all classes in the losses that are trained on.
    average : WeightAverage or None
        Average of the weights; None if `optimizer.average` is `none`.
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
        round_steps: int = 1,
        average_follows: weight_average.Interval = "step",
        local_test: Labelled | None = None,
    ) -> None:
        self.index, self.architecture = index, architecture
        # A participant is a training unit of one, so the loop handles it like a batch of participants.
        self.members = [self]
        self.private, self.validation, self.local_test = private, validation, local_test
        self.device = private.stored.device
        self.model = model.to(self.device)
        if optimizer.precision == "bfloat16":
            mixed_precision.mix(self.model)
        self.parameters = FlatParameters(self.model)
        self.shared_state = SharedState(self.model, self.parameters)
        self.kept: dict[str, Tensor] = {}
        self.optimizer = optimizers.build(self.parameters.vector, optimizer, round_steps)
        self.average = weight_average.build(self.model, self.parameters, optimizer, average_follows)
        self._round_steps = round_steps
        self.minibatches = Minibatches(len(private), optimizer.batch_size, seed, index)
        self.augment, shape = augment, private.stored.shape[1:]
        self.prepared = PreparedMinibatches(self.minibatches, augment, shape, self.device, seed, index)
        self._seed, self._seed_batch_size = seed, optimizer.seed_batch_size
        self.label_smoothing = optimizer.label_smoothing
        self.forward_size = evaluation.batch_size
        self.step_notes = StepNotes()
        self.graphs: UnitGraphs | None = None
        self._log_prior: Tensor | None = None

    @classmethod
    def of_run(
        cls,
        config: Config,
        index: int,
        architecture: str,
        model: nn.Module,
        private: Labelled,
        validation: Labelled,
        shares_parameters: bool,
        local_test: Labelled | None = None,
    ) -> "Participant":
        """Return a participant under a run's conditions; a rehearsal has the same ones.

        Parameters
        ----------
        shares_parameters : bool
            True if the run's method exchanges parameters, so that weights are averaged over rounds, not steps.
        local_test : Labelled or None
            Samples of its own distribution that it is tested on; None: the run has no local tests.
        """
        return cls(
            index,
            architecture,
            model,
            private,
            validation,
            config.optimizer.for_model(architecture),
            config.evaluation,
            config.seed,
            AUGMENTATIONS[config.data.augmentation],
            config.method.local_steps + config.method.mutual_steps,
            "round" if shares_parameters else "step",
            local_test,
        )

    def state(self) -> dict[str, Any]:
        """Return a copy, in host memory, of everything that the next round depends on.

        It consists of tensors, numbers, dicts of them, and whatever the model's `get_extra_state` returns. Random
        generators are not part of it, because they start again for every participant, round and phase.
        """
        averaged = {} if self.average is None else {"average": _copied(self.average.state())}
        return {
            "model": _copied(self.model.state_dict()),
            **averaged,
            **({"contiguous": True} if self.parameters.contiguous else {}),
            "optimizer": _copied(self.optimizer.state()),
            "optimizer_steps": self.optimizer.steps,
            "private_minibatches": self.minibatches.position,
            "kept": _copied(self.kept),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned.

        Raises
        ------
        ValueError
            If the state is of a different model or optimiser.
        """
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"participant {self.index}: {' '.join(str(error).split())}") from None
        ours, theirs = self.optimizer.state(), state["optimizer"]
        if {name: value.shape for name, value in ours.items()} != {name: v.shape for name, v in theirs.items()}:
            raise ValueError(
                f"participant {self.index}: got an optimiser's state of {sorted(theirs)}. Allowed: {sorted(ours)}, "
                "with the shapes of this model."
            )
        # Checkpoints from before there was the entry have the optimiser's vectors with channels last.
        reorders = self.parameters.contiguous and not state.get("contiguous", False)
        for name, value in ours.items():
            value.copy_(self.parameters.from_channels_last(theirs[name]) if reorders else theirs[name])
        average = {} if self.average is None else self.average.state()
        stored = state.get("average", {})
        if {name: value.shape for name, value in average.items()} != {name: v.shape for name, v in stored.items()}:
            raise ValueError(
                f"participant {self.index}: got averaged weights of {sorted(stored) or 'nothing'}. "
                f"Allowed: {sorted(average) or 'nothing'}, with the shapes of this model."
            )
        for name, value in average.items():
            value.copy_(stored[name])
        self.optimizer.steps = state["optimizer_steps"]
        self.minibatches.position = state["private_minibatches"]
        self.kept = {name: value.to(self.device) for name, value in state["kept"].items()}

    @property
    def parameter_count(self) -> int:
        """Number of the model's parameters, trainable and frozen."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def begin(self, round_index: int, phase: int) -> None:
        """Enter a training phase: set train mode, and seed the random numbers of its forward passes (dropout).

        Modules like dropout draw only from torch's global generator, and a user's own code may draw from those of
        Python and NumPy. Seeding them here gives each participant its own numbers, the same for every number of ranks.
        """
        seed = torch_seed(self._seed, Purpose.FORWARD_NOISE, self.index, round_index, phase)
        # Seed the generators one by one, because torch.manual_seed keeps a stack trace for every absent kind of device.
        torch.default_generator.manual_seed(seed)
        seed_global_generators(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed_all(seed)
        self.model.train()

    def private_minibatch(self) -> tuple[Tensor, Tensor]:
        """Return the next private minibatch: a model's input (B, X) and labels (B,)."""
        rows_B, *draws = self.prepared.next()
        inputs = self.private.inputs(rows_B)
        if self.augment is not None:
            inputs = self.augment.apply(inputs, draws)
        return inputs, self.private.labels[rows_B]

    def log_prior(self, classes: int) -> Tensor:
        """Return the logarithm of the prior of the private training labels, float32 (C,) on the device."""
        if self._log_prior is None:
            self._log_prior = losses.log_prior(self.private.labels, classes)
        return self._log_prior

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters, flat. Set `again` if another gradient through the same forward pass follows."""
        return self.parameters.gradient(loss, again)

    def step(self, gradient: Tensor) -> None:
        """Make one update with the participant's optimiser, which keeps its state for the whole run."""
        self.optimizer.step(gradient)
        if self.average is not None:
            self.average.after_step(self.optimizer.steps)

    def end_round(self) -> None:
        """End a round's training: an average that follows rounds moves now."""
        if self.average is not None:
            self.average.after_round(self.optimizer.steps, self._round_steps)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model holds its averaged weights; its own if `optimizer.average` is `none`.

        The trained weights are unchanged afterwards, whatever happens. Contexts may be nested.
        """
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def received(self, theirs: Mapping[int, Tensor]) -> Tensor:
        """Return the arrays that this participant's neighbours have published, float32 (N, rows, columns)."""
        return theirs[self.index]

    def seed_minibatches(self, samples: int, round_index: int, steps: int, after: int = 0) -> Tensor:
        """Return rows of the round's seed samples for each of the steps, int64 (steps, B), on the device.

        They are drawn from (seed, participant, round). Set `after` to the number of the round's steps that used the
        first minibatches already.
        """
        size = min(self._seed_batch_size, samples)
        draw = generator(self._seed, Purpose.SEED_BATCHES, self.index, round_index)
        epochs = math.ceil((after + steps) / (samples // size)) if steps else 0
        orders = [draw.permutation(samples)[: samples // size * size] for _ in range(epochs)]
        rows = torch.from_numpy(np.concatenate(orders)) if orders else torch.empty(0, dtype=torch.int64)
        return to_device(rows.view(-1, size)[after : after + steps], self.device)

    def repeat(self, steps: int | Tensor, step: Callable[..., None], *reads: Any) -> None:
        """Take steps of one kind, whose private minibatches go to the device together.

        Parameters
        ----------
        steps : int or int64 tensor (steps, B)
            Number of steps, or the rows of the seed minibatch of each, which `step` gets first.
        step : callable
            Takes one step: `step(*reads)`, or `step(rows_B, *reads)`.
        reads : any
            Tensors, numbers and other facts that may differ from one phase to the next.
        """
        repetition.take(self, steps, step, reads)

    @property
    def sources(self) -> list[StepSource]:
        """The sources from which its steps take minibatches and numbers."""
        return [self.prepared, StepNumbers(self.optimizer, self.average)]

    @property
    def noting(self) -> list[StepNotes]:
        """Its notes, in a list."""
        return [self.step_notes]

    @property
    def parts(self) -> list[Tensor]:
        """The tensors of its model, as they are now."""
        return [*self.model.parameters(), *self.model.buffers()]

    @torch.no_grad()
    def logits(self, inputs_NX: Tensor) -> Tensor:
        """Return logits (N, C) on the device, in eval mode: without dropout, and with unchanged running statistics."""
        self.model.eval()
        return torch.cat([self.model(piece) for piece in inputs_NX.split(self.forward_size)])

    def note(self, name: str, value: Tensor | float) -> None:
        """Record a scalar of this step. It stays on the device until `noted_means`.

        A name of a user's own method must be declared in `Method.notes`.

        Raises
        ------
        ValueError
            If the value is not a scalar.
        """
        scalar = value.detach() if isinstance(value, Tensor) else torch.full((), float(value), device=self.device)
        if scalar.dim():
            raise ValueError(f"note({name!r}) got a tensor of shape {tuple(scalar.shape)}, must be a scalar")
        self.step_notes.add(name, scalar)

    @property
    def noted(self) -> list[str]:
        """Names of the scalars recorded since the last `noted_means`."""
        return list(self.step_notes.counts)

    @property
    def notes(self) -> int:
        """Number of scalars recorded since the last `noted_means`."""
        return self.step_notes.counts.total()

    def noted_means(self) -> dict[str, float]:
        """Return the mean of each scalar that was recorded since the last call, by name, and forget the scalars.

        Raises
        ------
        DivergedError
            If a mean is not finite, because a diverged participant would teach nothing to the others.
        """
        means = self.step_notes.take_means()
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise DivergedError(f"participant {self.index} diverged: {name} is {mean}. {REMEDY}")
        return means
