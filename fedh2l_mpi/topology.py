"""Graphs of neighbours in every round: undirected, without self-loops, the same on every rank.

networkx is imported where a graph is drawn, because reading a config and a ring do not need it.
"""

import hashlib
import itertools
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import TopologyConfig
from fedh2l_mpi.config.text_files import fields_of, read_text
from fedh2l_mpi.config.topology import (
    Complete,
    EdgeList,
    ErdosRenyi,
    Exponential,
    Hypercube,
    OnePeerExponential,
    RandomGraph,
    RandomRegular,
    Ring,
    SmallWorld,
    Star,
    StarOfStars,
)
from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.rng import Purpose, generator
from fedh2l_mpi.runtime import paths

if TYPE_CHECKING:
    import networkx

Edge = tuple[int, int]
# About 20 million edges.
MOST_BYTES = 2**28


class Graph:
    """Neighbours of every participant.

    Attributes
    ----------
    neighbours : list of tuple of int
        For each participant its neighbours in ascending order; empty for an isolated one.
    edges : list of (int, int)
        Each once, the smaller participant first, sorted.
    """

    def __init__(self, participants: int, edges: Iterable[Edge]) -> None:
        self.edges = sorted({(min(edge), max(edge)) for edge in edges})
        around: list[list[int]] = [[] for _ in range(participants)]
        for a, b in self.edges:
            around[a].append(b)
            around[b].append(a)
        self.neighbours = [tuple(sorted(near)) for near in around]

    def digest(self) -> bytes:
        """Return the SHA-256 of the edges."""
        return hashlib.sha256(repr((len(self.neighbours), self.edges)).encode()).digest()

    def degrees(self) -> NDArray[np.int64]:
        """Count the neighbours of each participant, int64 (P,)."""
        return np.array([len(near) for near in self.neighbours], dtype=np.int64)


