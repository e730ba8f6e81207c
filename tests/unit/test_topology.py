"""Graphs: shapes, seeds, and what cannot exist."""

import networkx
import numpy as np
import pytest

from fedh2l_mpi.config import TopologyConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.rng import Purpose, generator
from fedh2l_mpi.topology import Graph, Topology, draw, graphs_of_a_period, least_edges

KINDS = ["ring", "complete", "star", "random_regular", "erdos_renyi", "small_world", "torus"]
KINDS += ["exponential", "one_peer_exponential", "star_of_stars"]


@pytest.mark.parametrize(
    ("kind", "degrees"),
    [
        ("ring", [2] * 6),
        ("complete", [5] * 6),
        ("star", [5, 1, 1, 1, 1, 1]),
        ("random_regular", [3] * 6),
        ("torus", [3] * 6),
        # Distances 1 and 2, and 4, which is 2 the other way round.
        ("exponential", [4] * 6),
        ("one_peer_exponential", [1] * 6),
        ("star_of_stars", [2, 3, 2, 1, 1, 1]),
    ],
)
def test_degrees_of_six_participants(kind, degrees):
    assert draw(TopologyConfig(kind=kind), 6, 0, 0).degrees().tolist() == degrees


def test_a_torus_of_sixteen_has_four_neighbours_each():
    assert draw(TopologyConfig(kind="torus"), 16, 0, 0).degrees().tolist() == [4] * 16


@pytest.mark.parametrize("dimensions", range(2, 6))
def test_a_hypercube_is_that_of_networkx(dimensions):
    theirs = networkx.hypercube_graph(dimensions)
    numbers = {corner: sum(bit << place for place, bit in enumerate(corner)) for corner in theirs}
    edges = [(numbers[a], numbers[b]) for a, b in theirs.edges]
    config = TopologyConfig(kind="hypercube")
    assert draw(config, 2**dimensions, 0, 0).edges == Graph(2**dimensions, edges).edges
    assert least_edges(config, 2**dimensions) == len(edges)


@pytest.mark.parametrize("participants", [2, 3, 5, 8, 12, 31])
def test_an_exponential_graph_joins_distances_of_powers_of_two_in_both_directions(participants):
    graph = draw(TopologyConfig(kind="exponential"), participants, 0, 0)
    powers = {2**k for k in range(20) if 2**k < participants}
    for i, near in enumerate(graph.neighbours):
        assert set(near) == {(i + sign * d) % participants for d in powers for sign in (1, -1)}
    assert least_edges(TopologyConfig(kind="exponential"), participants) == len(graph.edges)


@pytest.mark.parametrize("participants", [2, 4, 16])
def test_the_pairs_of_a_period_give_everyone_the_exact_mean(participants):
    topology = Topology(TopologyConfig(kind="one_peer_exponential"), participants, 0, rounds=9)
    values_P, turns = np.random.default_rng(0).random(participants), participants.bit_length() - 1
    averaged_P = values_P
    for index in range(turns):
        assert topology.is_redrawn(index)
        averaged_P = np.array(
            [averaged_P[[i, *near]].mean() for i, near in enumerate(topology.graph(index).neighbours)]
        )
    assert averaged_P == pytest.approx(np.full(participants, values_P.mean()))
    assert [topology.graph(r).edges for r in range(9)] == [topology.graph(r % turns).edges for r in range(9)]


@pytest.mark.parametrize("participants", [3, 6, 11, 24])
def test_pairs_of_any_number_of_participants_are_connected_over_a_period(participants):
    graphs = graphs_of_a_period(TopologyConfig(kind="one_peer_exponential"), participants, 0)
    assert all(graph.degrees().max() == 1 for graph in graphs)
    assert networkx.is_connected(networkx.Graph([edge for graph in graphs for edge in graph.edges]))


@pytest.mark.parametrize(("participants", "hubs"), [(7, 2), (12, 3), (5, 4), (2, 1)])
def test_a_star_of_stars_is_a_tree_whose_leaves_are_spread_over_its_hubs(participants, hubs):
    graph = draw(TopologyConfig(kind="star_of_stars", hubs=hubs), participants, 0, 0)
    assert networkx.is_tree(networkx.Graph(graph.edges))
    assert graph.neighbours[0] == tuple(range(1, hubs + 1))
    leaves = [len(graph.neighbours[hub]) - 1 for hub in range(1, hubs + 1)]
    assert max(leaves) - min(leaves) <= 1
    assert sum(leaves) == participants - 1 - hubs


