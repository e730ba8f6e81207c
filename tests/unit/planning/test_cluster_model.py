"""A round on a cluster, on paper: worked out by hand, and never faster on a slower network."""

import json

import numpy as np
import pytest

from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.planning import cluster_model
from fedh2l_mpi.planning.cluster_model import ClusterModel, Rows, Steps
from fedh2l_mpi.planning.overhead import FITTED, TERMS, OverheadConstants, count_loads
from fedh2l_mpi.planning.traffic import MessageSize, links
from fedh2l_mpi.runtime import units
from fedh2l_mpi.runtime.hosting import Hosting

# A ring of 4 on 2 ranks: 0, 1 | 2, 3. 0-3 and 1-2 cross: each rank sends one message with both arrays.
RING = links([(0, 1), (1, 2), (2, 3), (0, 3)], Hosting(4, 2))
SIZE = MessageSize(fixed_bytes=50, array_bytes=1000, held_bytes=1000)
LOADS = count_loads(RING, Hosting(4, 2), SIZE, notes=30, row_bytes=400)
# Each constant another power of two, in ms, so that a sum says what is in it.
NAMES = [name for terms in TERMS.values() for name in terms]
POWERS = OverheadConstants(**{name: 1e-3 * 2.0**-number for number, name in enumerate(NAMES)})
STEPS = Steps(np.array([0.2, 0.3]), np.array([0.004, 0.004]))


def told(network: ClusterModel, constants: OverheadConstants = POWERS, steps: Steps = STEPS, share: float = 1.0):
    return cluster_model.forecast(network, LOADS, steps, Rows(1, 2000.0), share, constants)


def test_the_loads_of_a_ring_of_four_on_two_ranks():
    assert {name: values.tolist() for name, values in LOADS.counts.items()} == {
        "participants": [2, 2],
        "rows_bytes": [1600, 0],
        "notes": [60, 60],
        "neighbours": [4, 4],
        "messages": [1, 1],
        "sent_bytes": [2050, 2050],
        "received_bytes": [2050, 2050],
        "published_bytes": [2000, 2000],
        "stacked_bytes": [4000, 4000],
        "round": [1, 1],
        "file": [1, 0],
    }
    alone = count_loads(RING, Hosting(4, 2), None, notes=30, row_bytes=400)
    assert alone.neighbours.tolist() == alone.messages.tolist() == alone.stacked_bytes.tolist() == [0, 0]


def test_every_constant_is_counted_as_often_as_it_happens():
    parts = POWERS.seconds(LOADS)
    ms = {name: 2.0**-number for number, name in enumerate(NAMES)}
    assert 1e3 * parts["post"] == pytest.approx(
        [2 * ms["publish_s"] + 2000 * ms["publish_byte_s"] + ms["send_s"] + 2050 * ms["send_byte_s"]] * 2
    )
    assert 1e3 * parts["finish"] == pytest.approx(
        [2 * ms["finish_s"] + ms["receive_s"] + 2050 * ms["receive_byte_s"]] * 2
    )
    assert 1e3 * parts["stack"] == pytest.approx(
        [2 * ms["stack_s"] + 4 * ms["stack_one_s"] + 4000 * ms["stack_byte_s"]] * 2
    )
    assert 1e3 * parts["rest"] == pytest.approx([ms["round_s"] + 2 * ms["participant_s"] + 60 * ms["note_s"]] * 2)
    assert 1e3 * parts["write"] == pytest.approx([ms["write_s"] + 1600 * ms["write_row_byte_s"], 0.0])


def test_a_round_is_the_slowest_ranks_steps_bookkeeping_unhidden_messages_and_writing():
    nothing = OverheadConstants(**dict.fromkeys(NAMES, 0.0))
    # 1 ms and 2,050 bytes at 1 MB/s: 3.05 ms, behind 4 ms / 2 of local phase; steps 300 ms / 2 at rank 1.
    got = told(ClusterModel(1e-3, 1e6, 2.0), nothing)
    assert (got.rank, got.bottleneck[0]) == (1, "training steps")
    assert (got.steps, got.messages, got.exposed) == pytest.approx((0.15, 3.05e-3, 1.05e-3))
    assert got.rows == pytest.approx(1e-3 + 2000 / 1e6)
    assert got.round == got.path == pytest.approx(0.15105)
    # In half of the rounds nothing is sent.
    assert told(ClusterModel(1e-3, 1e6, 2.0), nothing, share=0.5).exposed == pytest.approx(0.525e-3)
    # 100 bytes/s: 20.5 s on their way, less 4 ms; rows take 20.001 s, which is less than the round.
    slow = told(ClusterModel(1e-3, 100.0, 1.0), nothing)
    assert slow.bottleneck[0] == "messages"
    assert slow.round == pytest.approx(0.3 + 20.501 - 0.004)
    # 2,000 bytes of rows at 1,000 bytes/s hold up a round of two messages' headers.
    bare = cluster_model.forecast(
        ClusterModel(0.0, 1000.0, 1.0),
        count_loads(RING, Hosting(4, 2), None, notes=30, row_bytes=400),
        STEPS,
        Rows(1, 2000.0),
        0.0,
        nothing,
    )
    assert (bare.path, bare.rows, bare.round) == pytest.approx((0.3, 2.0, 2.0))
    assert bare.bottleneck == ("rows on their way to rank 0", 1.0)
    written = told(
        ClusterModel(0.0, 1e12, 1.0), OverheadConstants(**{**dict.fromkeys(NAMES, 0.0), "write_row_byte_s": 1.0})
    )
    assert (written.rank, written.write, written.bottleneck[0]) == (0, 1600.0, "writing rows")


