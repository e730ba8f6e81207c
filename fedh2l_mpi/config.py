"""The configuration: validated and immutable; every field has a unit, a range and one line of meaning."""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.errors import UserError

# Strict: `rounds: true` is no number, and `seed: "7"` no whole one. The bound keeps every product of two within int64.
Count = Annotated[int, Field(strict=True, ge=1, le=2**31)]
Natural = Annotated[int, Field(strict=True, ge=0, le=2**31)]
Switch = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _fill(section: Section, **defaults: object) -> None:
    """Put a default where a key is null. A frozen section's own validators may still do so."""
    for key, value in defaults.items():
        if getattr(section, key) is None:
            object.__setattr__(section, key, value)


def _check_kind_keys(section: Section, uses: Mapping[str, Mapping[str, object]], kind_key: str = "kind") -> Section:
    """Refuse a key that the section's kind does not use, and fill in the defaults of the keys that it does.

    Parameters
    ----------
    uses : mapping
        From each kind to its own keys and their defaults; `...` as a default means the key must be given.
    kind_key : str
        The key that holds the kind.
    """
    kind: str = getattr(section, kind_key)
    what = "method" if kind_key == "name" else kind_key
    own = uses.get(kind, {})
    for key in sorted({key for keys in uses.values() for key in keys}):
        value = getattr(section, key)
        if key not in own and value is not None:
            users = ", ".join(sorted(k for k, keys in uses.items() if key in keys))
            raise PydanticCustomError(
                "unused_key",
                "{key}: got {value}, but {what} {kind} does not use it (used by: {users}); remove it or set it to null",
                {"key": key, "value": repr(value), "what": what, "kind": repr(kind), "users": users},
            )
        if key in own and value is None:
            if own[key] is ...:
                raise PydanticCustomError(
                    "needed_key",
                    "{key}: must be given for {what} {kind}",
                    {"key": key, "what": what, "kind": repr(kind)},
                )
            _fill(section, **{key: own[key]})
    return section


# Rotations of data that have no domains of their own.
DOMAINS, ROTATION_STEP_DEG = 4, 20.0


class PartitionConfig(Section):
    """Who holds which training samples."""

    kind: Literal["domains", "dirichlet", "shards", "quantity", "iid"] = Field(
        "domains",
        description="domains: equal IID shares, participant i holds domain i mod domains; dirichlet, shards: "
        "label skew; quantity: unequal sizes; iid: equal shares, every domain mixed in each",
    )
    domains: Count | None = Field(
        None, description="number of domains D (rotations, 4); 1 leaves the images as they are; a pack has its own"
    )
    rotation_step_deg: float | None = Field(
        None,
        ge=-180.0,
        le=180.0,
        description="domain d is rotated by d times this angle (20) [degrees, counter-clockwise]; not for a pack",
    )
    samples_per_participant: Count | None = Field(
        None, description="training samples per participant (mean for kind quantity), seed share included; null: all"
    )
    alpha: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="Dirichlet concentration, dirichlet (0.5) and quantity (1.0); smaller is more skewed",
    )
    shards_per_participant: Count | None = Field(
        None, description="label-sorted shards dealt to each participant, kind shards (2)"
    )

    @model_validator(mode="after")
    def _keys_of_kind(self) -> "PartitionConfig":
        _check_kind_keys(
            self,
            {"dirichlet": {"alpha": 0.5}, "quantity": {"alpha": 1.0}, "shards": {"shards_per_participant": 2}},
        )
        domains, step = (
            self.domains or DOMAINS,
            ROTATION_STEP_DEG if self.rotation_step_deg is None else self.rotation_step_deg,
        )
        if abs((domains - 1) * step) >= 180.0:
            raise PydanticCustomError(
                "rotation_range",
                "{key}: {domains} domains of {step} degrees reach {total}, must be under 180 (a 6 turned round is a 9)",
                {"key": "rotation_step_deg", "domains": domains, "step": step, "total": (domains - 1) * step},
            )
        return self


