"""A second model that every participant trains next to its own, of one architecture for all participants.

Its parameters, buffers and optimiser's state belong to the participant: they are in `participant.kept`, so checkpoints
contain them. One module serves all participants of a rank, one after another.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedh2l_mpi import models
from fedh2l_mpi.data.augmentation import kind_of
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.models import mixed_precision
from fedh2l_mpi.models.flat_parameters import FlatParameters, SharedState, shared_bytes
from fedh2l_mpi.models.optimizers import Optimizer
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.rng import named_generator
from fedh2l_mpi.sample_form import SampleForm

# Keys of `participant.kept` begin with this.
PREFIX = "proxy"
WEIGHTS = f"{PREFIX} weights"


class SecondModel:
    """The module of the second model, and what it needs to be one participant's for a while.

    Parameters
    ----------
    participant : Participant
        Any participant of the rank: its device and precision are those of all.
    model : nn.Module
        A model with its initial weights, which all participants share. It is moved to the device.
    """

    def __init__(self, participant: Participant, model: nn.Module) -> None:
        self.model = model.to(participant.device)
        if participant.optimizer.config.precision == "bfloat16":
            mixed_precision.mix(self.model)
        self.parameters = FlatParameters(self.model)
        self.shared_state = SharedState(self.model, self.parameters)
        self.optimizer: Optimizer | None = None
        buffers = {f"{PREFIX} buffer {name}": buffer.clone() for name, buffer in self.model.named_buffers()}
        self._initial = {WEIGHTS: self.parameters.vector.clone(), **buffers}

    @contextmanager
    def of(self, participant: Participant) -> Iterator["SecondModel"]:
        """Return a context in which the module has a participant's parameters and buffers."""
        kept = participant.kept
        for name, value in self._initial.items():
            if name not in kept:
                kept[name] = value.clone()
        # Steps change the kept vector itself; buffers have their place in the module.
        self.parameters.refer_to(kept[WEIGHTS])
        buffers = {f"{PREFIX} buffer {name}": buffer for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(kept[name])
        yield self
        with torch.no_grad():
            for name, buffer in buffers.items():
                kept[name].copy_(buffer)

    @contextmanager
    def trained_by(self, participant: Participant) -> Iterator["SecondModel"]:
        """Return the context of `of`, in which the module can take steps as well.

        The optimiser has the settings and the number of steps of the participant's own model at the beginning.
        """
        with self.of(participant):
            kept, own = participant.kept, participant.optimizer
            self.optimizer = type(own)(kept[WEIGHTS], own.config, own.schedule_steps)
            self.optimizer.steps = own.steps
            for name, value in self.optimizer.state().items():
                # Steps change the kept tensor itself.
                setattr(self.optimizer, name, kept.setdefault(f"{PREFIX} {name}", value))
            try:
                yield self
            finally:
                self.optimizer = None

    def step(self, loss: Tensor) -> None:
        """Make one update of the participant's second model, within the context of `trained_by`."""
        if self.optimizer is None:
            raise RuntimeError("the second model is in nobody's training")
        self.optimizer.step(self.parameters.gradient(loss))


def check_architecture(architecture: str) -> None:
    """Raise `UserError` if the second model is a class of the user's, which no rehearsal tries."""
    if models.is_own(architecture):
        raise UserError(
            f"method.proxy_model: got {architecture!r}. Allowed: a built-in architecture, such as mlp or "
            "mlp(hidden=[64]), or torchvision:NAME."
        )


def build(architecture: str, form: SampleForm, classes: int, seed: int) -> nn.Module:
    """Return a new model on the CPU; its weights depend on the seed alone.

    Raises
    ------
    UserError
        If the architecture is unknown or does not take the samples.
    """
    try:
        return models.build(architecture, form, classes, seed)
    except UserError as error:
        raise UserError(f"method.proxy_model: {str(error).removeprefix('models: ')}") from error


def size(architecture: str, participant: Participant, classes: int) -> int:
    """Return how many numbers of the second model are exchanged: trainable parameters and running statistics."""
    return shared_bytes(build(architecture, _form(participant), classes, seed=0)) // 4


def initial(architecture: str, participant: Participant, now: Round) -> SecondModel:
    """Return the second model with the weights that all participants of the run begin with."""
    seed = int(named_generator(now.seed_set.seed, "proxy").integers(2**63))
    return SecondModel(participant, build(architecture, _form(participant), now.seed_set.classes, seed))


def _form(participant: Participant) -> SampleForm:
    """Return the form of a participant's samples.

    Raises
    ------
    UserError
        If they are token ids: samples do not say how many there are in the vocabulary.
    """
    inputs = participant.private.inputs(slice(0, 1))
    kind = kind_of(inputs)
    if kind == "tokens":
        raise UserError(
            "method.proxy_model: a second model for sequences of token ids is not supported. Fix: use a method with "
            "one model."
        )
    return SampleForm(kind, tuple(inputs.shape[1:]))
