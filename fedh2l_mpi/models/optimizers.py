"""Adam and SGD over one flat vector of parameters.

They are written out because building any `torch.optim` optimizer imports `torch._dynamo`, which costs every rank 1.3
CPU seconds and 70 MiB. Tests check that each update equals torch.optim's, bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedh2l_mpi.config import OptimizerConfig


class Optimizer(Protocol):
    """Update a flat vector of parameters, given a flat gradient.

    Attributes
    ----------
    parameters : Tensor
        The vector that it updates.
    steps : int
        Number of updates so far.
    schedule_steps : int
        Number of updates until a schedule ends.
    """

    parameters: Tensor
    config: OptimizerConfig
    steps: int
    schedule_steps: int

    def __init__(self, parameters: Tensor, config: OptimizerConfig, schedule_steps: int) -> None: ...

    def step(self, gradient: Tensor) -> None:
        """Make one update in place; this may overwrite `gradient`."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must store; they share memory with the optimiser."""


def learning_rate(config: OptimizerConfig, steps: int, schedule_steps: int) -> float:
    """Return the rate after this number of steps: lr, or lr (1 + cos(pi steps / schedule_steps)) / 2 for `cosine`.

    Beyond `schedule_steps`, the rate remains 0.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5, without
    restarts.
    """
    if config.schedule == "constant":
        return config.lr
    if steps >= schedule_steps:
        return 0.0
    return config.lr * (1 + math.cos(math.pi * steps / schedule_steps)) / 2


class Adam:
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr m^ / (sqrt(v^) + eps), with bias-corrected m^, v^.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """

    def __init__(self, parameters: Tensor, config: OptimizerConfig, schedule_steps: int) -> None:
        self.parameters = parameters
        self.config, self.schedule_steps = config, schedule_steps
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Make one update in torch.optim.Adam's order of operations; a different order changes the last bits."""
        beta1, beta2 = self.config.betas
        scheduled = learning_rate(self.config, self.steps, self.schedule_steps)
        self.steps += 1
        if self.config.weight_decay:
            gradient.add_(self.parameters, alpha=self.config.weight_decay)
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = scheduled / (1 - beta1**self.steps)
        spread = (self.second.sqrt() / math.sqrt(1 - beta2**self.steps)).add_(self.config.eps)
        self.parameters.addcdiv_(self.first, spread, value=-rate)

    def state(self) -> dict[str, Tensor]:
        return {"first": self.first, "second": self.second}


class Sgd:
    """u = momentum u + g;  w -= lr u."""

    def __init__(self, parameters: Tensor, config: OptimizerConfig, schedule_steps: int) -> None:
        self.parameters = parameters
        self.config, self.schedule_steps = config, schedule_steps
        # From zero, the first velocity is the first gradient, as in torch.optim.
        self.velocity = torch.zeros_like(parameters) if config.momentum else None
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        rate = learning_rate(self.config, self.steps, self.schedule_steps)
        self.steps += 1
        if self.config.weight_decay:
            gradient.add_(self.parameters, alpha=self.config.weight_decay)
        if self.velocity is not None:
            gradient = self.velocity.mul_(self.config.momentum).add_(gradient)
        self.parameters.add_(gradient, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        return {} if self.velocity is None else {"velocity": self.velocity}


def joined(single: Sequence[Optimizer], parameters_GW: Tensor) -> Optimizer:
    """Return one optimiser that steps for several; their states become views of its rows.

    Parameters
    ----------
    single : sequence of Optimizer
        Optimisers of one kind that have made the same number of steps.
    parameters_GW : float tensor (G, W)
        The parameters of each, one row per optimiser.
    """
    whole = type(single[0])(parameters_GW, single[0].config, single[0].schedule_steps)
    whole.steps = single[0].steps
    for name, state_GW in whole.state().items():
        for one, row in zip(single, state_GW, strict=True):
            row.copy_(one.state()[name])
            setattr(one, name, row)
    for one, row in zip(single, parameters_GW, strict=True):
        one.parameters = row
    return whole


def build(parameters: Tensor, config: OptimizerConfig, round_steps: int = 1) -> Optimizer:
    """Return the optimiser that the config names, for a flat vector of parameters that it updates in place.

    Parameters
    ----------
    round_steps : int
        E + M, steps of a round, in which the length of the schedule is counted.
    """
    if config.schedule == "cosine" and config.schedule_rounds is None:
        raise RuntimeError("the config is not resolved: call resolved() first")
    schedule_steps = (config.schedule_rounds or 0) * round_steps
    kind = Adam if config.name == "adam" else Sgd
    return kind(parameters, config, schedule_steps)