@pytest.mark.parametrize(("participants", "degree"), [(30, 26), (48, 45), (64, 60), (64, 63), (100, 90)])
def test_a_regular_graph_with_few_gaps_is_drawn_at_once_and_by_the_seed(participants, degree):
    config = TopologyConfig(kind="random_regular", degree=degree)
    one, same, other = (draw(config, participants, seed, 0) for seed in (1, 1, 2))
    assert set(one.degrees()) == {degree}
    assert one.edges == same.edges
    assert (one.edges == other.edges) == (degree == participants - 1)


@pytest.mark.parametrize(("participants", "degree"), [(10, 8), (20, 17), (40, 30)])
def test_a_regular_graph_that_networkx_draws_soon_is_the_one_that_it_draws(participants, degree):
    config = TopologyConfig(kind="random_regular", degree=degree)
    theirs = networkx.random_regular_graph(degree, participants, seed=generator(0, Purpose.TOPOLOGY, 0, 0))
    assert draw(config, participants, 0, 0).edges == Graph(participants, theirs.edges).edges


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("participants", [6, 16, 30])
def test_neighbours_are_mutual_sorted_and_never_oneself(kind, participants):
    near = draw(TopologyConfig(kind=kind), participants, 0, 0).neighbours
    for participant, neighbours in enumerate(near):
        assert list(neighbours) == sorted(set(neighbours))
        assert participant not in neighbours
        assert all(participant in near[other] for other in neighbours)


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        *(("ring", 11), ("complete", 66), ("star", 11), ("random_regular", 18), ("small_world", 24), ("torus", 11)),
        # Distances 1, 2 and 4; pairs of the first round; a tree.
        *(("exponential", 36), ("one_peer_exponential", 6), ("star_of_stars", 11)),
    ],
)
def test_edges_are_counted_from_below_without_drawing_the_graph(kind, least):
    assert least_edges(TopologyConfig(kind=kind), 12) == least <= len(draw(TopologyConfig(kind=kind), 12, 0, 0).edges)


@pytest.mark.parametrize("kind", KINDS)
def test_one_participant_is_alone(kind):
    assert draw(TopologyConfig(kind=kind), 1, 0, 0).neighbours == [()]


def test_a_ring_of_two_has_one_edge():
    assert draw(TopologyConfig(), 2, 0, 0).edges == [(0, 1)]


@pytest.mark.parametrize("kind", ["random_regular", "erdos_renyi", "small_world"])
def test_a_random_graph_follows_the_seed_and_the_redraw(kind):
    config = TopologyConfig(kind=kind, redraw_every=3)
    one, same, other = (Topology(config, 20, seed, rounds=7) for seed in (1, 1, 2))
    assert [one.graph(r).edges for r in range(7)] == [same.graph(r).edges for r in range(7)]
    assert one.graph(0).edges != other.graph(0).edges
    assert one.graph(0) is one.graph(2)
    assert one.graph(2).edges != one.graph(3).edges
    assert [r for r in range(8) if one.is_redrawn(r)] == [0, 3, 6]
    assert one.digest() == same.digest() != other.digest()
    # Back to an earlier round: the same graph again.
    assert one.graph(0).edges == same.graph(0).edges


def test_edges_of_an_erdos_renyi_graph_come_with_their_probability():
    config = TopologyConfig(kind="erdos_renyi", probability=0.3, connected=False)
    edges = [len(draw(config, 40, seed, 0).edges) for seed in range(30)]
    assert np.mean(edges) == pytest.approx(0.3 * 40 * 39 / 2, rel=0.05)
    assert least_edges(config, 40) == pytest.approx(0.3 * 40 * 39 / 2)


def test_a_redraw_that_will_fail_is_refused_before_the_first_round():
    config = TopologyConfig(kind="erdos_renyi", probability=0.4, tries=1, redraw_every=1)
    with pytest.raises(UserError, match="none of 1 seeded draws"):
        Topology(config, 4, 6, rounds=20)


def test_a_graph_that_is_hardly_ever_connected_is_refused_after_its_tries():
    config = TopologyConfig(kind="erdos_renyi", probability=0.01, tries=7)
    with pytest.raises(UserError, match="none of 7 seeded draws of erdos_renyi with 40 participants was connected"):
        draw(config, 40, 0, 0)
    assert 0 in draw(TopologyConfig(kind="erdos_renyi", probability=0.01, connected=False), 40, 0, 0).degrees()


