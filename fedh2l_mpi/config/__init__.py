"""The configuration: validated, immutable sections; every key has a unit, a range and one line of meaning.

Every room may import it, except `losses`, `rng` and `errors`.
"""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config import architecture, data_files, recipes, yaml_text
from fedh2l_mpi.config.data import DataConfig, PartitionConfig, SeedSetConfig
from fedh2l_mpi.config.data_sets import BroughtData
from fedh2l_mpi.config.execution import (
    CheckpointConfig,
    DevicesConfig,
    EarlyStopConfig,
    ExchangeConfig,
    RunConfig,
    parse_seconds,
)
from fedh2l_mpi.config.faults import FaultsConfig
from fedh2l_mpi.config.method import MethodConfig
from fedh2l_mpi.config.network import NetworkConfig
from fedh2l_mpi.config.optimizer import EvaluationConfig, OptimizerConfig
from fedh2l_mpi.config.section import Count, Section, problem, refuse
from fedh2l_mpi.config.topology import TopologyConfig
from fedh2l_mpi.errors import UserError, did_you_mean, shown

__all__ = [
    "BroughtData",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DevicesConfig",
    "EarlyStopConfig",
    "EvaluationConfig",
    "ExchangeConfig",
    "FaultsConfig",
    "MethodConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "RunConfig",
    "Section",
    "SeedSetConfig",
    "TopologyConfig",
    "data_files",
    "parse_seconds",
]


# A map of name and arguments is stored as its label.
ArchitectureLabel = Annotated[
    str, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "required": [architecture.NAME]}]})
]


