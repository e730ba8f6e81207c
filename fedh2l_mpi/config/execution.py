"""Execution of a run: exchange, devices, checkpoints, end.

Only the number of threads, the codec and skipped rows change the run's numbers.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config.section import (
    LARGEST,
    NO_SWITCH,
    Count,
    KindSection,
    Natural,
    Number,
    Section,
    Switch,
    problem,
    refuse,
)

_A_TIME = "must be a time of more than 0, such as 5400, 1:30:00, 90m or 2h"


class ExchangeConfig(KindSection):
    """Section `exchange`: messages between neighbours and between ranks."""

    kind_key = "codec"
    noun = "codec"

    codec: str = Field(
        "float32",
        description="wire format of the arrays that neighbours exchange: unchanged (float32), half the bytes (float16, "
        "bfloat16), or for posteriors only: log p in steps of 1/16 nat, one byte each (uint8), or the largest entries "
        "of each row (top_k)",
    )
    skip_below: Annotated[float, Field(ge=0.0), NO_SWITCH] | None = Field(
        None,
        description="send a row again only if an entry differs by more than this from the copy that the neighbours "
        "hold; 0.0 skips equal rows only; null: send every row; posteriors and logits need seed_set.views=none and "
        "seed_set.samples_per_round=null",
    )
    keep_posteriors: Count | None = Field(
        None,
        description="write what every participant published on the seed samples in every n-th round into "
        "posteriors.h5, for the command leakage [rounds]; null: never",
    )
    deadline_s: Number = Field(
        300.0, gt=0.0, le=1e9, description="longest wait for another rank, after which the run ends with an error [s]"
    )


class Float32Exchange(ExchangeConfig, kind="float32"):
    """Entries as they are, 4 bytes each."""


class Float16Exchange(ExchangeConfig, kind="float16"):
    """Entries in 2 bytes, as IEEE half precision."""


class BFloat16Exchange(ExchangeConfig, kind="bfloat16"):
    """Entries in 2 bytes, with float32's range."""


class UInt8Exchange(ExchangeConfig, kind="uint8"):
    """Logarithms of posteriors, one byte each."""


class TopKExchange(ExchangeConfig, kind="top_k"):
    """The largest posteriors of each row."""

    top_k: Count = Field(description="posteriors of each row that are sent; the others share the rest evenly")


class DevicesConfig(Section):
    """Section `devices`: devices and threads of the arithmetic."""

    kind: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if a device is visible, else CPU")
    threads: Count = Field(1, description="CPU threads per rank; changing it changes the last bits of results")
    batching: Literal["off", "like"] = Field(
        "off",
        description="like: participants of a rank with the same architecture train as one batch; on a CPU only chains "
        "of linear layers do, with the same numbers; on a GPU any model that vmap can compute does, and the last "
        "digits depend on the participants that a rank hosts",
    )
    graphs: Literal["off", "auto"] = Field(
        "off",
        description="auto: on a GPU, record a step of each kind as a CUDA graph, and replay it with one call, which "
        "small models gain most from; the last digits differ from those of off; steps that cannot be recorded are "
        "taken call by call. It has not been verified on a GPU",
    )
    share: Switch | None = Field(
        None,
        description="let several ranks of a node use one GPU; null: where a node has fewer GPUs than ranks, with kind "
        "auto, but not with kind cuda",
    )
    map: tuple[Natural, ...] | None = Field(
        None, description="GPU of each rank of a node, by node-local rank; null: 0, 1, 2, ..."
    )

    @property
    def may_share(self) -> bool:
        """True if several ranks of a node may use one GPU."""
        return self.kind == "auto" if self.share is None else self.share

    @field_validator("batching", "graphs", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        # YAML reads off as false.
        return "off" if value is False else value

    @model_validator(mode="after")
    def _keys_of_cuda(self) -> "DevicesConfig":
        if self.kind == "cpu" and self.map is not None:
            text = f"got {list(self.map)}, but kind 'cpu' does not use it. Fix: set it to null."
            refuse(problem("map", self.map, text))
        if self.kind == "cpu" and self.graphs != "off":
            text = f"got {self.graphs!r}, but kind 'cpu' has no graphs. Fix: set it to off."
            refuse(problem("graphs", self.graphs, text))
        return self


class CheckpointConfig(Section):
    """Section `checkpoint`: the states from which a run resumes."""

    every: Count | None = Field(
        10,
        description="rounds from one checkpoint to the next [rounds]; null: only on request, when the run is stopped, "
        "and at the end",
    )
    keep: Annotated[int, Field(strict=True, ge=2, le=LARGEST)] = Field(
        2, description="number of newest checkpoints to keep; at least two, because the newest may be damaged"
    )


class EarlyStopConfig(Section):
    """Section `run.early_stop`: the end of a run whose participants no longer get better."""

    may_be_null: ClassVar[bool] = True

    measure: Literal["accuracy_validation", "accuracy_local"] = Field(
        "accuracy_validation",
        description="accuracy whose mean over participants counts: on the validation samples, or on the local test "
        "samples of evaluation.local_test_share",
    )
    patience: Count | None = Field(
        None,
        description="end the run as complete after this many evaluations without a new highest mean [evaluations]; "
        "null: never",
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_never(cls, raw: Any) -> Any:
        return {} if raw is None else raw

    @model_validator(mode="after")
    def _patience_of_a_measure(self) -> "EarlyStopConfig":
        if "measure" in self.model_fields_set and "patience" not in self.model_fields_set:
            refuse(problem("patience", None, "must be given with a measure, in evaluations; null: never stop early"))
        return self


class RunConfig(Section):
    """Section `run`: the end of a run before its last round."""

    max_wall: float | str | None = Field(
        None,
        description="stop with a checkpoint before this much time has passed since the start: seconds, H:MM:SS, 90m or "
        "2h; null: no limit. It counts for the command that gives it, and is not stored with the run",
    )

    early_stop: EarlyStopConfig = EarlyStopConfig()

    @field_validator("max_wall", mode="before")
    @classmethod
    def _is_a_time(cls, value: object) -> object:
        # Checked before the union is tried, because the union would report a mistake for each of its branches.
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str | None):
                raise ValueError(_A_TIME)
            if value is not None:
                parse_seconds(str(float(value) if isinstance(value, int) else value))
        except (ValueError, OverflowError):
            raise PydanticCustomError("max_wall", _A_TIME) from None
        return value

    @property
    def max_wall_s(self) -> float | None:
        """`max_wall` in seconds."""
        return None if self.max_wall is None else parse_seconds(str(self.max_wall))


def parse_seconds(text: str) -> float:
    """Return a time such as `1:30:00`, `1-12:00:00`, `90m`, `2h` or `45.5` in seconds.

    Raises
    ------
    ValueError
        If the text is not such a time, or the time is not more than 0.
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
        raise ValueError(_A_TIME)
    return seconds
