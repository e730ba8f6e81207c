"""Simulate the clock of a planned run's network, with the bytes that its messages will have."""

from collections.abc import Sequence

import numpy as np

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.network import MEASURE, ClockedNetwork
from fedh2l_mpi.methods import Method
from fedh2l_mpi.network import SimulatedClock, build_network
from fedh2l_mpi.runtime.units import duration
from fedh2l_mpi.topology import Topology, least_edges

# More edges, over all rounds together, take longer than seconds.
MOST_EDGES = 20_000_000


def simulated_seconds(
    config: Config, method: Method, edge_bytes: int, speeds: Sequence[float] | None = None
) -> float | None:
    """Return the simulated time of a resolved config's whole run, by its last participant [s].

    Parameters
    ----------
    edge_bytes : int
        Size of a message between neighbours [bytes].
    speeds : sequence of float or None
        Steps per second of each participant, if the config asks for measured ones; None: those steps take no time.

    Returns
    -------
    float or None
        None if the network has no clock, or the graphs have too many edges to be drawn for a plan.

    Raises
    ------
    UserError
        If the network does not fit the config.
    """
    if asks_for_speeds(config) and speeds is not None:
        measured = config.network.model_copy(update={"speed_steps_per_s": tuple(speeds)})
        config = config.model_copy(update={"network": measured})
    network = build_network(config)
    if network is None or least_edges(config.topology, config.size) * config.rounds > MOST_EDGES:
        return None
    clock = SimulatedClock(network, method.phase_steps, method.publishes_first)
    topology = Topology(config.topology, config.size, config.seed, config.rounds)
    for index in range(config.rounds):
        graph = topology.graph(index)
        clock.advance(graph.edges, graph.degrees() * edge_bytes * method.exchanges_in(index))
    return float(np.max(clock.now_P))


def asks_for_speeds(config: Config) -> bool:
    """Return True if the speeds of participants are to be measured before round 0."""
    return isinstance(config.network, ClockedNetwork) and config.network.speed_steps_per_s == MEASURE


def network_text(config: Config, run_s: float | None, with_speeds: bool) -> str:
    """Describe the network and its simulated time, such as `lte: 84 s simulated in 40 rounds, 2.1 s per round`.

    Parameters
    ----------
    run_s : float or None
        What `simulated_seconds` returned.
    with_speeds : bool
        True if it knew the speeds of participants.
    """
    if run_s is None:
        return f"{config.network.kind}: not simulated here, because the graphs have too many edges"
    most = "at most " if config.exchange.skip_below is not None else ""
    text = f"{config.network.kind}: {most}{duration(run_s)} simulated in {config.rounds} rounds, "
    text += f"{duration(run_s / config.rounds)} per round"
    return text if with_speeds or not asks_for_speeds(config) else f"{text}, without the steps, which are not timed yet"
