"""Learning rate over the optimiser steps: a warm-up, and after it one of the schedules.

A factor is a number of `steps` after the warm-up, out of `length`. Tests compare each with torch.optim.lr_scheduler.
"""

import math
from collections.abc import Callable

from fedh2l_mpi.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int, schedule_steps: int) -> float:
    """Return the rate of the step that follows `steps` steps.

    In the warm-up of W steps, step s has (s + 1) / (W + 1) of lr, as LinearLR(start_factor=1 / (W + 1), total_iters=W).
    The schedule then runs over the other steps, as SequentialLR([warm-up, schedule], milestones=[W]). From
    `schedule_steps` on, the rate stays.

    Parameters
    ----------
    config : OptimizerConfig
        The section as it applies to one model, with its lengths filled in.
    schedule_steps : int
        Steps until the schedule ends, warm-up included; 0 for a constant rate.

    Source of the warm-up: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2.
    """
    warmup = config.warmup_steps
    if steps < warmup:
        return config.lr * (steps + 1) / (warmup + 1)
    if config.schedule == "step":
        round_steps = schedule_steps // (config.schedule_rounds or 1)
        each = (config.step_rounds or 1) * round_steps
        return config.lr * step_factor(steps - warmup, schedule_steps - warmup, each, config.step_factor)
    return config.lr * FACTORS[config.schedule](steps - warmup, schedule_steps - warmup)


def constant_factor(steps: int, length: int) -> float:
    """Return 1."""
    return 1.0


def cosine_factor(steps: int, length: int) -> float:
    """Return (1 + cos(pi steps / length)) / 2, and 0 from the end on.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5, without
    restarts.
    """
    return 0.0 if steps >= length else (1 + math.cos(math.pi * steps / length)) / 2


def linear_factor(steps: int, length: int) -> float:
    """Return 1 - steps / length, and 0 from the end on, as LinearLR(start_factor=1, end_factor=0)."""
    return 0.0 if steps >= length else 1 - steps / length


def step_factor(steps: int, length: int, each: int, factor: float) -> float:
    """Return factor^(steps // each), as StepLR; from the end on, the factor of the last step."""
    return float(factor ** (max(0, min(steps, length - 1)) // max(1, each)))


FACTORS: dict[str, Callable[[int, int], float]] = {
    "constant": constant_factor,
    "cosine": cosine_factor,
    "linear": linear_factor,
}