def test_a_slower_network_is_never_faster_nor_is_a_slower_device():
    times = np.array(
        [
            [told(ClusterModel(latency, bandwidth, 8.0), FITTED).round for bandwidth in (1e10, 1e8, 1e6, 1e4, 1e2)]
            for latency in (0.0, 1e-6, 1e-4, 1e-2, 1.0)
        ]
    )
    assert (np.diff(times, axis=0) >= 0).all()
    assert (np.diff(times, axis=1) >= 0).all()
    assert times[-1, -1] > times[0, 0] + 20
    by_device = [told(ClusterModel(1e-6, 1e9, speedup), FITTED).round for speedup in (1, 2, 20, 1000)]
    assert by_device == sorted(by_device, reverse=True)


def test_latency_and_bandwidth_are_read_with_their_units():
    assert [units.seconds(text) for text in ("2us", "1.5 ms", "0s", "500ns")] == pytest.approx([2e-6, 1.5e-3, 0, 5e-7])
    speeds = ("25GB/s", "12.5 GiB/s", "200Gbit/s", "1e3kB/s")
    assert [units.bytes_per_second(text) for text in speeds] == pytest.approx([25e9, 12.5 * 2**30, 25e9, 1e6])


NETWORK = ["--latency", "2us", "--bandwidth", "25GB/s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latency", "2", "--bandwidth", "25GB/s"], "--latency: got '2', must be a number and one of ns, us"),
        (["--latency", "-2us", "--bandwidth", "25GB/s"], "--latency"),
        (["--latency", "2us", "--bandwidth", "25Gb/s"], "--bandwidth: got '25Gb/s', must be a number and one of B/s"),
        (["--latency", "2us", "--bandwidth", "0GB/s"], "--bandwidth: got '0GB/s', must be more than 0"),
        (["--latency", "2us"], "--bandwidth: is missing"),
        (["--bandwidth", "25GB/s"], "--latency: is missing"),
        (["--speedup", "20"], "--speedup: describes a cluster"),
        ([*NETWORK, "--speedup", "0"], "--speedup: got '0', must be a number > 0"),
        ([*NETWORK, "--speedup", "nan"], "--speedup: got 'nan', must be a number > 0"),
        ([*NETWORK, "--no-calibration"], "--latency: a round on a cluster is estimated from timed steps"),
    ],
)
def test_mistakes_in_what_a_cluster_is_are_told(words, message):
    with pytest.raises(UserError) as error:
        commands.parse(["plan", "--ranks", "4", *words], speaks=False)
    assert message in str(error.value)


def test_a_plan_tells_the_round_on_a_cluster_and_the_same_with_parameters(capsys):
    steps = ["--set", "method.local_steps=1", "--set", "method.mutual_steps=1", "--set", "models=[mlp]"]
    apart = ["--set", "method.combine=gem", "--set", "method.local_labels=private"]
    apart += ["--set", "evaluation.calibration=none"]
    words = ["plan", "--ranks", "4", *NETWORK, "--speedup", "20", *steps]
    assert commands.execute(commands.parse([*words, *apart, "--json"]), None) == 0
    got = json.loads(capsys.readouterr().out)
    posteriors, parameters = got["cluster"]["as configured"], got["cluster"]["parameters"]
    # Each of 4 ranks sends to both neighbours: 288 x 10 posteriors in two views, or 17,226 parameters.
    assert posteriors["sent_bytes"] == 2 * (48 + 4 + 2 * 288 * 10)
    assert parameters["sent_bytes"] == 2 * (48 + 4 + 4 * 17_226)
    assert posteriors["messages"] == pytest.approx(2 * 2e-6 + posteriors["sent_bytes"] / 25e9)
    seconds = got["seconds"]
    assert posteriors["steps"] == pytest.approx(seconds["round"] / 20)
    # Two steps on private data, where the method configured takes a second gradient in one of them.
    phases = seconds["phases"]["mlp"]
    besides = seconds["seed_samples_of_a_round"] + phases["evaluate"] * got["evaluations"] / got["rounds"]
    assert parameters["steps"] == pytest.approx((2 * phases["private_step"] + besides) / 20)
    assert commands.execute(commands.parse([*words, "--set", "method.name=d_psgd"]), None) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert "as configured" not in page
    assert "With parameters" not in page
    assert "steps 20 times as fast as this core" in " ".join(page.split())
