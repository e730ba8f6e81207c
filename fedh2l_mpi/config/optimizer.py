"""Optimiser with its schedule and the average of the weights, and evaluation."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config import architecture
from fedh2l_mpi.config.section import NO_SWITCH, Count, Section, Share, Switch, problem, refuse
from fedh2l_mpi.config.update import LENGTHS, ModelUpdate, UpdateConfig, default_of
from fedh2l_mpi.errors import UserError, did_you_mean

# In a short run, the average forgets within about 50 steps; in a longer one, within an eighth of the run.
SHORT_RUN_ROUNDS, SHORT_RUN_DECAY, RUN_PARTS = 20, 0.98, 8


# An editor completes the keys, and the messages of validation say what is wrong with values.
_PER_MODEL_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "object", "propertyNames": {"enum": list(UpdateConfig.model_fields)}},
}


class OptimizerConfig(UpdateConfig):
    """Section `optimizer`: each participant has one optimiser, for the whole run."""

    per_model: Annotated[dict[str, ModelUpdate], WithJsonSchema(_PER_MODEL_SCHEMA)] = Field(
        {},
        description="keys of this section by architecture, as {mlp: {lr: 0.01}}; possible keys: "
        f"{', '.join(UpdateConfig.model_fields)}",
    )
    average: Literal["none", "ema"] = Field(
        "ema",
        description="average of the weights over the steps, which is evaluated and publishes in place of the trained "
        "weights; ema: an exponential moving average. Methods that exchange parameters publish the trained weights",
    )
    average_decay: Share | None = Field(
        None,
        description="share of the average that a step keeps, less in the first steps; null: 0.98 up to 20 rounds, and "
        "1 - 8 / steps in a longer run, by its rounds when it starts",
    )
    batch_size: Count = Field(32, description="size of a private minibatch [samples]")
    seed_batch_size: Count = Field(64, description="size of the seed minibatch of a mutual step [samples]")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="number format of a model's matrix products and convolutions: IEEE float32; tf32: on a GPU with "
        "hardware for it, float32 with 10 bits of fraction in the factors, and no effect on a CPU; bfloat16 is for "
        "GPUs and CPUs with hardware for it: weights, losses and updates stay float32, and devices.batching has no "
        "effect on a CPU",
    )

    @field_validator("per_model", mode="before")
    @classmethod
    def _by_label(cls, models: object) -> object:
        return architecture.by_label(models)

    @model_validator(mode="after")
    def _keys_with_a_meaning(self) -> "OptimizerConfig":
        unused = [
            problem(key, getattr(self, key), f"got {getattr(self, key)}, but {why}")
            for key, why in self.unused().items()
        ]
        if self.average_decay is not None and self.average == "none":
            text = (
                f"got {self.average_decay}, but optimizer.average is none. Fix: remove it, or set optimizer.average "
                "to ema."
            )
            unused.append(problem("average_decay", self.average_decay, text))
        for model, update in self.per_model.items():
            given = update.given()
            for key, why in self.model_copy(update=given).unused().items():
                if key in given:
                    text = f"got {given[key]}, but {why.replace('optimizer.', f'optimizer.per_model.{model}.')}"
                    unused.append(problem(f"per_model.{model}.{key}", given[key], text))
        if unused:
            refuse(*unused)
        return self

    def for_model(self, label: str) -> "OptimizerConfig":
        """Return the section as it applies to one architecture.

        Parameters
        ----------
        label : str
            Label of the architecture, with its arguments if it has any. An entry of `per_model` under the label goes
            before one under the name alone.
        """
        update = self.per_model.get(label) or self.per_model.get(architecture.name_of(label))
        return self.model_copy(update={"per_model": {}}) if update is None else self._with(update)

    def _with(self, update: ModelUpdate) -> "OptimizerConfig":
        given = update.given()
        own = self.model_copy(update={**given, "per_model": {}})
        # A key of this section without a meaning for the model, such as sgd's momentum for adam, is left out.
        return own.model_copy(update={key: default_of(key) for key in own.unused() if key not in given})

    def resolved(self, rounds: int, round_steps: int) -> "OptimizerConfig":
        """Return this section with the decay of the average and the schedules' lengths filled in, where they are used.

        Parameters
        ----------
        rounds : int
            Rounds of the run when it starts. A run that is extended keeps what it started with.
        round_steps : int
            E + M, optimiser steps of a round.

        Raises
        ------
        UserError
            If a warm-up lasts as long as the schedule that it is the beginning of.
        """
        filled: dict[str, Any] = dict(self.lengths(rounds))
        if self.average == "ema" and self.average_decay is None:
            filled["average_decay"] = default_decay(rounds, round_steps)
        own = self.model_copy(update=filled)
        per_model = {
            model: update.model_copy(update=own._with(update).lengths(rounds))
            for model, update in self.per_model.items()
        }
        whole = own.model_copy(update={"per_model": per_model})
        for place, one in [("", whole), *((f"per_model.{model}.", own._with(per_model[model])) for model in per_model)]:
            _refuse_endless_warmup(f"optimizer.{place}warmup_steps", one, round_steps)
        return whole

    def as_started(self, started: "OptimizerConfig") -> "OptimizerConfig":
        """Return this section with what a run filled in when it started, where this section leaves it open.

        Parameters
        ----------
        started : OptimizerConfig
            The resolved section of the run.
        """
        filled: dict[str, Any] = _open_lengths(self, started)
        if self.average == started.average and self.average_decay is None:
            filled["average_decay"] = started.average_decay
        own = self.model_copy(update=filled)
        per_model = {
            model: update.model_copy(update=_open_lengths(own._with(update), started._with(started.per_model[model])))
            if model in started.per_model
            else update
            for model, update in self.per_model.items()
        }
        return own.model_copy(update={"per_model": per_model})


def _open_lengths(ours: UpdateConfig, started: UpdateConfig) -> dict[str, int]:
    """Return the lengths of a schedule that a run filled in when it started, where ours of the same kind are open."""
    same = ours.schedule == started.schedule
    open_here = [key for key in LENGTHS if same and getattr(ours, key) is None]
    return {key: getattr(started, key) for key in open_here if getattr(started, key) is not None}


def _refuse_endless_warmup(key: str, update: UpdateConfig, round_steps: int) -> None:
    steps = (update.schedule_rounds or 0) * round_steps
    if 0 < steps <= update.warmup_steps:
        raise UserError(
            f"{key}: got {update.warmup_steps}, but schedule {update.schedule} ends after {steps} steps "
            f"({update.schedule_rounds} rounds of {round_steps}). Fix: use {steps - 1} or fewer, or a larger "
            "schedule_rounds."
        )


def default_decay(rounds: int, round_steps: int) -> float:
    """Return the decay of the averaged weights for a run of this length."""
    if rounds <= SHORT_RUN_ROUNDS:
        return SHORT_RUN_DECAY
    return max(0.0, 1 - RUN_PARTS / max(1, rounds * round_steps))


# Metrics of `evaluation/metric_functions.py`.
METRICS = ("balanced_accuracy", "macro_f1", "nll", "auroc")


class EvaluationConfig(Section):
    """Section `evaluation`: the rounds and samples on which participants are tested."""

    every: Count = Field(
        5, description="rounds from one evaluation to the next [rounds]; the last round is always evaluated"
    )
    validation_share: Share = Field(
        0.1, description="share of each participant's private data kept to choose the best round"
    )
    local_test_share: Annotated[float, Field(gt=0.0, lt=1.0), NO_SWITCH] | None = Field(
        None,
        description="share of each participant's private data kept to test it on its own distribution "
        "(accuracy_local); null: none",
    )
    test_samples_per_domain: Count | None = Field(
        None, description="test samples in each domain, made from the same originals [samples]; null: all"
    )
    metrics: tuple[str, ...] = Field(
        (),
        description="more metrics on each domain's test set, each an array of its name: a list of "
        f"{', '.join(METRICS)} or your own as package.module:function, which gets logits and labels",
    )
    predictions: Switch = Field(
        False,
        description="write every participant's logits on all test samples at the end of the run into predictions.h5",
    )
    batch_size: Count = Field(128, description="samples in one forward pass without gradients [samples]")
    calibration: Literal["none", "seed_set"] = Field(
        "none",
        description="temperature of the posteriors that loss and calibration are measured on; seed_set: each "
        "participant fits it at every evaluation, on the seed samples of the next round, in views that are new to it",
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _known_metrics(cls, metrics: object) -> object:
        if not isinstance(metrics, list | tuple) or not all(isinstance(name, str) for name in metrics):
            raise PydanticCustomError("metrics", "must be a list, such as [macro_f1, my_metrics:top5]")
        for name in metrics:
            if name not in METRICS and not re.fullmatch(r"[\w.]+:\w+", name):
                hint, known = did_you_mean(name, METRICS), ", ".join(METRICS)
                text = f"{{name}} is no metric{{hint}}. Known: {known}, or your own as package.module:function"
                raise PydanticCustomError("metrics", text, {"name": repr(name), "hint": hint})
        twice = [name for name in metrics if list(metrics).count(name) > 1]
        if twice:
            raise PydanticCustomError("metrics", "{name} is given twice", {"name": repr(twice[0])})
        return metrics