@pytest.mark.parametrize(
    ("config", "participants", "says"),
    [
        ({"kind": "random_regular", "degree": 6}, 6, r"topology.degree: got 6\. It must be less than .* 6"),
        ({"kind": "random_regular", "degree": 3}, 7, r"In a regular graph, degree times participants must be even"),
        ({"kind": "random_regular", "degree": 1}, 4, "cannot be connected"),
        ({"kind": "random_regular", "degree": 0}, 4, "cannot be connected"),
        ({"kind": "small_world", "degree": 3}, 9, "must be even and at least 2"),
        ({"kind": "small_world", "degree": 9}, 9, "must be less than"),
        ({"kind": "hypercube"}, 6, "got 'hypercube' for 6 participants.* a power of two.* use 4 or 8 participants"),
        ({"kind": "star_of_stars", "hubs": 6}, 6, r"topology.hubs: got 6\. It must be less than .* 6"),
    ],
)
def test_a_graph_that_cannot_exist_is_refused(config, participants, says):
    with pytest.raises(UserError, match=says):
        draw(TopologyConfig(**config), participants, 0, 0)


def edge_list(path, text, **options):
    path.write_text(text)
    return TopologyConfig(kind="edge_list", path=str(path), **options)


@pytest.mark.parametrize(
    "text",
    [
        "# a path\n2 0\n\n0 1 # and back\n",
        "i,j\n2,0\n0,1\n",
        "source target\n2 0\n0 1\n",
        '\ufeff"source";"target"\r\n2;0\r\n0;1\r\n',
        "# of networkx\n0 2 {}\n0 1 {}\n",
        ",source,target\n0,0,2\n1,0,1\n",
        "2\t0\n0\t1\n",
    ],
)
def test_an_edge_list_is_read_and_may_leave_participants_alone(tmp_path, text):
    config = edge_list(tmp_path / "edges.csv", text, connected=False)
    assert draw(config, 4, 0, 0).neighbours == [(1, 2), (0,), (0,), ()]


def test_the_edge_lists_that_networkx_and_pandas_write_are_read(tmp_path):
    graph = networkx.cycle_graph(5)
    networkx.write_edgelist(graph, tmp_path / "edges")
    edges = [f"{number},{a},{b}" for number, (a, b) in enumerate(graph.edges)]
    # What `DataFrame(graph.edges, columns=["source", "target"]).to_csv` writes.
    (tmp_path / "edges.csv").write_text("\n".join([",source,target", *edges, ""]))
    for name in ("edges", "edges.csv"):
        config = TopologyConfig(kind="edge_list", path=str(tmp_path / name))
        assert draw(config, 5, 0, 0).edges == draw(TopologyConfig(kind="ring"), 5, 0, 0).edges


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 1\n1\n", r"line 2: got '1'\. A line must be two participants"),
        ("0 a\n", "line 1: got '0 a'"),
        ("9" * 5000 + " 0\n", r"line 1: got '9+ \[4804 characters\] 9+ 0'"),
        ("0 1 2\n", "line 1: got '0 1 2'"),
        ("0 1 {'weight': 2}\n", "line 1: got .*weight.* must be two participants"),
        ("i,j\n0,1\n2,x\n", r"line 3: got '2,x'\. A line must be two participants"),
        ("i,j\n0,1,2\n", r"line 2: got '0,1,2'\. A line must be two participants"),
        (
            "source,target,weight\n0,1,2.0\n",
            "line 1: got the columns 'source, target, weight', must be two: .* so 'weight' has no meaning. Fix: remove",
        ),
        ("node\n0\n", "line 1: got 'node'. A line must be two participants"),
        ("0 9\n", "Participants are 0 to 3"),
        ("1 1\n", "cannot be its own neighbour"),
        ("0 1\n2 3\n1 0\n", "line 3: edge 1 0 is in line 1 already"),
        ("0 1\n2 3\n", "the graph has 2 parts"),
    ],
)
def test_a_wrong_edge_list_is_refused_by_its_line(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        draw(edge_list(tmp_path / "edges", text), 4, 0, 0)


@pytest.mark.parametrize("participants", [1, 4])
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no/such/file", "cannot read"),
        ("no\0name", "cannot read"),
        ("/dev/zero", "cannot read /dev/zero: it is a device, not a file"),
        ("~nobody_here/e", "no home folder"),
    ],
)
def test_a_missing_edge_list_is_refused(participants, path, says):
    with pytest.raises(UserError, match=f"topology.path: .*{says}"):
        draw(TopologyConfig(kind="edge_list", path=path), participants, 0, 0)


def test_the_digest_tells_graphs_apart():
    assert Graph(4, [(0, 1)]).digest() == Graph(4, [(1, 0)]).digest()
    assert Graph(4, [(0, 1)]).digest() != Graph(5, [(0, 1)]).digest()
