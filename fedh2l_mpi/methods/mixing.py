"""Weights with which neighbours average, and the spectral gap: how fast repeated averaging reaches the mean of all.

Shape letters: P participants.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config
from fedh2l_mpi.topology import Graph, graphs_of_a_period

# The eigenvalues of a larger matrix take more than seconds.
MOST_PARTICIPANTS = 2000


def metropolis_weight(graph: Graph, i: int, j: int) -> float:
    """Return 1 / (1 + the larger degree of two neighbours).

    These weights are symmetric. They are doubly stochastic if each participant's own weight completes its sum to 1.

    Source: Xiao, Boyd and Kim, "Distributed average consensus with least-mean-square deviation", 2007.
    """
    return 1 / (1 + max(len(graph.neighbours[i]), len(graph.neighbours[j])))


def mixing_matrix(graph: Graph) -> NDArray[np.float64]:
    """Return the Metropolis weights of all pairs, and of each participant with itself, float64 (P, P)."""
    participants = len(graph.neighbours)
    matrix_PP = np.zeros((participants, participants))
    for i, j in graph.edges:
        matrix_PP[i, j] = matrix_PP[j, i] = metropolis_weight(graph, i, j)
    matrix_PP[np.diag_indices(participants)] = 1 - matrix_PP.sum(axis=1)
    return matrix_PP


def spectral_gap(graphs: Sequence[Graph]) -> float | None:
    """Return 1 - |lambda_2| of the mean mixing matrix of these graphs.

    lambda_2 is the eigenvalue with the second largest absolute value. A step of averaging multiplies the distance from
    the mean of all by at most |lambda_2|. The gap is 0 if the graphs together are not connected, and 1 for a complete
    graph and for one participant.

    Returns
    -------
    float or None
        None with more than MOST_PARTICIPANTS participants.
    """
    participants = len(graphs[0].neighbours)
    if participants > MOST_PARTICIPANTS:
        return None
    matrix_PP = sum((mixing_matrix(graph) for graph in graphs), np.zeros((participants, participants))) / len(graphs)
    sizes = np.sort(np.abs(np.linalg.eigvalsh(matrix_PP)))
    # Rounding would make a gap of 0 a tiny number, which may be negative.
    return round(max(0.0, 1.0 - float(sizes[-2])), 9) if participants > 1 else 1.0


def spectral_gap_of(config: Config) -> tuple[float, str] | None:
    """Return the spectral gap of a resolved config's graph, and a phrase that says which matrix it belongs to.

    Returns
    -------
    tuple of float and str, or None
        None with more than MOST_PARTICIPANTS participants.
    """
    if config.size > MOST_PARTICIPANTS:
        return None
    graphs = graphs_of_a_period(config.topology, config.size, config.seed)
    gap = spectral_gap(graphs)
    if gap is None:
        return None
    if len(graphs) > 1:
        return gap, f"mean of a period of {len(graphs)} graphs"
    return gap, "first graph" if config.topology.redraw_every else "graph"
