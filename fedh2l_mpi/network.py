"""A network with a clock: simulated seconds from configured speeds and from the bytes that were really sent.

Measured times are never used, so simulated seconds are equal for any number of ranks and over a resume.

Shape letters: P participants, E edges.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.network import MEASURE, ClockedNetwork
from fedh2l_mpi.config.text_files import fields_of, read_text
from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.rng import Purpose, generator
from fedh2l_mpi.runtime import paths

Vector = NDArray[np.float64]
Edge = tuple[int, int]
ENDS, VALUES = ("from", "to"), ("latency_s", "bandwidth_bytes_per_s")
MOST_BYTES = 2**28


def end_of_round(
    begin_P: Vector,
    local_s_P: Vector,
    mutual_s_P: Vector,
    message_bytes_P: Vector,
    ends_E2: NDArray[np.int64],
    latency_s_E: Vector,
    bandwidth_E: Vector,
    publishes_first: bool,
) -> Vector:
    """Return the time at which each participant ends a round that it begins at `begin_P`, float64 (P,) [s].

    A participant's messages share its interface: they have left after the sum of bytes / bandwidth over its edges, and
    each arrives its edge's latency later. The mutual phase begins as soon as the own local phase is done, the own
    messages have left, and the neighbours' messages are there. Receiving is never a bottleneck.

    Parameters
    ----------
    local_s_P, mutual_s_P : float64 (P,)
        Time for the steps of both phases [s].
    message_bytes_P : float64 (P,)
        Size of the message to each neighbour [bytes]; 0 if the participant sends nothing.
    ends_E2 : int64 (E, 2)
        The two participants of each edge. Messages travel both ways.
    latency_s_E, bandwidth_E : float64 (E,)
        Of each edge [s], [byte/s].
    publishes_first : bool
        True if messages leave before the local phase, False if after it.
    """
    local_end_P = begin_P + local_s_P
    sender, receiver = ends_E2.T.ravel(), ends_E2[:, ::-1].T.ravel()
    seconds = message_bytes_P[sender] / np.tile(bandwidth_E, 2)
    left_P = (begin_P if publishes_first else local_end_P) + np.bincount(sender, seconds, minlength=len(begin_P))
    ready_P = np.maximum(local_end_P, left_P)
    sends = message_bytes_P[sender] > 0
    arrival = left_P[sender] + np.tile(latency_s_E, 2)
    np.maximum.at(ready_P, receiver[sends], arrival[sends])
    ended_P: Vector = ready_P + mutual_s_P
    return ended_P


class Network:
    """Latency and bandwidth of every edge, and the speed of every participant.

    Parameters
    ----------
    config : ClockedNetwork
        Speeds that are to be measured count as unknown, so that steps take no time.
    participants : int
        P.
    seed : int
        The run's seed, from which a spread is drawn.

    Raises
    ------
    UserError
        If the file or the list of speeds does not fit.
    """

    def __init__(self, config: ClockedNetwork, participants: int, seed: int) -> None:
        self._config, self._participants, self._seed = config, participants, seed
        self._named = _read_edges(config.file, participants) if config.file is not None else {}
        self.step_s_P = _step_seconds(config.speed_steps_per_s, participants)

    def digest(self) -> bytes:
        """Return the SHA-256 of the edges of the file."""
        return hashlib.sha256(repr(sorted(self._named.items())).encode()).digest()

    def edges(self, ends_E2: NDArray[np.int64]) -> tuple[Vector, Vector]:
        """Return latency and bandwidth of edges, float64 (E,) each [s], [byte/s].

        An edge has the same values in every graph that contains it.
        """
        latency_s_E = np.full(len(ends_E2), self._config.latency_s)
        bandwidth_E = np.full(len(ends_E2), self._config.bandwidth_bytes_per_s)
        if self._config.spread:
            for a in np.unique(ends_E2[:, 0]).tolist():
                at = np.flatnonzero(ends_E2[:, 0] == a)
                normal = generator(self._seed, Purpose.NETWORK, a).standard_normal((2, self._participants))
                latency_s_E[at] *= np.exp(self._config.spread * normal[0, ends_E2[at, 1]])
                bandwidth_E[at] *= np.exp(self._config.spread * normal[1, ends_E2[at, 1]])
        if self._named:
            for e, (a, b) in enumerate(ends_E2.tolist()):
                named = self._named.get((a, b), {})
                latency_s_E[e] = named.get("latency_s", latency_s_E[e])
                bandwidth_E[e] = named.get("bandwidth_bytes_per_s", bandwidth_E[e])
        return latency_s_E, bandwidth_E


def build_network(config: Config) -> Network | None:
    """Return the network of a resolved config; None if it has no clock.

    Raises
    ------
    UserError
        If the file or the list of speeds does not fit.
    """
    network = config.network
    return Network(network, config.size, config.seed) if isinstance(network, ClockedNetwork) else None


class SimulatedClock:
    """Every participant's own clock. Participants wait for their neighbours' messages of the same round.

    Parameters
    ----------
    steps : (int, int)
        Optimiser steps of a round in the local and in the mutual phase. All steps of a participant take equal time.
    publishes_first : bool
        True if messages leave before the local phase.

    Attributes
    ----------
    now_P : float64 (P,)
        Time at which each participant ended its last round [s].
    """

    def __init__(self, network: Network, steps: tuple[int, int], publishes_first: bool) -> None:
        self._network, self._publishes_first = network, publishes_first
        self._local_s_P, self._mutual_s_P = (count * network.step_s_P for count in steps)
        self._edges: Sequence[Edge] | None = None
        self._links: tuple[NDArray[np.int64], Vector, Vector] | None = None
        self.now_P = np.zeros(len(network.step_s_P))

    def advance(self, edges: Sequence[Edge], sent_bytes_P: ArrayLike) -> Vector:
        """Let every participant end a round, and return the times at which they do, float64 (P,) [s].

        Parameters
        ----------
        edges : sequence of (int, int)
            Edges of the round's graph, the smaller participant first.
        sent_bytes_P : array-like (P,)
            Bytes that each participant sent to all its neighbours together; 0 if it sent nothing.
        """
        if self._links is None or edges is not self._edges:
            ends_E2 = np.array(edges, dtype=np.int64).reshape(-1, 2)
            self._edges, self._links = edges, (ends_E2, *self._network.edges(ends_E2))
        degree_P = np.bincount(self._links[0].ravel(), minlength=len(self.now_P))
        message_bytes_P = np.asarray(sent_bytes_P, dtype=np.float64) / np.maximum(degree_P, 1)
        times = (self._local_s_P, self._mutual_s_P, message_bytes_P)
        self.now_P = end_of_round(self.now_P, *times, *self._links, self._publishes_first)
        return self.now_P


def _step_seconds(speed: str | float | Sequence[float] | None, participants: int) -> Vector:
    """Return the time of a step of each participant, float64 (P,) [s]."""
    if speed is None or speed == MEASURE:
        return np.zeros(participants)
    speeds = [float(one) for one in speed] if isinstance(speed, Sequence) else [float(speed)]
    if len(speeds) > participants:
        raise UserError(
            f"network.speed_steps_per_s: got {len(speeds)} speeds for {participants} participants. "
            "Fix: give one for each, or fewer, which are repeated."
        )
    return 1.0 / np.resize(np.array(speeds), participants)


def _read_edges(file: str, participants: int) -> dict[Edge, dict[str, float]]:
    """Return what a CSV file says of edges, by the edge with the smaller participant first."""
    path = paths.expand_home("network.file", file)
    try:
        lines = read_text(path, MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"network.file: cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    named: dict[Edge, dict[str, float]] = {}
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        words = fields_of(line)
        where = f"network.file: {path}, line {number}"
        if not words:
            continue
        if not header:
            header = _checked_header(words, where)
            continue
        if len(words) != len(header):
            raise UserError(f"{where}: got {len(words)} fields, must be {len(header)}: {', '.join(header)}.")
        row = dict(zip(header, words, strict=True))
        edge = _edge(row, participants, where)
        if edge in named:
            raise UserError(f"{where}: edge {edge[0]} {edge[1]} stands in an earlier line already. Remove one.")
        named[edge] = {name: _value(name, row[name], where) for name in VALUES if name in row}
    if not header:
        raise UserError(f"network.file: {path} is empty. Fix: begin it with the line {','.join(ENDS + VALUES)}.")
    return named


def _checked_header(words: list[str], where: str) -> list[str]:
    known = {*ENDS, *VALUES}
    if len(set(words)) < len(words) or not {*ENDS} < {*words} <= known:
        raise UserError(
            f"{where}: got the columns {shown(', '.join(words))}, must be from, to, and latency_s, "
            "bandwidth_bytes_per_s or both."
        )
    return words


def _edge(row: dict[str, str], participants: int, where: str) -> Edge:
    try:
        a, b = (int(row[end]) for end in ENDS)
    except ValueError:
        raise UserError(f"{where}: got from {shown(row['from'])} to {shown(row['to'])}, must be numbers.") from None
    if not (0 <= a < participants and 0 <= b < participants) or a == b:
        raise UserError(f"{where}: got {a} {b}. An edge joins two of the participants 0 to {participants - 1}.")
    return min(a, b), max(a, b)


def _value(name: str, word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    low, high = (0.0, 1e6) if name == "latency_s" else (1e-3, 1e15)
    if not low <= value <= high:
        raise UserError(f"{where}: {name}: got {shown(word)}, must be from {low:g} to {high:g}.")
    return value
