"""Methods: one class of options per learning method.

To add a method, write its class of options here, its file in `methods/`, and its line in `methods.METHODS`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedh2l_mpi.config.section import NO_SWITCH, Count, KindSection, Natural, Number, Share, Switch, problem, refuse
from fedh2l_mpi.errors import did_you_mean, shown

Weight = Annotated[float, Field(ge=0.0, le=1e6), NO_SWITCH]
# Keys of several methods.
Publish = Annotated[
    Literal["start", "after_local"],
    Field(description="start of a round's exchange: before the local phase, which then hides it, or after it"),
]
WeightKd = Annotated[Weight, Field(description="w_kd, weight of the mutual distillation")]
# Teachers that count where the seed label says so.
CONDITIONAL = ("right", "better")
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
    local_steps: Natural = Field(10, description="E, optimiser steps per round while the messages travel [steps]")
    mutual_steps: Natural = Field(
        10, description="M, optimiser steps per round after that, with the seed set if the method uses it [steps]"
    )
    prior_correction: Literal["none", "balanced"] = Field(
        "balanced",
        description="balanced: tau log of the training labels' prior is added to the logits in every loss on labels "
        "(on the seed set: of the seed labels' prior, in the distillation too), so that rare classes are not held down",
    )
    prior_strength: Number = Field(1.0, ge=0.0, le=1e3, description="tau, strength of the prior correction")

    @model_validator(mode="after")
    def _strength_of_a_correction(self) -> "MethodConfig":
        default = type(self).model_fields["prior_strength"].default
        if self.prior_correction == "none" and self.prior_strength != default:
            text = f"got {self.prior_strength}, but prior_correction is none. Fix: remove it, or set that to balanced."
            refuse(problem("prior_strength", self.prior_strength, text))
        return self

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
        hint = did_you_mean(kind, cls.kinds)
        return f"got {shown(kind)}; known: {', '.join(cls.kinds)}, or your own as package.module:Class{hint}"

    @classmethod
    def unused_key(cls, key: str, kind: str) -> str:
        """Reason why this method refuses a key of others."""
        return (
            f"options are for your own method, not for {kind!r}" if key == "options" else super().unused_key(key, kind)
        )


class LabelOptions(MethodConfig):
    """Group of the methods that weigh the cross-entropy on the seed labels."""

    weight_ce: Weight = Field(1.0, description="w_ce, weight of the cross-entropy on the seed set")


class LocalLabelOptions(MethodConfig):
    """Group of the methods whose steps before the mutual phase may use the seed labels."""

    local_labels: Literal["private", "private_and_seed"] = Field(
        "private",
        description="labels that the local steps use; private_and_seed: a private and a seed minibatch in every step",
    )

    @property
    def joins_minibatches(self) -> bool:
        """True if one forward and backward pass holds a private and a seed minibatch."""
        return self.local_labels == "private_and_seed"


class CombineOptions(LabelOptions, LocalLabelOptions):
    """Group of the methods that combine a private and a seed gradient."""

    combine: Literal["gem", "project", "pcgrad", "sum", "gem_neighbours", "joint"] = Field(
        "joint",
        description="rule that makes one step of the private and the seed gradient; gem_neighbours: with a constraint "
        "for each neighbour; joint: the gradient of the summed losses, from one pass of both minibatches",
    )

    @property
    def joins_minibatches(self) -> bool:
        """True if one forward and backward pass holds a private and a seed minibatch."""
        return self.combine == "joint"


class PublishOptions(MethodConfig):
    """Group of the methods that distil what the neighbours publish before or after the local phase."""

    publish: Publish = "start"


class PosteriorOptions(PublishOptions):
    """Group of the methods that publish posteriors, so that `uint8` may encode them."""


class DistillationOptions(PosteriorOptions):
    """Group of the methods that publish posteriors and distil those of the neighbours."""

    temperature: Number = Field(1.0, ge=0.01, le=1000.0, description="T, softens the exchanged posteriors")
    weight_kd: WeightKd = 1.0


class IndependentOptions(MethodConfig, kind="independent"):
    """Options of `independent`."""


class SeedSupervisedOptions(CombineOptions, kind="seed_supervised"):
    """Options of `seed_supervised`."""

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

    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = Field(
        "forward_kl", description="divergence between a teacher's and the own posterior; forward_kl: KL(teacher || own)"
    )
    teachers: Literal[
        "each", "mean", "seed_accuracy", "confidence", "median", "trimmed_mean", "right", "better", "agreement"
    ] = Field(
        "each",
        description="teachers made of the neighbours' posteriors: each (the mean of all divergences), mean (the "
        "divergence to the mean), each weighted by its seed_accuracy or confidence, the median, the trimmed_mean, or "
        "on each sample only those that are right, those that are right and better than the own posterior, or those "
        "in agreement with most",
    )
    backoff: Switch = Field(
        False,
        description="with teachers right or better: where no teacher counts, the seed label has the weight w_ce + w_kd",
    )
    warmup_rounds: WarmupRounds = 0
    ramp_rounds: Natural = Field(
        0, description="rounds after the warm-up in which w_kd rises linearly to its value [rounds]"
    )

    @model_validator(mode="after")
    def _backs_off_to_labels(self) -> "FedH2LOptions":
        if self.backoff and self.teachers not in CONDITIONAL:
            text = f"got true, but teachers {self.teachers!r} count on every sample or without labels. Fix: set it to "
            refuse(problem("backoff", True, f"{text}false, or teachers to {' or '.join(CONDITIONAL)}."))
        return self


class DmlOptions(LabelOptions, DistillationOptions, kind="dml"):
    """Options of `dml`."""


class FedMDOptions(MethodConfig, kind="fedmd"):
    """Options of `fedmd`."""

    warmup_rounds: WarmupRounds = 5


class DistributedDistillationOptions(DistillationOptions, kind="distributed_distillation"):
    """Options of `distributed_distillation`."""


class DPsgdOptions(LocalLabelOptions, kind="d_psgd"):
    """Options of `d_psgd`."""

    publish: Publish = "after_local"


class FedAvgOptions(LocalLabelOptions, kind="fedavg"):
    """Options of `fedavg`."""


class FedProxOptions(FedAvgOptions, kind="fedprox"):
    """Options of `fedprox`."""

    proximal: Weight = Field(0.01, description="mu, weight of the pull towards the last average")


class FdOptions(LocalLabelOptions, kind="fd"):
    """Options of `fd`."""

    weight_kd: WeightKd = 1.0


class FedAvgFinetunedOptions(FedAvgOptions, kind="fedavg_finetuned"):
    """Options of `fedavg_finetuned`."""


class FedProtoOptions(LocalLabelOptions, kind="fedproto"):
    """Options of `fedproto`."""

    weight_prototypes: Weight = Field(1.0, description="lambda, weight of the distance from the prototypes")
    prototype_size: Count = Field(
        64, description="numbers of a prototype; wider or narrower embeddings are projected to as many"
    )


class ProxyOptions(LocalLabelOptions):
    """Group of the methods that exchange the parameters of a second model."""

    proxy_model: str = Field("mlp", description="architecture of the second model, one for all participants")
    proxy_share: Share = Field(
        0.5,
        description="share of the divergence from the other model in the loss of each of a participant's two models; "
        "the rest is the loss on labels",
    )


class ProxyFLOptions(ProxyOptions, kind="proxyfl"):
    """Options of `proxyfl`."""


class FmlOptions(ProxyOptions, kind="fml"):
    """Options of `fml`."""


class DsFlOptions(LocalLabelOptions, PosteriorOptions, kind="ds_fl"):
    """Options of `ds_fl`."""

    publish: Publish = "after_local"
    sharpening: Number = Field(
        0.1, ge=0.01, le=1000.0, description="temperature of the softmax of the mean posterior; below 0.5, it is surer"
    )


class FedDFOptions(LocalLabelOptions, PublishOptions, kind="feddf"):
    """Options of `feddf`."""

    publish: Publish = "after_local"


class KtPflOptions(LocalLabelOptions, PosteriorOptions, kind="kt_pfl"):
    """Options of `kt_pfl`."""

    publish: Publish = "after_local"
    coefficient_rate: Weight = Field(0.1, description="step of gradient descent on the teachers' weights")
    coefficient_pull: Weight = Field(0.7, description="rho, weight of the teachers' pull towards equal weights")


def _all_options() -> tuple[type[MethodConfig], ...]:
    """Options of all methods as base classes, FedH2L's first: where defaults differ, its own win."""
    every: list[type[MethodConfig]] = list(dict.fromkeys([FedH2LOptions, *MethodConfig.kinds.values()]))
    return tuple(one for one in every if not any(one in other.__mro__[1:] for other in every))


class OwnMethodOptions(*_all_options()):  # type: ignore[misc]
    """Options of a method of the user's own: it may build on any method, so it has the keys of all."""

    kind_name = "package.module:Class"

    options: dict[str, Any] = Field({}, description="values of the options that your own method declares")

    @property
    def joins_minibatches(self) -> bool:
        """True if a pass may hold two minibatches, whichever method this one builds on."""
        return self.combine == "joint" or self.local_labels == "private_and_seed"

    @model_validator(mode="after")
    def _has_no_neighbours(self) -> "OwnMethodOptions":
        # The method's class is not known here; `methods.build` asks it whether it constrains each neighbour.
        return self