class Config(Section):
    """Configuration of a run. The defaults are the built-in run: scikit-learn's digits on a ring."""

    recipe: Literal["standard", "classic"] = Field(
        "standard",
        description="defaults of all other keys: those that are listed (standard), or those of the first revisions "
        "(classic); a key that is given wins",
    )
    participants: Count | None = Field(
        None, description="P, number of participants; null: the number of MPI ranks, or 4 without mpirun"
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = Field(
        0, description="seed of every random stream of the run"
    )
    rounds: Count = Field(40, description="communication rounds [rounds]")
    data: DataConfig = DataConfig()
    seed_set: SeedSetConfig = SeedSetConfig()
    models: tuple[ArchitectureLabel, ...] | dict[int, ArchitectureLabel] = Field(
        ("lenet5", "mlp", "cnn"),
        description="architectures: a list that is repeated over the participants, or a map with the architecture of "
        "each; known: lenet5, mlp, cnn, resnet8, resnet18, mobilenet, vit, cnn1d, gru, text_transformer, "
        "torchvision:NAME or your own as package.module:Class; with arguments: {name: package.module:Class, "
        "width: 64}, which is stored as package.module:Class(width=64)",
    )
    weights: dict[str, str] = Field(
        {},
        description="pretrained weights: a map from architectures, as they are stored in models, to files with their "
        "state dict",
    )
    topology: TopologyConfig = TopologyConfig()
    network: NetworkConfig = NetworkConfig()
    faults: FaultsConfig = FaultsConfig()
    method: MethodConfig = MethodConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()
    devices: DevicesConfig = DevicesConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_recipe(cls, raw: Any) -> Any:
        return recipes.with_defaults(cls, raw)

    @field_validator("models", mode="before")
    @classmethod
    def _list_or_map(cls, models: object) -> object:
        entries = list(
            models.values() if isinstance(models, dict) else models if isinstance(models, list | tuple) else []
        )
        keys = list(models) if isinstance(models, dict) else []
        are_entries = all(isinstance(entry, str | Mapping) for entry in entries)
        if not entries or not are_entries or not all(type(key) is int for key in keys):
            is_one = isinstance(models, Mapping) and isinstance(models.get(architecture.NAME), str)
            hint = ". Fix: put the map into a list" if is_one else ""
            raise PydanticCustomError(
                "models", f"must be a list of architectures, or a map from every participant's number to one{hint}"
            )
        labels = [_label(entry) for entry in entries]
        return dict(zip(keys, labels, strict=True)) if keys else tuple(labels)

    @field_validator("weights", mode="before")
    @classmethod
    def _by_label(cls, weights: object) -> object:
        return architecture.by_label(weights)

    @model_validator(mode="after")
    def _calibrates_on_labels(self) -> "Config":
        if self.evaluation.calibration == "seed_set" and not self.seed_set.labelled:
            text = "got 'seed_set', but seed_set.labelled is false. Fix: set it to true, or "
            refuse(problem("evaluation.calibration", "seed_set", f"{text}evaluation.calibration to none."))
        return self

    @model_validator(mode="after")
    def _absence_has_no_clock(self) -> "Config":
        kind, network = self.faults.participation.kind, self.network.kind
        if kind != "always" and network != "none":
            text = f"got {kind!r}, but network {network!r} has a clock, and absence has no simulated seconds"
            text += ". Fix: set network.kind to none, or faults.participation.kind to always."
            refuse(problem("faults.participation.kind", kind, text))
        return self

    @model_validator(mode="after")
    def _stops_early_by_held_out_data(self) -> "Config":
        rule, evaluation = self.run.early_stop, self.evaluation
        needed = {
            "accuracy_validation": ("validation_share", evaluation.validation_share),
            "accuracy_local": ("local_test_share", evaluation.local_test_share),
        }
        key, share = needed[rule.measure]
        if rule.patience is not None and not share:
            got = f"got {rule.measure!r}, but evaluation.{key} is {'null' if share is None else share}"
            text = f"{got}. Fix: keep a share of the private data, such as evaluation.{key}=0.1."
            refuse(problem("run.early_stop.measure", rule.measure, text))
        return self

    @model_validator(mode="after")
    def _updates_of_its_models(self) -> "Config":
        labels = list(dict.fromkeys(self.models.values() if isinstance(self.models, dict) else self.models))
        known = list(dict.fromkeys([*labels, *map(architecture.name_of, labels)]))
        unknown = [
            problem(
                f"optimizer.per_model.{model}",
                model,
                f"no participant has this architecture; models has {', '.join(labels)}{did_you_mean(model, known)}. "
                "Fix: remove it, or name one of them.",
            )
            for model in self.optimizer.per_model
            if model not in known
        ]
        if unknown:
            refuse(*unknown)
        return self

    def resolved(self, ranks: int, launched: bool) -> "Config":
        """Return this config with what depends on the run filled in: the number of participants, the optimiser's keys.

        Parameters
        ----------
        ranks : int
            MPI processes of the run.
        launched : bool
            True if an MPI launcher started them; a single process without one hosts 4 participants.

        Raises
        ------
        UserError
            If there are more ranks than participants, or the map of models does not fit the participants.
        """
        participants = self.participants or (ranks if launched else 4)
        if ranks > participants:
            raise UserError(
                f"participants: the config has {participants}, but mpirun started {ranks} ranks. "
                f"Fix: use -n {participants} or fewer."
            )
        if isinstance(self.models, dict):
            strange = sorted(index for index in self.models if not 0 <= index < participants)
            missing = participants - (len(self.models) - len(strange))
            if missing or strange:
                first = itertools.islice((index for index in range(participants) if index not in self.models), 4)
                raise UserError(
                    f"models: a map must name participants 0 to {participants - 1}, each once. "
                    f"Missing: {_numbers(list(first), missing)}, unknown: {_numbers(strange[:4], len(strange))}."
                )
        round_steps = self.method.local_steps + self.method.mutual_steps
        optimizer = self.optimizer.resolved(self.rounds, round_steps)
        return self.model_copy(update={"participants": participants, "optimizer": optimizer})

    @property
    def size(self) -> int:
        """P, the number of participants of a resolved config."""
        if self.participants is None:
            raise RuntimeError("the config is not resolved: call resolved() first")
        return self.participants

    def architecture(self, participant: int) -> str:
        """Return the label of a participant's architecture: its name, with its arguments if it has any."""
        if isinstance(self.models, dict):
            return self.models[participant]
        return self.models[participant % len(self.models)]

    def to_yaml(self) -> str:
        """Return the config as YAML text that loads back to an equal config."""
        return yaml_text.write(self.model_dump())


def _label(entry: object) -> str:
    try:
        return architecture.read(entry).label
    except ValueError as error:
        # Braces of an entry would be taken for places of a template.
        raise PydanticCustomError("models", "{text}", {"text": f"{shown(entry)} {error}"}) from None


def _numbers(first: list[int], count: int) -> str:
    """Return the first of `count` numbers, and how many more there are."""
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{', '.join(map(str, first))}{more}" if first else "none"