class DataConfig(Section):
    """Where the samples come from."""

    name: Literal["digits", "mnist", "fashion_mnist", "pack"] = Field(
        "digits", description="data set; pack: photographs in one HDF5 file, made by `python -m fedh2l_mpi pack`"
    )
    root: str | None = Field(
        None, description="folder of the IDX files, or the pack; null: $FEDH2L_DATA/<name>. digits needs none"
    )
    test_share: float | None = Field(
        None, gt=0.0, lt=1.0, description="share of a pack's images kept for testing, the same for every seed (0.2)"
    )
    augmentation: Literal["none", "affine", "photo"] = Field(
        "none",
        description="of private minibatches, drawn anew for each: affine (rotation, scale, shift: see views), photo "
        "(random resized crop, flip, colour)",
    )
    partition: PartitionConfig = PartitionConfig()

    @model_validator(mode="after")
    def _keys_of_name(self) -> "DataConfig":
        if self.name == "digits" and self.root is not None:
            raise PydanticCustomError(
                "unused_key",
                "root: got {root}, but digits ship with scikit-learn; set it to null",
                {"root": repr(self.root)},
            )
        if self.name != "pack":
            if self.test_share is not None:
                raise PydanticCustomError(
                    "unused_key",
                    "test_share: got {value}, but {name} has its own test part; set it to null",
                    {"value": self.test_share, "name": repr(self.name)},
                )
            # A copy: the section may be the default that all configs share.
            partition = self.partition.model_copy()
            _fill(partition, domains=DOMAINS, rotation_step_deg=ROTATION_STEP_DEG)
            object.__setattr__(self, "partition", partition)
            return self
        for key in ("domains", "rotation_step_deg"):
            value = getattr(self.partition, key)
            if value is not None:
                raise PydanticCustomError(
                    "unused_key",
                    "partition.{key}: got {value}, but a pack brings its own domains; set it to null",
                    {"key": key, "value": value},
                )
        _fill(self, test_share=0.2)
        return self


