"""Exponential moving average of a model's weights, which is evaluated and published while the weights are trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models import batched_linear
from fedh2l_mpi.models.flat_parameters import FlatParameters, FloatingBuffers

Interval = Literal["step", "round"]


def decay_at(decay: float, steps: int) -> float:
    """Return d = min(decay, (1 + t) / (10 + t)), the share of the average that step t = 1, 2, ... keeps.

    The second term makes the average forget the initial weights within the first steps.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", 2017, arXiv 1703.01780, section 3; the second
    term is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    return min(decay, (1 + steps) / (10 + steps))


class WeightAverage:
    """a <- D a + (1 - D) w, from a = w at the start, with D of `decay_at`.

    w are the trainable parameters, and BatchNorm's running statistics: without these, averaged weights would be
    evaluated with statistics of other weights.

    If the average follows rounds instead of steps, a round of n steps counts as n steps with its last weights: D = d^n.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Tarvainen and Valpola,
    2017, arXiv 1703.01780, equation 2.

    Parameters
    ----------
    parameters : FlatParameters
        The parameters of `model`.
    decay : float
        Largest d, from 0 to 1.
    follows : {"step", "round"}
        When the average moves; the other event is ignored.

    Attributes
    ----------
    vector : Tensor
        Average of the trainable parameters (W,).
    averages : list of Tensor
        Averages of `buffers`.
    """

    def __init__(self, model: nn.Module, parameters: FlatParameters, decay: float, follows: Interval) -> None:
        self.decay, self.follows = decay, follows
        self.decay_on_device: Tensor | None = None
        self._model, self._parameters = model, parameters
        self._buffers = FloatingBuffers(model)
        self.vector = parameters.vector.clone()
        self.averages = [buffer.detach().clone() for buffer in self._buffers.tensors()]
        averaged = {id(tensor) for tensor in (*parameters.trainable, *self._buffers.tensors())}
        self._names = [name for name, value in model.state_dict(keep_vars=True).items() if id(value) in averaged]

    def after_step(self, steps: int) -> None:
        """Follow the weights after a step, if the average follows steps; `steps` counts this one."""
        if self.follows == "step":
            decay = decay_at(self.decay, steps) if self.decay_on_device is None else self.decay_on_device
            _follow([self.vector, *self.averages], self._weights(), decay)

    def kept_by(self, steps: int) -> float:
        """Return the share of the average that `after_step` keeps."""
        return decay_at(self.decay, steps)

    def after_round(self, steps: int, round_steps: int) -> None:
        """Follow the weights after a round, if the average follows rounds.

        Parameters
        ----------
        steps, round_steps : int
            Number of steps so far, and E + M of them in this round.
        """
        if self.follows == "round":
            _follow([self.vector, *self.averages], self._weights(), decay_at(self.decay, steps) ** round_steps)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model hold the average within the context, and its own weights again afterwards.

        Nothing is copied: the parameters and buffers refer to the memory of the average meanwhile, so the trained
        weights cannot change. Nothing may be trained within the context.
        """
        held = self._buffers.tensors()
        vector, buffers = self._parameters.vector, [buffer.data for buffer in held]
        try:
            self._parameters.refer_to(self.vector)
            for buffer, average in zip(held, self.averages, strict=True):
                buffer.data = average
            yield
        finally:
            self._parameters.refer_to(vector)
            for buffer, own in zip(held, buffers, strict=True):
                buffer.data = own

    def state(self) -> dict[str, Tensor]:
        """Return the average by the names of the model's state dict; the tensors share memory with the average.

        The result has no entries for what is not averaged: frozen parameters, and counters.
        """
        with self.in_place():
            whole = self._model.state_dict()
        return {name: whole[name] for name in self._names}

    @property
    def buffers(self) -> list[Tensor]:
        """The running statistics that are averaged."""
        return self._buffers.tensors()

    def _weights(self) -> list[Tensor]:
        return [self._parameters.vector, *self.buffers]


class JoinedAverage:
    """Average of the weights of participants that step together: one call for all.

    Parameters
    ----------
    members : sequence of WeightAverage
        Averages that have made the same number of steps. Their vectors become rows of one matrix.
    parameters_GW : float tensor (G, W)
        The parameters of each.
    """

    def __init__(self, members: Sequence[WeightAverage], parameters_GW: Tensor) -> None:
        self._decay, self._follows, self._parameters_GW = members[0].decay, members[0].follows, parameters_GW
        self.decay_on_device: Tensor | None = None
        self._average_GW = batched_linear.join_columns([torch.stack([member.vector for member in members])])
        for member, row in zip(members, self._average_GW, strict=True):
            member.vector = row
        self._members = members

    def after_step(self, steps: int) -> None:
        """Follow the members' weights after a step that all have made."""
        if self._follows == "step":
            averages = [average for member in self._members for average in member.averages]
            buffers = [buffer for member in self._members for buffer in member.buffers]
            decay = decay_at(self._decay, steps) if self.decay_on_device is None else self.decay_on_device
            _follow([self._average_GW, *averages], [self._parameters_GW, *buffers], decay)

    def kept_by(self, steps: int) -> float:
        """Return the share of the average that `after_step` keeps."""
        return decay_at(self._decay, steps)


@torch.no_grad()
def _follow(averages: list[Tensor], weights: list[Tensor], decay: float | Tensor) -> None:
    """Move the averages; a decay on the device is a tensor without dimensions."""
    if not isinstance(decay, Tensor):
        torch._foreach_lerp_(averages, weights, 1 - decay)
        return
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, (1 - decay).to(average.dtype))


def build(
    model: nn.Module, parameters: FlatParameters, config: OptimizerConfig, follows: Interval
) -> WeightAverage | None:
    """Return the average that a resolved config asks for, or None."""
    if config.average == "none":
        return None
    if config.average_decay is None:
        raise RuntimeError("the config is not resolved: call resolved() first")
    return WeightAverage(model, parameters, config.average_decay, follows)
