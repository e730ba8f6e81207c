"""How a run is carried out, secured and ended: nothing here moves a number, but threads, codecs and skipped rows."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config.section import Count, Natural, Number, Section, Switch, check_kind_keys

_A_TIME = "must be a time of more than 0, such as 5400, 1:30:00, 90m or 2h"


class ExchangeConfig(Section):
    """Messages between neighbours and between ranks."""

    codec: Literal["float32", "float16", "bfloat16", "uint8", "top_k"] = Field(
        "float32",
        description="how neighbours' arrays are sent: as they are (float32), in half the bytes (float16, bfloat16); "
        "posteriors only: log p in steps of 1/16 nat, a byte each (uint8), or the largest of each row (top_k)",
    )
    top_k: Count | None = Field(
        None, description="how many of a row's posteriors are sent, top_k; the others share the rest evenly"
    )
    skip_below: Number | None = Field(
        None,
        ge=0.0,
        description="a row is not sent again while none of its numbers is further than this from what the neighbours "
        "hold; 0.0: only the same row; null: all are sent; posteriors and logits need seed_set.views=none and "
        "seed_set.samples_per_round=null",
    )
    deadline_s: Number = Field(300.0, gt=0.0, le=1e9, description="longest wait for a rank before the run is ended [s]")

    @model_validator(mode="after")
    def _keys_of_codec(self) -> "ExchangeConfig":
        check_kind_keys(self, {"top_k": {"top_k": ...}}, "codec")
        return self


class DevicesConfig(Section):
    """Where the arithmetic runs."""

    kind: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where a device is visible, else CPU")
    threads: Count = Field(1, description="intra-op threads of a rank; other counts give other last bits")
    batching: Literal["off", "like"] = Field(
        "off",
        description="like: participants of a rank with like models that are chains of linear layers step together; "
        "the same numbers, sooner",
    )
    share: Switch = Field(False, description="whether several ranks of a node may use one GPU")
    map: tuple[Natural, ...] | None = Field(
        None, description="device of each rank of a node, by node-local rank; null: 0, 1, 2, ..."
    )

    @field_validator("batching", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        # YAML reads off as false.
        return "off" if value is False else value

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

    @field_validator("max_wall", mode="before")
    @classmethod
    def _is_a_time(cls, value: object) -> object:
        # Before the union is tried, which would tell of each of its branches.
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
        raise ValueError(_A_TIME)
    return seconds