class SeedSetConfig(Section):
    """The small labelled set that every participant holds and on which posteriors are exchanged."""

    share: Share = Field(0.2, description="share of every participant's samples that goes to the seed set")
    max_samples: Count | None = Field(2000, description="cap on the pooled seed set [samples]; null: none")
    samples_per_round: Count | None = Field(
        None, description="seed samples S drawn for a round's exchange [samples]; null: the whole seed set"
    )
    labelled: Switch = Field(True, description="whether the seed labels are used; false drops the seed cross-entropy")
    views: Literal["none", "affine", "mixup", "both", "photo"] = Field(
        "affine",
        description="how a round's seed samples are transformed, the same for every participant: affine (rotation, "
        "scale, shift), mixup (of pairs), both, photo (crop, flip, colour)",
    )
    view_rotation_deg: float | None = Field(
        None, ge=0.0, le=180.0, description="largest turn either way, affine and both (15) [degrees]"
    )
    view_scale: float | None = Field(
        None, ge=0.0, lt=1.0, description="largest change of size either way, affine and both (0.1)"
    )
    view_shift: float | None = Field(
        None, ge=0.0, lt=1.0, description="largest shift along each axis, affine and both (0.05) [of the image's side]"
    )
    mixup_alpha: float | None = Field(
        None, gt=0.0, le=1e3, description="a pair's weights are Beta(alpha, alpha), mixup and both (0.4)"
    )

    @model_validator(mode="after")
    def _keys_of_views(self) -> "SeedSetConfig":
        affine: dict[str, object] = {"view_rotation_deg": 15.0, "view_scale": 0.1, "view_shift": 0.05}
        mixup: dict[str, object] = {"mixup_alpha": 0.4}
        uses = {"affine": affine, "mixup": mixup, "both": {**affine, **mixup}}
        _check_kind_keys(self, uses, kind_key="views")
        return self


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
    probability: float | None = Field(
        None, ge=0.0, le=1.0, description="of an edge, erdos_renyi (0.5); of rewiring an edge, small_world (0.1)"
    )
    path: str | None = Field(None, description="edge list: a text file with one edge 'i j' a line, '#' comments")
    connected: Switch = Field(True, description="whether a graph that is not connected is redrawn, then refused")
    tries: Count = Field(100, description="seeded draws before a random graph that is not connected is refused")

    @model_validator(mode="after")
    def _keys_of_kind(self) -> "TopologyConfig":
        _check_kind_keys(
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
    temperature: float | None = Field(None, ge=0.01, le=1000.0, description="T, softens the exchanged posteriors (1.0)")
    weight_ce: float | None = Field(
        None, ge=0.0, le=1e6, description="w_ce, weight of the seed set's cross-entropy (1.0)"
    )
    weight_kd: float | None = Field(None, ge=0.0, le=1e6, description="w_kd, weight of the mutual distillation (1.0)")
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
    proximal: float | None = Field(
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
        _check_kind_keys(self, uses, "name")
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
    lr: float = Field(1e-3, gt=0.0, le=1e6, description="learning rate")
    momentum: float = Field(0.0, ge=0.0, lt=1.0, description="of sgd")
    weight_decay: float = Field(0.0, ge=0.0, le=1e6, description="L2 penalty added to the gradient")
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = Field(
        (0.9, 0.999), description="decay of adam's first and second moment"
    )
    eps: float = Field(1e-8, gt=0.0, le=1e6, description="added to adam's denominator")
    batch_size: Count = Field(32, description="private minibatch [samples]")
    seed_batch_size: Count = Field(32, description="seed minibatch of a mutual step [samples]")

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


class ExchangeConfig(Section):
    """Messages between ranks."""

    deadline_s: float = Field(300.0, gt=0.0, le=1e9, description="longest wait for a rank before the run is ended [s]")


class DevicesConfig(Section):
    """Where the arithmetic runs."""

    kind: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where a device is visible, else CPU")
    threads: Count = Field(1, description="intra-op threads of a rank; other counts give other last bits")
    share: Switch = Field(False, description="whether several ranks of a node may use one GPU")
    map: tuple[Natural, ...] | None = Field(
        None, description="device of each rank of a node, by node-local rank; null: 0, 1, 2, ..."
    )

    @model_validator(mode="after")
    def _map_of_cuda(self) -> "DevicesConfig":
        if self.kind == "cpu" and self.map is not None:
            raise PydanticCustomError(
                "unused_key", "map: got {map}, but kind 'cpu' does not use it; set it to null", {"map": list(self.map)}
            )
        return self


class CheckpointConfig(Section):
    """What a killed run can go on from."""

    every: Count | None = Field(
        10, description="rounds between checkpoints [rounds]; null: only on request, when stopped, and at the end"
    )
    keep: Annotated[int, Field(strict=True, ge=2, le=2**31)] = Field(
        2, description="newest checkpoints that are kept; two at least, as the newest may turn out to be damaged"
    )


class RunConfig(Section):
    """When a run ends."""

    max_wall: float | str | None = Field(
        None,
        description="stop in order, with a checkpoint, before this time since the start: seconds, or as H:MM:SS, 90m "
        "or 2h; null: no limit",
    )

    @field_validator("max_wall")
    @classmethod
    def _is_a_time(cls, value: float | str | None) -> float | str | None:
        try:
            if value is not None:
                parse_seconds(str(value))
        except ValueError as error:
            raise PydanticCustomError("max_wall", "{why}", {"why": str(error)}) from None
        return value

    @property
    def max_wall_s(self) -> float | None:
        """`max_wall` in seconds."""
        return None if self.max_wall is None else parse_seconds(str(self.max_wall))


def parse_seconds(text: str) -> float:
    """A time such as `1:30:00`, `1-12:00:00`, `90m`, `2h` or `45.5` in seconds.

    Raises
    ------
    ValueError
        If it is none of these, or not more than 0.
    """
    with_unit = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    with_colons = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text.strip())
    if with_unit:
        seconds = float(with_unit[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[with_unit[2]]
    elif with_colons:
        days, first, second, third = (int(part or 0) for part in with_colons.groups())
        # As in Slurm: H:MM:SS, days-H:MM(:SS), but M:SS.
        is_hours = with_colons[4] is not None or with_colons[1] is not None
        seconds = days * 86400.0 + (first * 3600 + second * 60 + third if is_hours else first * 60 + second)
    else:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError("must be a time of more than 0, such as 5400, 1:30:00, 90m or 2h")
    return seconds


class Config(Section):
    """A whole run. Every default together is the built-in run of scikit-learn's digits on a ring."""

    participants: Count | None = Field(None, description="P; null: as many as MPI ranks, 4 without mpirun")
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = Field(0, description="of every random stream of the run")
    rounds: Count = Field(40, description="communication rounds [rounds]")
    data: DataConfig = DataConfig()
    seed_set: SeedSetConfig = SeedSetConfig()
    models: tuple[str, ...] | dict[int, str] = Field(
        ("lenet5", "mlp", "cnn"),
        description="architectures: a list cycled over the participants, or a map from every participant to one; "
        "lenet5, mlp, cnn, resnet8, resnet18, mobilenet, vit, torchvision:NAME or package.module:Class",
    )
    weights: dict[str, str] = Field(
        {}, description="pretrained weights: a map from an architecture to the file of its state dict"
    )
    topology: TopologyConfig = TopologyConfig()
    method: MethodConfig = MethodConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()
    devices: DevicesConfig = DevicesConfig()

    @field_validator("models", mode="before")
    @classmethod
    def _list_or_map(cls, models: object) -> object:
        names = list(
            models.values() if isinstance(models, dict) else models if isinstance(models, list | tuple) else []
        )
        keys = list(models) if isinstance(models, dict) else []
        if not names or not all(isinstance(name, str) for name in names) or not all(type(key) is int for key in keys):
            raise PydanticCustomError(
                "models", "must be a list of architectures, or a map from every participant's number to one"
            )
        return models

    def resolved(self, ranks: int, launched: bool) -> "Config":
        """This config with the number of participants filled in.

        Parameters
        ----------
        ranks : int
            MPI processes of the run.
        launched : bool
            Whether an MPI launcher started them; a single process without one hosts 4 participants.

        Raises
        ------
        UserError
            If there are more ranks than participants, or the map of models does not fit the participants.
        """
        participants = self.participants or (ranks if launched else 4)
        if ranks > participants:
            raise UserError(
                f"participants: the config has {participants}, but mpirun started {ranks} ranks; "
                f"use -n {participants} or fewer"
            )
        if isinstance(self.models, dict):
            missing = sorted(set(range(participants)) - set(self.models))
            strange = sorted(set(self.models) - set(range(participants)))
            if missing or strange:
                raise UserError(
                    f"models: a map must name participants 0 to {participants - 1}, each once; "
                    f"missing: {missing or 'none'}, unknown: {strange or 'none'}"
                )
        return self.model_copy(update={"participants": participants})

    @property
    def size(self) -> int:
        """P, the number of participants of a resolved config."""
        if self.participants is None:
            raise RuntimeError("the config is not resolved: call resolved() first")
        return self.participants

    def architecture(self, participant: int) -> str:
        """Name of `participant`'s architecture."""
        if isinstance(self.models, dict):
            return self.models[participant]
        return self.models[participant % len(self.models)]

    def to_yaml(self) -> str:
        """The whole config as YAML text that loads back to an equal config."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)
