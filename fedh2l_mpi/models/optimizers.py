"""Adam, AdamW and SGD over one flat vector of parameters.

They are written out because building any `torch.optim` optimizer imports `torch._dynamo`, which costs every rank 1.3
CPU seconds and 70 MiB. Tests check that each update equals torch.optim's, bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models.schedules import learning_rate


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
    numbers_on_device : sequence of Tensor or None
        The result of `numbers` for the next update, as tensors without dimensions; None: it is computed.
    """

    parameters: Tensor
    config: OptimizerConfig
    steps: int
    schedule_steps: int
    numbers_on_device: Sequence[Tensor] | None

    def __init__(self, parameters: Tensor, config: OptimizerConfig, schedule_steps: int) -> None: ...

    def step(self, gradient: Tensor) -> None:
        """Make one update in place; this may overwrite `gradient`."""

    def numbers(self, steps: int) -> Sequence[float]:
        """Return what differs from step to step in the update that follows `steps` updates."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must store; they share memory with the optimiser."""


# torch.nn.utils.clip_grad_norm_ adds it to the norm.
TINY = 1e-6


@torch.no_grad()
def clip(gradient: Tensor, longest: float | None) -> Tensor:
    """Scale g in place by min(1, c / (|g| + 1e-6)), and return it; None is no limit. Nothing waits for the device.

    Each row of a batch's gradients (G, W) has a norm of its own. On a CPU, a row by itself gives the same bits.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1;
    the small term is that of torch.nn.utils.clip_grad_norm_.
    """
    if longest is None:
        return gradient
    if gradient.dim() == 1:
        return gradient.mul_((longest / (torch.linalg.vector_norm(gradient) + TINY)).clamp(max=1.0))
    if losses.needs_single_rows(gradient):
        norms_G = torch.stack(list(map(torch.linalg.vector_norm, gradient)))
    else:
        norms_G = torch.linalg.vector_norm(gradient, dim=1)
    return gradient.mul_((longest / (norms_G + TINY)).clamp(max=1.0)[:, None])


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
        self.numbers_on_device: Sequence[Tensor] | None = None

    def numbers(self, steps: int) -> Sequence[float]:
        """Return the factor of decoupled decay, the rate over the first bias, and the root of the second bias."""
        beta1, beta2 = self.config.betas
        rate = learning_rate(self.config, steps, self.schedule_steps)
        shrink = 1 - rate * self.config.weight_decay
        return shrink, rate / (1 - beta1 ** (steps + 1)), math.sqrt(1 - beta2 ** (steps + 1))

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Make one update in torch.optim.Adam's order of operations; a different order changes the last bits."""
        beta1, beta2 = self.config.betas
        shrink, rate, root = self.numbers_on_device or self.numbers(self.steps)
        self.steps += 1
        gradient = clip(gradient, self.config.clip_norm)
        self._decay(gradient, shrink)
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = (self.second.sqrt() / root).add_(self.config.eps)
        if isinstance(rate, Tensor):
            self.parameters.sub_((self.first * rate).div_(spread))
        else:
            self.parameters.addcdiv_(self.first, spread, value=-rate)

    def _decay(self, gradient: Tensor, shrink: float | Tensor) -> None:
        """Add the decay of the weights to the gradient."""
        if self.config.weight_decay:
            gradient.add_(self.parameters, alpha=self.config.weight_decay)

    def state(self) -> dict[str, Tensor]:
        return {"first": self.first, "second": self.second}


class AdamW(Adam):
    """w -= lr decay w before Adam's update, whose moments never see the decay.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2, with the rate as the
    multiplier of both, as in torch.optim.AdamW.
    """

    def _decay(self, gradient: Tensor, shrink: float | Tensor) -> None:
        """Shrink the weights instead of changing the gradient."""
        if self.config.weight_decay:
            self.parameters.mul_(shrink)


class Sgd:
    """u = momentum u + g;  w -= lr u."""

    def __init__(self, parameters: Tensor, config: OptimizerConfig, schedule_steps: int) -> None:
        self.parameters = parameters
        self.config, self.schedule_steps = config, schedule_steps
        # From zero, the first velocity is the first gradient, as in torch.optim.
        self.velocity = torch.zeros_like(parameters) if config.momentum else None
        self.steps = 0
        self.numbers_on_device: Sequence[Tensor] | None = None

    def numbers(self, steps: int) -> Sequence[float]:
        """Return the rate."""
        return (learning_rate(self.config, steps, self.schedule_steps),)

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        (rate,) = self.numbers_on_device or self.numbers(self.steps)
        self.steps += 1
        gradient = clip(gradient, self.config.clip_norm)
        if self.config.weight_decay:
            gradient.add_(self.parameters, alpha=self.config.weight_decay)
        if self.velocity is not None:
            gradient = self.velocity.mul_(self.config.momentum).add_(gradient)
        if isinstance(rate, Tensor):
            self.parameters.sub_(gradient * rate)
        else:
            self.parameters.add_(gradient, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        return {} if self.velocity is None else {"velocity": self.velocity}


KINDS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": Sgd}


def joined(single: Sequence[Optimizer], parameters_GW: Tensor) -> Optimizer:
    """Return one optimiser that steps for several; their states become views of its rows.

    Parameters
    ----------
    single : sequence of Optimizer
        Optimisers of one kind, with the same settings, that have made the same number of steps.
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
    config : OptimizerConfig
        The section as it applies to one model.
    round_steps : int
        E + M, steps of a round, in which the length of the schedule is counted.
    """
    if config.schedule != "constant" and config.schedule_rounds is None:
        raise RuntimeError("the config is not resolved: call resolved() first")
    schedule_steps = (config.schedule_rounds or 0) * round_steps
    return KINDS[config.name](parameters, config, schedule_steps)
