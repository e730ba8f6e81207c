"""The mixing matrix and its spectral gap, by closed forms."""

import math

import numpy as np
import pytest

from fedh2l_mpi.config import TopologyConfig, loading
from fedh2l_mpi.methods import mixing
from fedh2l_mpi.topology import Graph, draw, graphs_of_a_period

CLOSED = [
    # Weights 1/3: the eigenvalues are (1 + 2 cos(2 pi k / P)) / 3.
    *(("ring", n, 2 / 3 * (1 - math.cos(2 * math.pi / n))) for n in (4, 5, 8, 30)),
    # All weights are 1/P.
    *(("complete", n, 1.0) for n in (1, 2, 9)),
    # Weights 1/(m + 1) in m dimensions: the eigenvalues are 1 - 2k/(m + 1).
    *(("hypercube", 2**m, 2 / (m + 1)) for m in (2, 3, 6)),
    # Weights 1/P: the eigenvalues are 1, 1 - 1/P and 0.
    *(("star", n, 1 / n) for n in (3, 8)),
    # A pair averages with weights 1/2. The mean over m pairings is (1 + the hypercube's adjacency / m) / 2.
    *(("one_peer_exponential", 2**m, 1 / m) for m in (1, 2, 4)),
]


@pytest.mark.parametrize(("kind", "participants", "gap"), CLOSED)
def test_the_spectral_gap_has_its_closed_form(kind, participants, gap):
    graphs = graphs_of_a_period(TopologyConfig(kind=kind), participants, 0)
    assert mixing.spectral_gap(graphs) == pytest.approx(gap, abs=1e-8)


@pytest.mark.parametrize("participants", [7, 12, 16])
def test_the_gap_of_an_exponential_graph_is_that_of_its_circulant_matrix(participants):
    graph = draw(TopologyConfig(kind="exponential"), participants, 0, 0)
    row_P = mixing.mixing_matrix(graph)[0]
    assert row_P[1:] == pytest.approx(
        [(i in graph.neighbours[0]) / (1 + len(graph.neighbours[0])) for i in range(1, participants)]
    )
    # The eigenvalues of a circulant matrix are the Fourier transform of its first row.
    sizes = sorted(np.abs(np.fft.fft(row_P)))
    assert mixing.spectral_gap([graph]) == pytest.approx(1 - sizes[-2], abs=1e-8)


def test_repeated_averaging_comes_nearer_to_the_mean_by_the_second_eigenvalue():
    graph = draw(TopologyConfig(kind="star_of_stars", hubs=3), 14, 0, 0)
    matrix_PP, values_P = mixing.mixing_matrix(graph), np.random.default_rng(1).random(14)
    distances = []
    for _ in range(300):
        distances.append(np.linalg.norm(values_P - values_P.mean()))
        values_P = matrix_PP @ values_P
    gap = mixing.spectral_gap([graph])
    assert distances[-1] / distances[-2] == pytest.approx(1 - gap, rel=1e-4)


def test_parts_that_never_meet_have_no_gap():
    assert mixing.spectral_gap([Graph(4, [(0, 1), (2, 3)])]) == 0.0
    assert mixing.spectral_gap([Graph(3, [(0, 1)]), Graph(3, [(1, 2)])]) > 0.0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["topology=complete"], (1.0, "graph")),
        (["topology=one_peer_exponential"], (0.5, "mean of a period of 2 graphs")),
        (["topology={kind: random_regular, redraw_every: 1}"], (1.0, "first graph")),
        (["topology=ring", "participants=2001"], None),
    ],
)
def test_a_gap_says_which_graph_it_belongs_to(overrides, expected):
    config = loading.load(None, overrides).resolved(1, launched=False)
    assert mixing.spectral_gap_of(config) == expected
