"""The clock of a simulated network: closed forms on a ring and a star, edges of a file, and drawn edges."""

import numpy as np
import pytest

from fedh2l_mpi.config import TopologyConfig, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.network import SimulatedClock, build_network, end_of_round
from fedh2l_mpi.topology import draw

# A message of 3000 bytes needs 3 s on the interface and arrives 0.25 s later; a step takes 0.5 s.
LATENCY_S, BANDWIDTH, BYTES, STEP_S = 0.25, 1000.0, 3000, 0.5


def clock(kind, participants, steps=(4, 6), publishes_first=True, **network):
    """A clock, the edges of a graph, and the bytes that each participant sends in all."""
    keys = {"kind": "custom", "latency_s": LATENCY_S, "bandwidth_bytes_per_s": BANDWIDTH}
    keys |= {"speed_steps_per_s": 1 / STEP_S, **network}
    config = loading.load({"participants": participants, "network": keys}).resolved(1, launched=False)
    graph = draw(TopologyConfig(kind=kind), participants, 0, 0)
    return SimulatedClock(build_network(config), steps, publishes_first), graph.edges, graph.degrees() * BYTES


@pytest.mark.parametrize("local_steps", [2, 40])
def test_a_round_of_a_ring_hides_the_messages_behind_the_local_phase(local_steps):
    ticking, edges, sent_P = clock("ring", 5, (local_steps, 6))
    a_round = max(local_steps * STEP_S, 2 * BYTES / BANDWIDTH + LATENCY_S) + 6 * STEP_S
    for rounds in range(1, 5):
        assert ticking.advance(edges, sent_P) == pytest.approx([rounds * a_round] * 5)


def test_messages_that_leave_after_the_local_phase_are_waited_for():
    ticking, edges, sent_P = clock("ring", 5, (4, 6), publishes_first=False)
    a_round = 10 * STEP_S + 2 * BYTES / BANDWIDTH + LATENCY_S
    assert ticking.advance(edges, sent_P) == pytest.approx([a_round] * 5)


def test_the_hub_of_a_star_sends_to_all_and_makes_everybody_wait():
    ticking, edges, sent_P = clock("star", 4, (4, 6))
    one, mutual = BYTES / BANDWIDTH, 6 * STEP_S
    # The hub's three messages take 9 s; a leaf's takes 3 s, and the hub waits for its own to leave.
    hub, leaf = 3 * one + mutual, 3 * one + LATENCY_S + mutual
    assert ticking.advance(edges, sent_P) == pytest.approx([hub, leaf, leaf, leaf])
    # The hub begins 0.25 s before the leaves, and sends for 9 s again.
    later = max(hub + 3 * one + LATENCY_S, leaf + 4 * STEP_S) + mutual
    assert ticking.advance(edges, sent_P) == pytest.approx([hub + 3 * one + mutual, later, later, later])


def test_participants_wait_for_slow_neighbours_only_and_slowness_spreads_by_an_edge_a_round():
    # Participant 0 needs 10 s for a step, everyone else 1 s; messages take no time.
    speeds = [0.1, 1, 1, 1, 1, 1, 1]
    ticking, edges, sent_P = clock(
        "ring", 7, (1, 0), False, latency_s=0.0, bandwidth_bytes_per_s=1e15, speed_steps_per_s=speeds
    )
    assert ticking.advance(edges, sent_P) == pytest.approx([10, 10, 1, 1, 1, 1, 10])
    assert ticking.advance(edges, sent_P) == pytest.approx([20, 20, 11, 2, 2, 11, 20])
    assert ticking.advance(edges, sent_P) == pytest.approx([30, 30, 21, 12, 12, 21, 30])


def test_who_sends_nothing_waits_for_nobody():
    ticking, edges, sent_P = clock("complete", 3, (4, 6), speed_steps_per_s=[1, 2, 4])
    assert ticking.advance(edges, 0 * sent_P) == pytest.approx([10, 5, 2.5])
    # Participant 2 has no neighbour.
    begin_P, ends_E2 = np.zeros(3), np.array([[0, 1]])
    values = (
        np.full(3, 2.0),
        np.ones(3),
        np.array([BYTES, BYTES, 0.0]),
        ends_E2,
        np.array([0.5]),
        np.array([BANDWIDTH]),
    )
    assert end_of_round(begin_P, *values, publishes_first=True).tolist() == [4.5, 4.5, 3.0]


def test_steps_take_no_time_without_a_speed_and_unequal_messages_arrive_one_by_one():
    ticking, edges, _ = clock("ring", 3, (4, 6), speed_steps_per_s=None)
    # Both neighbours of 0 are slower than 0 itself, and so on: each waits for the largest message.
    sent_P = 2 * np.array([1000, 2000, 4000])
    assert ticking.advance(edges, sent_P) == pytest.approx([8.25, 8.25, 8.0])


