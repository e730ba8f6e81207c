"""Update of the weights: optimiser, learning rate over the steps, clipping, and the loss on labels that it minimises.

These are the keys of `optimizer` that may differ from model to model (`optimizer.per_model`).
"""

import math
from typing import Any, Literal

from pydantic import Field, model_serializer

from fedh2l_mpi.config.section import Count, Natural, Number, Section, Share

# Without step_rounds, a rate falls in this many parts of its schedule.
PARTS = 3
# Keys that count the rounds of a schedule; null means that the length of the run fills them in.
LENGTHS = ("schedule_rounds", "step_rounds")


class UpdateConfig(Section):
    """Keys of section `optimizer` that may differ from model to model."""

    name: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="update rule; adamw: adam whose weight decay does not pass through its moments"
    )
    lr: Number = Field(1e-3, gt=0.0, le=1e6, description="learning rate")
    schedule: Literal["constant", "cosine", "step", "linear"] = Field(
        "constant",
        description="learning rate over the steps after the warm-up; cosine: it falls to 0 along half a cosine, "
        "linear: along a line; step: it is multiplied by step_factor every step_rounds",
    )
    schedule_rounds: Count | None = Field(
        None,
        description="rounds until the schedule ends, warm-up included; afterwards the rate stays: 0 with cosine and "
        "linear [rounds]; null: the run's rounds when it starts",
    )
    step_rounds: Count | None = Field(
        None, description="rounds between two falls of schedule step [rounds]; null: a third of schedule_rounds"
    )
    step_factor: Number = Field(0.1, gt=0.0, le=1.0, description="factor of the rate at every fall of schedule step")
    warmup_steps: Natural = Field(
        0,
        description="first optimiser steps, in which the rate rises along a line: step s of W, from 0, has (s + 1) / "
        "(W + 1) of lr [steps]",
    )
    clip_norm: Number | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="longest gradient of a participant: a longer one, after the gradients of a step are combined, is "
        "scaled to this norm; null: no limit",
    )
    label_smoothing: Share = Field(
        0.0,
        description="share of each label, private or seed, that is spread evenly over all classes in the losses that "
        "are trained on; distillation and evaluation are without it",
    )
    momentum: Number = Field(0.0, ge=0.0, lt=1.0, description="momentum of sgd")
    weight_decay: Number = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="L2 penalty added to the gradient; of adamw: share of the weights, times the rate, that each step "
        "removes",
    )
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="decay of adam's and adamw's first and second moment")
    eps: Number = Field(1e-8, gt=0.0, le=1e6, description="added to adam's and adamw's denominator")

    def unused(self) -> dict[str, str]:
        """Return the keys that have a value but no effect, with the reason and the way out, for messages."""
        found = {}
        if self.momentum and self.name != "sgd":
            found["momentum"] = f"{self.name} does not use it (see betas). Fix: remove it, or set name to sgd."
        falls = "optimizer.schedule is {0}. Fix: remove it, or set optimizer.schedule to {1}."
        if self.schedule_rounds is not None and self.schedule == "constant":
            found["schedule_rounds"] = falls.format(self.schedule, "cosine, linear or step")
        if self.schedule != "step":
            if self.step_rounds is not None:
                found["step_rounds"] = falls.format(self.schedule, "step")
            if self.step_factor != default_of("step_factor"):
                found["step_factor"] = falls.format(self.schedule, "step")
        return found

    def lengths(self, rounds: int) -> dict[str, int]:
        """Return the lengths that a run of this many rounds fills in, by key; none for a constant rate."""
        filled: dict[str, int] = {}
        if self.schedule != "constant" and self.schedule_rounds is None:
            filled["schedule_rounds"] = rounds
        if self.schedule == "step" and self.step_rounds is None:
            filled["step_rounds"] = math.ceil((self.schedule_rounds or rounds) / PARTS)
        return filled


class ModelUpdate(UpdateConfig):
    """Entry of `optimizer.per_model`: the keys that are given in place of those of section `optimizer`.

    Null stands for the value of section `optimizer`.
    """

    def given(self) -> dict[str, Any]:
        """Return the keys that are given, with their values."""
        return {
            key: value
            for key in type(self).model_fields
            if key in self.model_fields_set and (value := getattr(self, key)) is not None
        }

    @model_serializer(mode="plain")
    def _given_only(self) -> dict[str, Any]:
        return self.given()


def default_of(key: str) -> Any:
    """Return the default of a key."""
    return UpdateConfig.model_fields[key].default
