"""A simulated network between neighbours: the latency and bandwidth of edges, and the speed of participants."""

import math
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config.section import NO_SWITCH, KindSection

# Bounds keep the sum of all times of a run finite.
Latency = Annotated[
    float,
    Field(ge=0.0, le=1e6, description="time that a message needs over an edge in addition to its bytes [s]"),
    NO_SWITCH,
]
Bandwidth = Annotated[
    float,
    Field(gt=0.0, le=1e15, description="bytes per second of a participant's interface, over an edge [byte/s]"),
    NO_SWITCH,
]
MEASURE = "measure"
FASTEST = 1e12


def _speed(value: object) -> str | float | tuple[float, ...] | None:
    """Return a speed, several, the word `measure` or null; refuse anything else in one message."""
    if value is None:
        return None
    if isinstance(value, str) and value == MEASURE:
        return value
    given = value if isinstance(value, list | tuple) else [value]
    speeds = tuple(map(_number, given))
    if not speeds or not all(0 < speed <= FASTEST for speed in speeds):
        raise PydanticCustomError(
            "speed", "must be a number > 0, a list of such numbers for the participants in turns, or measure"
        )
    return speeds if given is value else speeds[0]


def _number(value: object) -> float:
    """Return a number of a file, in which YAML reads 1e3 as text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


_ONE = {"type": "number", "exclusiveMinimum": 0, "maximum": FASTEST}
Speed = Annotated[
    str | float | tuple[float, ...] | None,
    BeforeValidator(_speed),
    WithJsonSchema({"anyOf": [{"const": MEASURE}, _ONE, {"type": "array", "items": _ONE}, {"type": "null"}]}),
]


class NetworkConfig(KindSection):
    """Section `network`: a network with a clock, which turns steps and bytes into simulated seconds."""

    kind: str = Field(
        "none",
        description="network between neighbours, whose clock gives every round its simulated seconds; none: no clock; "
        "custom: with a latency and a bandwidth of your own",
    )

    def as_started(self, before: "NetworkConfig") -> "NetworkConfig":
        """Return this section with the speeds of a run that has begun, if they are to be measured here."""
        measures = isinstance(self, ClockedNetwork) and self.speed_steps_per_s == MEASURE
        if not measures or not isinstance(before, ClockedNetwork):
            return self
        return self.model_copy(update={"speed_steps_per_s": before.speed_steps_per_s})


class NoNetwork(NetworkConfig, kind="none"):
    """No clock: the run has no simulated seconds."""


class ClockedNetwork(NetworkConfig):
    """Group of the networks that have a clock."""

    latency_s: Latency
    bandwidth_bytes_per_s: Bandwidth
    spread: Annotated[float, Field(ge=0.0, le=10.0), NO_SWITCH] = Field(
        0.0,
        description="standard deviation of the logarithm of each edge's latency and bandwidth, which are drawn from "
        "the seed around those given",
    )
    file: str | None = Field(
        None,
        description="CSV file with a header: from, to, and latency_s, bandwidth_bytes_per_s or both, for those edges "
        "that differ; null: none",
    )
    speed_steps_per_s: Speed = Field(
        None,
        description="optimiser steps of each participant [1/s]: a number, a list that is repeated over the "
        "participants, or measure (this machine's, by architecture, stored in the run's config before round 0); null: "
        "steps take no time",
    )


class Lan(ClockedNetwork, kind="lan"):
    """Gigabit Ethernet.

    Source: IEEE 802.3ab (1000BASE-T), 1 Gbit/s. The latency of 0.1 ms through a switch is an assumption.
    """

    latency_s: Latency = 0.0001
    bandwidth_bytes_per_s: Bandwidth = 125e6


class Wifi(ClockedNetwork, kind="wifi"):
    """Wi-Fi at home, as its sender sees it.

    Source: Firefox's network monitor, throttling profile "Wi-Fi": 15 Mbit/s upload, latency 2 ms.
    """

    latency_s: Latency = 0.002
    bandwidth_bytes_per_s: Bandwidth = 1.875e6


class Lte(ClockedNetwork, kind="lte"):
    """Mobile network of the fourth generation.

    Source: WebPageTest, connectivity profile "LTE": 12 Mbit/s, round trip 70 ms.
    """

    latency_s: Latency = 0.035
    bandwidth_bytes_per_s: Bandwidth = 1.5e6


class Satellite(ClockedNetwork, kind="satellite"):
    """Geostationary satellite, one hop.

    Source: 35,786 km up and down at the speed of light are 0.239 s; 3 Mbit/s is the upload of the FCC's definition of
    broadband of 2015.
    """

    latency_s: Latency = 0.239
    bandwidth_bytes_per_s: Bandwidth = 375e3


class CustomNetwork(ClockedNetwork, kind="custom"):
    """Network of the user's own."""