def test_a_file_sets_edges_and_the_others_keep_the_values_of_the_section(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("from,to,latency_s\n2,1,5\n0,2,0\n")
    ticking, edges, _ = clock("ring", 4, file=str(path))
    latency_s_E, bandwidth_E = ticking._network.edges(np.array(edges))
    assert dict(zip(edges, latency_s_E, strict=True)) == {(0, 1): 0.25, (0, 3): 0.25, (1, 2): 5.0, (2, 3): 0.25}
    assert bandwidth_E.tolist() == [BANDWIDTH] * 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty. Fix: begin it with the line from,to,latency_s,bandwidth_bytes_per_s"),
        ("from,to\n", "line 1: got the columns 'from, to', must be from, to, and latency_s"),
        ("from,to,delay\n", "line 1: got the columns 'from, to, delay'"),
        ("from,to,latency_s\n0,1\n", "line 2: got 2 fields, must be 3: from, to, latency_s"),
        ("from,to,latency_s\n0,x,1\n", "line 2: got from '0' to 'x', must be numbers"),
        ("from,to,latency_s\n0,4,1\n", "line 2: got 0 4. An edge joins two of the participants 0 to 3"),
        ("from,to,latency_s\n2,2,1\n", "line 2: got 2 2. An edge joins two"),
        ("from,to,latency_s\n0,1,1\n1,0,2\n", "line 3: edge 0 1 stands in an earlier line already"),
        ("from,to,latency_s\n0,1,-1\n", "line 2: latency_s: got '-1', must be from 0 to"),
        ("from,to,bandwidth_bytes_per_s\n0,1,0\n", "line 2: bandwidth_bytes_per_s: got '0', must be from 0.001"),
        ("from,to,latency_s\n0,1,soon\n", "line 2: latency_s: got 'soon'"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(tmp_path, text, says):
    path = tmp_path / "edges.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        clock("ring", 4, file=str(path))
    assert says in str(error.value)
    assert str(error.value).startswith("network.file: ")


def test_a_missing_file_and_too_many_speeds_are_refused():
    with pytest.raises(UserError, match="network.file: cannot read no/such: No such file"):
        clock("ring", 4, file="no/such")
    with pytest.raises(UserError, match="network.speed_steps_per_s: got 3 speeds for 2 participants"):
        clock("ring", 2, speed_steps_per_s=[1, 2, 3])


def test_a_spread_is_log_normal_and_an_edge_keeps_its_values_in_every_graph():
    ticking, edges, _ = clock("complete", 60, spread=0.5)
    ends_E2 = np.array(edges)
    latency_s_E, bandwidth_E = ticking._network.edges(ends_E2)
    for values, usual in ((latency_s_E, LATENCY_S), (bandwidth_E, BANDWIDTH)):
        assert np.log(values).mean() == pytest.approx(np.log(usual), abs=0.05)
        assert np.log(values).std() == pytest.approx(0.5, abs=0.03)
    some = np.arange(0, len(edges), 7)[::-1]
    alone = ticking._network.edges(ends_E2[some])
    assert (alone[0] == latency_s_E[some]).all()
    assert (alone[1] == bandwidth_E[some]).all()


@pytest.mark.parametrize("kind", ["lan", "wifi", "lte", "satellite"])
def test_a_preset_is_a_network_whose_values_may_be_replaced(kind):
    network = loading.load(None, [f"network={kind}"]).network
    assert 0 < network.latency_s < 1
    assert loading.load(None, [f"network={kind}", "network.latency_s=7"]).network.latency_s == 7


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["network=dsl"], "network.kind: got 'dsl'; known: custom, lan, lte, none, satellite, wifi"),
        (["network.spread=1"], "network.spread: got 1, but kind 'none' does not use it"),
        (["network=custom"], "network.latency_s: must be given for kind 'custom'"),
        (["network=lte", "network.speed_steps_per_s=0"], "network.speed_steps_per_s: got 0; must be a number > 0, a"),
        (["network=lte", "network.speed_steps_per_s=fast"], "got 'fast'; must be a number > 0"),
        (["network=lte", "network.speed_steps_per_s=[]"], "got []; must be a number > 0"),
        (["network=lte", "network.bandwidth_bytes_per_s=0"], "network.bandwidth_bytes_per_s: got 0, must be > 0"),
    ],
)
def test_a_wrong_network_is_refused_by_its_key(overrides, says):
    with pytest.raises(UserError) as error:
        loading.load(None, overrides)
    assert says in str(error.value)


def test_a_speed_may_be_written_in_any_way_that_yaml_knows():
    for given, expected in (("1e3", 1000.0), ("20", 20.0), ("[1, 2.5]", (1.0, 2.5)), ("measure", "measure")):
        config = loading.load(None, ["network=lan", f"network.speed_steps_per_s={given}"])
        assert config.network.speed_steps_per_s == expected
        assert loading.load(config.model_dump()).network == config.network
