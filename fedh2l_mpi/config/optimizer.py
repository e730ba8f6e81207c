"""Optimiser with its schedule and the average of the weights, and evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedh2l_mpi.config.section import NO_SWITCH, Count, Number, Section, Share, problem, refuse

# In a short run, the average forgets within about 50 steps; in a longer one, within an eighth of the run.
SHORT_RUN_ROUNDS, SHORT_RUN_DECAY, RUN_PARTS = 20, 0.98, 8


class OptimizerConfig(Section):
    """Section `optimizer`: each participant has one optimiser, for the whole run."""

    name: Literal["adam", "sgd"] = Field("adam", description="update rule")
    lr: Number = Field(1e-3, gt=0.0, le=1e6, description="learning rate")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate over the steps; cosine: it falls to 0 along half a cosine"
    )
    schedule_rounds: Count | None = Field(
        None,
        description="rounds until cosine reaches 0, where it stays [rounds]; null: the run's rounds when it starts",
    )
    momentum: Number = Field(0.0, ge=0.0, lt=1.0, description="momentum of sgd")
    weight_decay: Number = Field(0.0, ge=0.0, le=1e6, description="L2 penalty added to the gradient")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="decay of adam's first and second moment")
    eps: Number = Field(1e-8, gt=0.0, le=1e6, description="added to adam's denominator")
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
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format of a model's matrix products and convolutions; bfloat16 is for GPUs and CPUs with "
        "hardware for it: weights, losses and updates stay float32, and devices.batching has no effect",
    )

    @model_validator(mode="after")
    def _keys_with_a_meaning(self) -> "OptimizerConfig":
        unused = []
        if self.momentum and self.name != "sgd":
            text = f"got {self.momentum}, but adam does not use it (see betas). Fix: remove it, or set name to sgd."
            unused.append(problem("momentum", self.momentum, text))
        if self.average_decay is not None and self.average == "none":
            text = (
                f"got {self.average_decay}, but optimizer.average is none. Fix: remove it, or set optimizer.average "
                "to ema."
            )
            unused.append(problem("average_decay", self.average_decay, text))
        if self.schedule_rounds is not None and self.schedule == "constant":
            text = (
                f"got {self.schedule_rounds}, but optimizer.schedule is constant. Fix: remove it, or set "
                "optimizer.schedule to cosine."
            )
            unused.append(problem("schedule_rounds", self.schedule_rounds, text))
        if unused:
            refuse(*unused)
        return self

    def resolved(self, rounds: int, round_steps: int) -> "OptimizerConfig":
        """Return this section with the decay of the average and the schedule's length filled in, where they are used.

        Parameters
        ----------
        rounds : int
            Rounds of the run when it starts. A run that is extended keeps what it started with.
        round_steps : int
            E + M, optimiser steps of a round.
        """
        filled: dict[str, float] = {}
        if self.average == "ema" and self.average_decay is None:
            filled["average_decay"] = default_decay(rounds, round_steps)
        if self.schedule == "cosine" and self.schedule_rounds is None:
            filled["schedule_rounds"] = rounds
        return self.model_copy(update=filled)

    def as_started(self, started: "OptimizerConfig") -> "OptimizerConfig":
        """Return this section with what a run filled in when it started, where this section leaves it open.

        Parameters
        ----------
        started : OptimizerConfig
            The resolved section of the run.
        """
        filled: dict[str, float | None] = {}
        if self.average == started.average and self.average_decay is None:
            filled["average_decay"] = started.average_decay
        if self.schedule == started.schedule and self.schedule_rounds is None:
            filled["schedule_rounds"] = started.schedule_rounds
        return self.model_copy(update=filled)


def default_decay(rounds: int, round_steps: int) -> float:
    """Return the decay of the averaged weights for a run of this length."""
    if rounds <= SHORT_RUN_ROUNDS:
        return SHORT_RUN_DECAY
    return max(0.0, 1 - RUN_PARTS / max(1, rounds * round_steps))


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
    batch_size: Count = Field(128, description="samples in one forward pass without gradients [samples]")
    calibration: Literal["none", "seed_set"] = Field(
        "none",
        description="temperature of the posteriors that loss and calibration are measured on; seed_set: each "
        "participant fits it at every evaluation, on the seed samples of the next round, in views that are new to it",
    )