class Topology:
    """The graph of every round: drawn once, redrawn every `redraw_every` rounds from the seed, or the next of a period.

    Every graph of the run is drawn once at the start, so a draw that fails does so before the first round.

    Raises
    ------
    UserError
        If a graph of this kind does not exist for this number of participants.
    """

    def __init__(self, config: TopologyConfig, participants: int, seed: int, rounds: int) -> None:
        self._every = config.changes_every or rounds
        drawings = -(-rounds // self._every)
        self._period = period(config, participants) or drawings
        # Two graphs are cached because rank 0 may still be writing the round before a redraw.
        kept = max(2, period(config, participants) or 0)
        self._drawing = lru_cache(maxsize=kept)(lambda drawing: draw(config, participants, seed, drawing))
        # Drawing backwards leaves the first graphs in the cache.
        digests = [self._drawing(drawing).digest() for drawing in reversed(range(min(drawings, self._period)))]
        self._digest = hashlib.sha256(b"".join(digests)).digest()

    def digest(self) -> bytes:
        """Return the SHA-256 of all graphs of the run."""
        return self._digest

    def graph(self, round_index: int) -> Graph:
        """Return the graph of a round."""
        return self._drawing(round_index // self._every % self._period)

    def is_redrawn(self, round_index: int) -> bool:
        """Return True if this round is the first with its graph."""
        return round_index % self._every == 0


def draw(config: TopologyConfig, participants: int, seed: int, drawing: int) -> Graph:
    """Draw the `drawing`-th graph of this kind and seed.

    Raises
    ------
    UserError
        If the kind does not exist for this number of participants, or `tries` draws were not connected.
    """
    if isinstance(config, EdgeList):
        return _read_edges(paths.expand_home("topology.path", config.path), participants, config.connected)
    if participants == 1:
        return Graph(1, [])
    if isinstance(config, Ring):
        return Graph(participants, ((i, (i + 1) % participants) for i in range(participants)))
    check_fits(config, participants)
    if not isinstance(config, RandomGraph):
        return Graph(participants, _fixed(config, participants, drawing))
    for attempt in range(config.tries):
        graph = _random(config, participants, generator(seed, Purpose.TOPOLOGY, drawing, attempt))
        if not config.connected or _connected(graph):
            return Graph(participants, graph.edges)
    raise UserError(
        f"topology.kind: none of {config.tries} seeded draws of {config.kind} with {participants} participants was "
        "connected. Raise topology.probability, topology.degree or topology.tries, or set topology.connected to false."
    )


def period(config: TopologyConfig, participants: int) -> int | None:
    """Return after how many graphs the first one returns, in a kind whose graphs take turns; None for other kinds."""
    return max(1, _digits(participants)) if isinstance(config, OnePeerExponential) else None


def graphs_of_a_period(config: TopologyConfig, participants: int, seed: int) -> list[Graph]:
    """Return the graphs that take turns; the first graph alone in a kind without a period."""
    return [draw(config, participants, seed, drawing) for drawing in range(period(config, participants) or 1)]


def _digits(participants: int) -> int:
    """Return the binary digits of the largest participant's number: log2 of the participants, rounded up."""
    return (participants - 1).bit_length()


def _distances(participants: int) -> list[int]:
    """Return the distances around the ring between neighbours of the exponential graph, each once.

    A distance of more than half of the ring is that of the other way round.

    Source: Ying et al., "Exponential graph is provably efficient for decentralized deep training", 2021. Its edges have
    a direction, from i to i + 2^k; here each joins both participants.
    """
    return sorted({min(1 << k, participants - (1 << k)) for k in range(_digits(participants))})


def _differing_in(digit: int, participants: int) -> Iterable[Edge]:
    """Return the pairs whose numbers differ in one binary digit alone.

    Without a power of two of participants, some have no pair in some rounds; all pairs of a period are connected.

    Source: Ying et al., 2021, for one peer a round. There, i sends to i + 2^k and receives from i - 2^k; here the two
    of a pair send to each other. If the participants are a power of two, a period still gives all the exact mean.
    """
    return ((i, i | 1 << digit) for i in range(participants) if not i >> digit & 1 and i | 1 << digit < participants)


def _two_levels(hubs: int, participants: int) -> Iterable[Edge]:
    """Return the edges of a star of stars: participant 0 to the hubs 1 to H, and every other one to the next hub."""
    return ((0 if i <= hubs else 1 + (i - 1) % hubs, i) for i in range(1, participants))


def least_edges(config: TopologyConfig, participants: int) -> float:
    """Return a lower bound of the number of edges without drawing the graph; the mean if the number is random."""
    pairs = participants * (participants - 1) / 2
    if isinstance(config, Complete):
        return pairs
    if isinstance(config, ErdosRenyi):
        return config.probability * pairs
    if isinstance(config, Exponential):
        return sum(participants / (2 if 2 * distance == participants else 1) for distance in _distances(participants))
    if isinstance(config, OnePeerExponential):
        return participants // 2
    if isinstance(config, Hypercube):
        return participants / 2 * _digits(participants)
    if isinstance(config, RandomRegular | SmallWorld):
        return min(config.degree * participants / 2, pairs)
    # Trees have as many edges as a star; a ring and a torus have at least as many edges as a star.
    return 0.0 if isinstance(config, EdgeList) else participants - 1.0


def _fixed(config: TopologyConfig, participants: int, drawing: int) -> Iterable[Edge]:
    """Return the edges of a kind that is not random; `drawing` matters if the graphs of this kind take turns."""
    digits = _digits(participants)
    if isinstance(config, Exponential):
        return ((i, (i + d) % participants) for d in _distances(participants) for i in range(participants))
    if isinstance(config, OnePeerExponential):
        return _differing_in(drawing % digits, participants)
    if isinstance(config, Hypercube):
        return (edge for digit in range(digits) for edge in _differing_in(digit, participants))
    if isinstance(config, StarOfStars):
        return _two_levels(config.hubs, participants)
    if isinstance(config, Star):
        return ((0, i) for i in range(1, participants))
    if isinstance(config, Complete):
        return itertools.combinations(range(participants), 2)
    return _torus(participants)


def _torus(participants: int) -> Iterable[Edge]:
    """Return the edges of the grid with the most equal sides that is closed in both directions."""
    import networkx

    rows = max(side for side in range(1, int(participants**0.5) + 1) if participants % side == 0)
    grid = networkx.grid_2d_graph(rows, participants // rows, periodic=True)
    grid.remove_edges_from(list(networkx.selfloop_edges(grid)))
    numbers = {node: number for number, node in enumerate(sorted(grid))}
    return [(numbers[a], numbers[b]) for a, b in grid.edges]


def _random(config: RandomGraph, participants: int, generator: np.random.Generator) -> "networkx.Graph":
    import networkx

    if isinstance(config, RandomRegular):
        if config.degree > _dense(participants):
            missing = participants - 1 - config.degree
            return networkx.complement(networkx.random_regular_graph(missing, participants, seed=generator))
        return networkx.random_regular_graph(config.degree, participants, seed=generator)
    if isinstance(config, ErdosRenyi):
        return networkx.gnp_random_graph(participants, config.probability, seed=generator)
    if isinstance(config, SmallWorld):
        return networkx.watts_strogatz_graph(participants, config.degree, config.probability, seed=generator)
    raise TypeError(f"topology.kind: no way to draw {config.kind!r}")


def _dense(participants: int) -> float:
    """Return the largest degree for which a regular graph is drawn directly instead of as a complement.

    networkx pairs ends of edges at random and starts again if that fails. 26 neighbours of 30, 51 of 64 or 70 of 100
    take many seconds, or never end. Up to the returned degree, a draw takes a few seconds at most.
    """
    return max(20, min(0.75 * participants, 48), 0.5 * participants)


def _connected(graph: "networkx.Graph") -> bool:
    import networkx

    return bool(networkx.is_connected(graph))


def check_fits(config: TopologyConfig, participants: int) -> None:
    """Raise `UserError` if a graph of this kind does not exist for this number of participants."""
    if isinstance(config, Hypercube) and participants.bit_count() != 1:
        below = 1 << participants.bit_length() - 1
        raise UserError(
            f"topology.kind: got 'hypercube' for {participants} participants. It exists for a power of two only. "
            f"Fix: use {below} or {2 * below} participants, or topology.kind=exponential, which exists for any number."
        )
    if isinstance(config, StarOfStars) and config.hubs >= participants:
        raise UserError(
            f"topology.hubs: got {config.hubs}. It must be less than the number of participants, {participants}."
        )
    if not isinstance(config, RandomRegular | SmallWorld):
        return
    degree = config.degree
    if degree >= participants:
        raise UserError(
            f"topology.degree: got {degree}. It must be less than the number of participants, {participants}."
        )
    if isinstance(config, RandomRegular):
        if degree * participants % 2:
            raise UserError(
                f"topology.degree: got {degree} for {participants} participants. In a regular graph, degree times "
                "participants must be even."
            )
        if config.connected and (degree == 0 or (degree == 1 and participants > 2)):
            raise UserError(
                f"topology.degree: got {degree}, with which {participants} participants cannot be connected. "
                "Use 2 or more, or set topology.connected to false."
            )
    if isinstance(config, SmallWorld) and (degree < 2 or degree % 2):
        raise UserError(f"topology.degree: got {degree}. It must be even and at least 2 for small_world.")


def _read_edges(path: Path, participants: int, connected: bool) -> Graph:
    """Read a graph from lines `i j` or a table of two columns; participants that no line names are isolated."""
    import networkx

    try:
        lines = read_text(path, MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"topology.path: cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    edges: dict[Edge, int] = {}
    first_column: int | None = None
    for number, line in enumerate(lines, 1):
        words = fields_of(line)
        if not words:
            continue
        where = f"topology.path: {path}, line {number}"
        if first_column is None:
            first_column = _first_column(words, where)
            if not any(map(_is_number, words)):
                continue
        # networkx writes {} behind an edge without attributes.
        ends = words[first_column : -1 if words[-1] == "{}" else None]
        try:
            a, b = map(int, ends)
        except ValueError:
            raise UserError(f"{where}: got {shown(line.strip())}. A line must be two participants 'i j'.") from None
        if not (0 <= a < participants and 0 <= b < participants):
            raise UserError(f"{where}: got {a} {b}. Participants are 0 to {participants - 1}.")
        if a == b:
            raise UserError(f"{where}: participant {a} cannot be its own neighbour.")
        edge = (min(a, b), max(a, b))
        if edge in edges:
            raise UserError(f"{where}: edge {a} {b} is in line {edges[edge]} already. Remove one.")
        edges[edge] = number
    graph = networkx.Graph(list(edges))
    graph.add_nodes_from(range(participants))
    if connected and not networkx.is_connected(graph):
        parts = networkx.number_connected_components(graph)
        raise UserError(
            f"topology.path: {path}: the graph has {parts} parts. Add edges, or set topology.connected to false."
        )
    return Graph(participants, edges)


def _first_column(words: list[str], where: str) -> int:
    """Return the column of an edge's first end, given the first line of a file; check the names of a header.

    pandas writes its row numbers into a column before, which has no name.
    """
    if any(map(_is_number, words)):
        return 0
    first = int(words[0] == "")
    names = words[first:]
    if len(names) < 2:
        raise UserError(f"{where}: got {shown(words[-1])}. A line must be two participants 'i j'.")
    if len(names) > 2:
        raise UserError(
            f"{where}: got the columns {shown(', '.join(names))}, must be two: the two participants of an edge. All "
            f"neighbours count alike, so {shown(names[2])} has no meaning. Fix: remove all other columns."
        )
    return first


def _is_number(word: str) -> bool:
    return word.lstrip("+-").isdigit()
