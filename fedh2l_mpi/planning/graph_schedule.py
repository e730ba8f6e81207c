"""Graphs of a planned run: drawn if this takes seconds, replaced by expected values if it takes longer."""

from collections.abc import Callable
from dataclasses import dataclass

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.topology import ErdosRenyi, RandomRegular
from fedh2l_mpi.planning.traffic import Links, MessageSize, expected_links, links
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.topology import check_fits, draw, period

# Drawing handles 50,000 edges per second of a random regular graph, and some million pairs of erdos_renyi. The limits
# apply to all redraws together.
DRAWN_EDGES, DRAWN_PAIRS = 250_000, 5_000_000


@dataclass(frozen=True)
class GraphSchedule:
    """Graphs of a run, each with its number of rounds with an exchange.

    Attributes
    ----------
    graphs : list of (Links, int)
    count : int
        Number of graphs of the run. If it is more than `len(graphs)`, the first graph represents all.
    """

    graphs: list[tuple[Links, int]]
    count: int

    @property
    def first(self) -> Links:
        return self.graphs[0][0]

    @property
    def exchanges(self) -> int:
        """Number of rounds with an exchange."""
        return sum(rounds for _, rounds in self.graphs)

    @property
    def edges(self) -> int:
        """Number of edges of all graphs together, as listed in the metrics file."""
        return round(sum(graph.edges for graph, _ in self.graphs) * self.count / len(self.graphs))

    @property
    def caution(self) -> str:
        """Description of the approximation; empty if the schedule is exact."""
        if self.first.expected:
            return "expected values, because drawing such a large graph takes minutes"
        return f"the first of {self.count} graphs represents all" if self.count > len(self.graphs) else ""

    def total(self, of_a_round: Callable[[Links], float]) -> float:
        """Return the total of the whole run, from the value of one round with a given graph."""
        return sum(rounds * of_a_round(graph) for graph, rounds in self.graphs)

    def edge_bytes(self, size: MessageSize) -> float:
        """Return the traffic over the edges of the graph in the whole run [bytes]."""
        return self.total(lambda graph: graph.edge_bytes(size))


def draw_schedule(config: Config, hosting: Hosting, exchanges_in: Callable[[int], bool]) -> GraphSchedule:
    """Return the graphs of a resolved config.

    Parameters
    ----------
    exchanges_in : callable
        Returns True for the rounds with an exchange.

    Raises
    ------
    UserError
        If such a graph does not exist for this number of participants.
    """
    every = config.topology.changes_every or config.rounds
    starts = range(0, config.rounds, every)
    exchanges = [sum(map(exchanges_in, range(at, min(at + every, config.rounds)))) for at in starts]
    expected = _expected(config, hosting)
    if expected is not None:
        return GraphSchedule([(expected, sum(exchanges))], len(starts))

    def drawn(drawing: int) -> Links:
        return links(draw(config.topology, config.size, config.seed, drawing).edges, hosting)

    first, turns = drawn(0), period(config.topology, config.size)
    if turns is not None:
        graphs = [first, *(drawn(drawing) for drawing in range(1, min(turns, len(starts))))]
        taken = [graphs[drawing % turns] for drawing in range(len(starts))]
        return GraphSchedule(list(zip(taken, exchanges, strict=True)), len(starts))
    pairs = config.size**2 if config.topology.kind == "erdos_renyi" else 0
    if len(starts) * first.edges > DRAWN_EDGES or len(starts) * pairs > DRAWN_PAIRS:
        return GraphSchedule([(first, sum(exchanges))], len(starts))
    others = [drawn(drawing) for drawing in range(1, len(starts))]
    return GraphSchedule(list(zip([first, *others], exchanges, strict=True)), len(starts))


def _expected(config: Config, hosting: Hosting) -> Links | None:
    """Return the expected links if drawing the graph would take too long; otherwise None."""
    graph, participants = config.topology, config.size
    pairs = participants * (participants - 1) / 2
    if graph.kind == "complete" and pairs > DRAWN_EDGES:
        return expected_links(1.0, hosting)
    if isinstance(graph, ErdosRenyi) and (pairs > DRAWN_PAIRS or pairs * graph.probability > DRAWN_EDGES):
        return expected_links(graph.probability, hosting)
    if isinstance(graph, RandomRegular) and participants * graph.degree / 2 > DRAWN_EDGES:
        check_fits(graph, participants)
        return expected_links(graph.degree / (participants - 1), hosting, graph.degree)
    return None
