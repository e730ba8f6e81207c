"""Methods: one class of options per learning method.

To add a method, write its class of options here, its file in `methods/`, and its line in `methods.METHODS`.
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedh2l_mpi.config.section import NO_SWITCH, KindSection, Natural, Number, problem, refuse

Weight = Annotated[float, Field(ge=0.0, le=1e6), NO_SWITCH]
# Keys of several methods.
Publish = Annotated[
    Literal["start", "after_local"],
    Field(description="start of a round's exchange: before the local phase, which then hides it, or after it"),
]
WeightCe = Annotated[Weight, Field(description="w_ce, weight of the cross-entropy on the seed set")]
WarmupRounds = Annotated[
    Natural, Field(description="first rounds without an exchange, on private data and seed labels [rounds]")
]


class MethodConfig(KindSection):
    """Section `method`: how participants learn. Every method makes E + M optimiser steps per round."""

    kind_key = "name"
    noun = "method"

    name: str = Field(
        "fedh2l", description="learning method; `package.module:Class` is your own, which has every method's keys"
    )
    local_steps: Natural = Field(10, description="E, optimiser steps on private data per round [steps]")
    mutual_steps: Natural = Field(10, description="M, optimiser steps on private and seed data per round [steps]")

    @classmethod
    def class_of(cls, kind: object) -> type[Any] | None:
        """Class of a method's options; any `package.module:Class` has those of a method of the user's own."""
        module, colon, name = kind.partition(":") if isinstance(kind, str) else ("", "", "")
        return OwnMethodOptions if colon and module and name else super().class_of(kind)

    @classmethod
    def classes(cls) -> list[type[Any]]:
        """Options of all methods, those of a method of the user's own included."""
        return [*super().classes(), OwnMethodOptions]

    @classmethod
    def unknown_kind(cls, kind: object) -> str:
        """Text of the message about an unknown method."""
        near = difflib.get_close_matches(str(kind), cls.kinds, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"got {kind!r}; known: {', '.join(cls.kinds)}, or your own as package.module:Class{hint}"

    @classmethod
    def unused_key(cls, key: str, kind: str) -> str:
        """Reason why this method refuses a key of others."""
        return (
            f"options are for your own method, not for {kind!r}" if key == "options" else super().unused_key(key, kind)
        )


class CombineOptions(MethodConfig):
    """Group of the methods that combine a private and a seed gradient."""

    combine: Literal["gem", "project", "pcgrad", "sum", "gem_neighbours"] = Field(
        "gem",
        description="rule that makes one step of the private and the seed gradient; gem_neighbours: with a constraint "
        "for each neighbour",
    )


class DistillationOptions(MethodConfig):
    """Group of the methods that publish posteriors and distil those of the neighbours."""

    publish: Publish = "start"
    temperature: Number = Field(1.0, ge=0.01, le=1000.0, description="T, softens the exchanged posteriors")
    weight_kd: Weight = Field(1.0, description="w_kd, weight of the mutual distillation")


class IndependentOptions(MethodConfig, kind="independent"):
    """Options of `independent`."""


class SeedSupervisedOptions(CombineOptions, kind="seed_supervised"):
    """Options of `seed_supervised`."""

    weight_ce: WeightCe = 1.0

    @model_validator(mode="after")
    def _has_no_neighbours(self) -> "SeedSupervisedOptions":
        if self.combine == "gem_neighbours":
            text = f"gem_neighbours needs neighbours, but {self.name!r} has none to constrain. Fix: use gem."
            refuse(problem("combine", self.combine, text))
        return self


class PooledOptions(SeedSupervisedOptions, kind="pooled"):
    """Options of `pooled`."""


class FedH2LOptions(CombineOptions, DistillationOptions, kind="fedh2l"):
    """Options of `fedh2l`."""

    weight_ce: WeightCe = 1.0
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = Field(
        "forward_kl", description="divergence between a teacher's and the own posterior; forward_kl: KL(teacher || own)"
    )
    teachers: Literal["each", "mean", "seed_accuracy", "confidence", "median", "trimmed_mean"] = Field(
        "each",
        description="teachers made of the neighbours' posteriors: each (the mean of all divergences), mean (the "
        "divergence to the mean), each weighted by its seed_accuracy or confidence, the median, or the trimmed_mean",
    )
    warmup_rounds: WarmupRounds = 0
    ramp_rounds: Natural = Field(
        0, description="rounds after the warm-up in which w_kd rises linearly to its value [rounds]"
    )


class DmlOptions(DistillationOptions, kind="dml"):
    """Options of `dml`."""

    weight_ce: WeightCe = 1.0


class FedMDOptions(MethodConfig, kind="fedmd"):
    """Options of `fedmd`."""

    warmup_rounds: WarmupRounds = 5


class DistributedDistillationOptions(DistillationOptions, kind="distributed_distillation"):
    """Options of `distributed_distillation`."""


class DPsgdOptions(MethodConfig, kind="d_psgd"):
    """Options of `d_psgd`."""

    publish: Publish = "after_local"


class FedAvgOptions(MethodConfig, kind="fedavg"):
    """Options of `fedavg`."""


class FedProxOptions(FedAvgOptions, kind="fedprox"):
    """Options of `fedprox`."""

    proximal: Weight = Field(0.01, description="mu, weight of the pull towards the last average")


def _all_options() -> tuple[type[MethodConfig], ...]:
    """Options of all methods as base classes, FedH2L's first: where defaults differ, its own win."""
    every: list[type[MethodConfig]] = list(dict.fromkeys([FedH2LOptions, *MethodConfig.kinds.values()]))
    return tuple(one for one in every if not any(one in other.__mro__[1:] for other in every))


class OwnMethodOptions(*_all_options()):  # type: ignore[misc]
    """Options of a method of the user's own: it may build on any method, so it has the keys of all."""

    kind_name = "package.module:Class"

    options: dict[str, Any] = Field({}, description="options of your own method, passed to it unchanged")

    @model_validator(mode="after")
    def _has_no_neighbours(self) -> "OwnMethodOptions":
        # The method's class is not known here; `methods.build` asks it whether it constrains each neighbour.
        return self
