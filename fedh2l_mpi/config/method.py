"""How participants learn: graph, method, optimiser, evaluation."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config.section import Count, Natural, Number, Section, Share, Switch, check_kind_keys


class TopologyConfig(Section):
    """Who is whose neighbour."""

    kind: Literal["ring", "complete", "star", "random_regular", "erdos_renyi", "small_world", "torus", "edge_list"] = (
        Field("ring", description="family of graphs; star: participant 0 is the hub")
    )
    redraw_every: Count | None = Field(
        None, description="rounds between redraws of a random graph from the seed [rounds]; null: static"
    )
    degree: Natural | None = Field(
        None, description="neighbours each, random_regular (3); nearest neighbours on the ring, small_world (4)"
    )
    probability: Number | None = Field(
        None, ge=0.0, le=1.0, description="of an edge, erdos_renyi (0.5); of rewiring an edge, small_world (0.1)"
    )
    path: str | None = Field(None, description="edge list: a text file with one edge 'i j' a line, '#' comments")
    connected: Switch = Field(True, description="whether a graph that is not connected is redrawn, then refused")
    tries: Count = Field(100, description="seeded draws before a random graph that is not connected is refused")

    @model_validator(mode="after")
    def _keys_of_kind(self) -> "TopologyConfig":
        check_kind_keys(
            self,
            {
                "random_regular": {"degree": 3},
                "small_world": {"degree": 4, "probability": 0.1},
                "erdos_renyi": {"probability": 0.5},
                "edge_list": {"path": ...},
            },
        )
        if self.redraw_every is not None and self.kind not in RANDOM_KINDS:
            raise PydanticCustomError(
                "unused_key",
                "redraw_every: got {value}, but kind {kind} is not random (random: {random}); set it to null",
                {"value": self.redraw_every, "kind": repr(self.kind), "random": ", ".join(RANDOM_KINDS)},
            )
        return self


RANDOM_KINDS = ("erdos_renyi", "random_regular", "small_world")


# The keys that a method uses beyond the steps, and their defaults.
_DISTILLATION: dict[str, object] = {"temperature": 1.0, "weight_kd": 1.0, "publish": "start"}
METHOD_KEYS: dict[str, dict[str, object]] = {
    "independent": {},
    "seed_supervised": {"weight_ce": 1.0, "combine": "gem"},
    "pooled": {"weight_ce": 1.0, "combine": "gem"},
    "fedh2l": {
        **_DISTILLATION,
        "weight_ce": 1.0,
        "combine": "gem",
        "divergence": "forward_kl",
        "teachers": "each",
        "warmup_rounds": 0,
        "ramp_rounds": 0,
    },
    "dml": {**_DISTILLATION, "weight_ce": 1.0},
    "fedmd": {"warmup_rounds": 5},
    "distributed_distillation": dict(_DISTILLATION),
    "d_psgd": {"publish": "after_local"},
    "fedavg": {},
    "fedprox": {"proximal": 0.01},
}


class MethodConfig(Section):
    """How participants learn. Every method makes the same number of optimiser steps a round, E + M."""

    name: str = Field(
        "fedh2l", description="learning method: " + ", ".join(METHOD_KEYS) + ", or your own as package.module:Class"
    )
    local_steps: Natural = Field(10, description="E, optimiser steps on private data a round [steps]")
    mutual_steps: Natural = Field(10, description="M, steps on private and seed data a round [steps]")
    publish: Literal["start", "after_local"] | None = Field(
        None, description="when a round's exchange starts: before or after the local phase (start; d_psgd: after_local)"
    )
    temperature: Number | None = Field(
        None, ge=0.01, le=1000.0, description="T, softens the exchanged posteriors (1.0)"
    )
    weight_ce: Number | None = Field(
        None, ge=0.0, le=1e6, description="w_ce, weight of the seed set's cross-entropy (1.0)"
    )
    weight_kd: Number | None = Field(None, ge=0.0, le=1e6, description="w_kd, weight of the mutual distillation (1.0)")
    combine: Literal["gem", "project", "pcgrad", "sum", "gem_neighbours"] | None = Field(
        None,
        description="how the private and the seed gradient become one step (gem); gem_neighbours: a constraint for "
        "every neighbour",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] | None = Field(
        None, description="between a teacher's posterior and the own one (forward_kl: KL(teacher || own))"
    )
    teachers: Literal["each", "mean", "seed_accuracy", "confidence", "median", "trimmed_mean"] | None = Field(
        None,
        description="what the neighbours teach: each (mean of their divergences), mean (divergence to their mean), "
        "weighted by seed_accuracy or confidence, median, trimmed_mean (each)",
    )
    warmup_rounds: Natural | None = Field(
        None, description="first rounds without an exchange, on private data and seed labels (0; fedmd: 5) [rounds]"
    )
    ramp_rounds: Natural | None = Field(
        None, description="rounds after the warm-up in which w_kd rises linearly to its value (0) [rounds]"
    )
    proximal: Number | None = Field(
        None, ge=0.0, le=1e6, description="mu, weight of fedprox's pull towards the last average (0.01)"
    )
    options: dict[str, Any] | None = Field(None, description="for your own method: passed on as they are")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        module, colon, kind = name.partition(":")
        if name in METHOD_KEYS or (colon and module and kind):
            return name
        near = difflib.get_close_matches(name, METHOD_KEYS, n=1)
        raise PydanticCustomError(
            "unknown_name",
            "got {name}; known: {known}, or your own as package.module:Class{hint}",
            {
                "name": repr(name),
                "known": ", ".join(METHOD_KEYS),
                "hint": f" (did you mean {near[0]!r}?)" if near else "",
            },
        )

    @model_validator(mode="after")
    def _keys_of_method(self) -> "MethodConfig":
        uses = METHOD_KEYS
        if self.name not in METHOD_KEYS:
            # A method of one's own may be made of any of these: it has all their keys, and options besides.
            every = {key: value for keys in METHOD_KEYS.values() for key, value in keys.items()}
            uses = {**METHOD_KEYS, self.name: {**every, **METHOD_KEYS["fedh2l"], "options": {}}}
        check_kind_keys(self, uses, "name")
        if self.combine == "gem_neighbours" and self.name in METHOD_KEYS and self.name != "fedh2l":
            raise PydanticCustomError(
                "unused_key",
                "combine: gem_neighbours needs neighbours, but {name} has none to constrain; use gem",
                {"name": repr(self.name)},
            )
        if self.options is not None and self.name in METHOD_KEYS:
            raise PydanticCustomError(
                "unused_key", "options: are for your own method, not for {name}; remove them", {"name": repr(self.name)}
            )
        return self


class OptimizerConfig(Section):
    """One optimiser per participant, kept for the whole run."""

    name: Literal["adam", "sgd"] = Field("adam", description="update rule")
    lr: Number = Field(1e-3, gt=0.0, le=1e6, description="learning rate")
    momentum: Number = Field(0.0, ge=0.0, lt=1.0, description="of sgd")
    weight_decay: Number = Field(0.0, ge=0.0, le=1e6, description="L2 penalty added to the gradient")
    betas: tuple[Annotated[Number, Field(ge=0.0, lt=1.0)], Annotated[Number, Field(ge=0.0, lt=1.0)]] = Field(
        (0.9, 0.999), description="decay of adam's first and second moment"
    )
    eps: Number = Field(1e-8, gt=0.0, le=1e6, description="added to adam's denominator")
    batch_size: Count = Field(32, description="private minibatch [samples]")
    seed_batch_size: Count = Field(32, description="seed minibatch of a mutual step [samples]")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of a model's products and convolutions; bfloat16 is for GPUs and CPUs that have it in hardware: "
        "weights, losses and updates stay float32, and like models do not step together",
    )

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> "OptimizerConfig":
        if self.momentum and self.name != "sgd":
            raise PydanticCustomError(
                "unused_key", "momentum: got {value}, but adam does not use it (see betas)", {"value": self.momentum}
            )
        return self


class EvaluationConfig(Section):
    """When and on what participants are tested."""

    every: Count = Field(5, description="rounds between evaluations [rounds]; the last round is always evaluated")
    validation_share: Share = Field(0.1, description="share of a participant's private data kept for choosing a round")
    test_samples_per_domain: Count | None = Field(
        None, description="test samples in each domain, the same originals in every domain; null: all"
    )
    batch_size: Count = Field(128, description="samples in one forward pass without gradients [samples]")
