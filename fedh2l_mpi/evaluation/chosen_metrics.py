"""Metrics that a run's config asks for, built in or a user's own function, tried before the first round."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedh2l_mpi.config import EvaluationConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.evaluation.metric_functions import FUNCTIONS, MEANINGS, MetricFunction
from fedh2l_mpi.metrics import Field
from fedh2l_mpi.rng import global_generators
from fedh2l_mpi.runtime.plugins import Plugin, load_class, reporting

KEY = "evaluation.metrics"
# A trial has this many samples of each class.
TRIED = 3


@dataclass(frozen=True)
class Metric:
    """A metric of logits and labels, with the array that it becomes."""

    field: Field
    function: MetricFunction

    def value(self, logits_NC: Tensor, labels_N: Tensor) -> float:
        """Return the metric on a labelled set, on any device."""
        return self.function(logits_NC, labels_N)


@dataclass(frozen=True)
class OwnMetric(Metric):
    """A user's own function, which gets tensors in host memory and may return any finite number, or NaN for unknown."""

    plugin: Plugin

    def value(self, logits_NC: Tensor, labels_N: Tensor) -> float:
        """Return the metric on a labelled set; NaN on an empty one, which the function does not get.

        Raises
        ------
        UserError
            If the function fails, or returns anything else than a finite number or NaN.
        """
        if not len(labels_N):
            return math.nan
        with reporting("fails when it is evaluated", self.plugin), torch.no_grad():
            got = self.function(logits_NC.detach().cpu().float().clone(), labels_N.cpu().clone())
        return _number(self.plugin, got)


def chosen_metrics(evaluation: EvaluationConfig, classes: int) -> tuple[Metric, ...]:
    """Return the metrics of a config; a user's own functions are imported and tried on random logits.

    Raises
    ------
    UserError
        If a function cannot be imported, fails, or returns something else than one finite number.
    """
    return tuple(
        Metric(Field(name, "f8", *MEANINGS[name]), FUNCTIONS[name]) if name in FUNCTIONS else _own(name, classes)
        for name in evaluation.metrics
    )


def _own(name: str, classes: int) -> OwnMetric:
    plugin = Plugin(KEY, name)
    function = load_class(KEY, name)
    if not callable(function) or isinstance(function, type):
        raise UserError(f"{KEY}: {name!r}: got {function!r}, must be a function of logits and labels.")
    called = name.partition(":")[2]
    metric = OwnMetric(Field(called, "f8", "1", f"{name} on a domain's test set"), function, plugin)
    draw = torch.Generator().manual_seed(0)
    labels_N = torch.arange(TRIED * classes) % classes
    logits_NC = torch.randn((len(labels_N), classes), generator=draw)
    with global_generators(0):
        first, again = (metric.value(logits_NC, labels_N) for _ in range(2))
    if not math.isfinite(first):
        raise UserError(f"{KEY}: {name!r} returned {first} in a trial, must return a finite number.")
    if first != again:
        raise UserError(
            f"{KEY}: {name!r} returned {first} and then {again} for the same samples, so the numbers would depend on "
            "the number of ranks. Fix: draw no random numbers, and keep nothing between calls."
        )
    return metric


def _number(plugin: Plugin, got: Any) -> float:
    """Return what a user's function returned as a number. Raises UserError if it is none, or is infinite."""
    where = f"{plugin.key}: {plugin.name!r}"
    if isinstance(got, Tensor | np.ndarray) and got.ndim:
        raise UserError(f"{where} returned an array of shape {tuple(got.shape)}, must return one number.")
    if isinstance(got, Tensor | np.generic | np.ndarray):
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, int | float):
        raise UserError(f"{where} returned a {type(got).__name__}, must return one number.")
    if math.isinf(got):
        raise UserError(f"{where} returned {got}, must return a finite number (NaN: unknown).")
    return float(got)
