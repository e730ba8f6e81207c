"""`plan`: what it prints, what it refuses, and that 100,000 participants are a matter of seconds."""

import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning import plan, timing
from fedh2l_mpi.runtime.world import World


def told(capsys, *words: str) -> dict:
    """The numbers of a plan that times nothing."""
    assert commands.execute(commands.parse(["plan", *words, "--no-calibration", "--json"]), World(None)) == 0
    return json.loads(capsys.readouterr().out)


def shown(capsys, *words: str) -> str:
    assert commands.execute(commands.parse(["plan", *words]), World(None)) == 0
    return capsys.readouterr().out


def test_the_numbers_of_a_small_plan_are_those_worked_out_by_hand(capsys):
    got = told(capsys, "--ranks", "2", "--participants", "4")
    # 48 bytes of header, 4 for the sender, 288 x 10 posteriors in two views, one byte each; a ring of 4 has 4 edges.
    assert got["traffic"]["edge_bytes_per_round"] == 8 * (48 + 4 + 2 * 288 * 10)
    assert got["traffic"]["edge_bytes"] == 40 * got["traffic"]["edge_bytes_per_round"]
    # Participants 0, 1 | 2, 3: 0-3 and 1-2 cross, so each rank sends one message with both arrays.
    assert got["traffic"]["mpi_messages_per_round"] == 2
    assert got["traffic"]["mpi_bytes_per_round"] == 2 * (48 + 2 * (4 + 2 * 288 * 10))
    assert got["traffic"]["record_messages_per_round"] == 1
    assert got["evaluations"] == 8
    assert got["files"]["checkpoints"] == 2
    # metrics.h5, config.yaml, status, two logs, two checkpoints of two files and a manifest.
    assert got["files"]["count"] == 11
    assert got["seconds"] is None
    memory = got["memory_bytes"]
    on_device = ("data", "models", "optimisers", "seed_rows", "step")
    assert memory["on_device"] == sum(memory[part] for part in on_device)
    parts = (*on_device, "messages", "records", "checkpoint", "bookkeeping", "base")
    assert memory["total"] == sum(memory[part] for part in parts)
    assert got["refused"] is None


def test_traffic_follows_the_codec_and_sharing_parameters_is_still_as_they_are(capsys):
    words = ["--ranks", "2", "--participants", "4"]
    usual, coded = (
        told(capsys, *words, *(word for key in sets for word in ("--set", f"exchange.{key}")))["traffic"]
        for sets in ([], ["codec=top_k", "top_k=3"])
    )
    assert coded["edge_bytes_per_round"] == 8 * (48 + 4 + 2 * 288 * 3 * (2 + 1))
    assert coded["mpi_bytes_per_round"] == 2 * (48 + 2 * (4 + 2 * 288 * 3 * (2 + 1)))
    assert coded["sharing_bytes"] == usual["sharing_bytes"]
    page = shown(capsys, *words, "--no-calibration", "--set", "exchange.codec=uint8")
    assert "sharing parameters instead, as float32, 12.7 times" in page
    assert "codec" in page
    assert max(map(len, page.splitlines())) <= 80


def test_where_rows_are_skipped_traffic_is_an_upper_bound_and_says_so(capsys):
    words = ["--ranks", "2", "--participants", "4", "--set", "seed_set.views=none", "--set", "exchange.skip_below=0.05"]
    assert told(capsys, *words)["traffic"]["edge_bytes_per_round"] == 8 * (48 + 4 + 36 + 4 * 288 * 10)
    page = shown(capsys, *words, "--no-calibration")
    assert "Upper limit: rows within 0.05 of the neighbours' copy are not sent again." in page
    assert max(map(len, page.splitlines())) <= 80
    assert commands.execute(commands.parse(["--check", *words[4:]]), World(None)) == 0
    assert "at most 11.3 KiB per edge and direction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("graph", "line"),
    [
        ("ring", "ring, 8 edges, degree 2; spectral gap 0.195"),
        ("hypercube", "hypercube, 12 edges, degree 3; spectral gap 0.5"),
        (
            "one_peer_exponential",
            "one_peer_exponential, 4 edges, degree 1, 3 graphs take turns round by round; spectral gap 0.333 "
            "(mean of a period of 3 graphs)",
        ),
        (
            "{kind: random_regular, degree: 7, redraw_every: 2}",
            "random_regular, 28 edges, degree 7, redrawn every 2 rounds; spectral gap 1 (first graph)",
        ),
    ],
)
def test_a_check_has_the_spectral_gap_of_the_graph(capsys, graph, line):
    words = ["--check", "--set", "participants=8", "--set", f"topology={graph}"]
    assert commands.execute(commands.parse(words), World(None)) == 0
    assert line in " ".join(capsys.readouterr().out.split())


def test_participants_are_as_many_as_ranks_where_the_config_leaves_it_open(capsys):
    assert told(capsys, "--ranks", "6")["participants"] == 6
    assert told(capsys, "--ranks", "3", "--set", "participants=9")["participants"] == 9
    assert told(capsys, "--ranks", "3", "--set", "participants=9", "--participants", "5")["participants"] == 5


def test_a_page_with_times_fits_80_columns_and_names_what_it_leaves_out(capsys):
    page = shown(capsys, "--ranks", "4", "--set", "method.local_steps=2", "--set", "method.mutual_steps=2")
    assert max(map(len, page.splitlines())) <= 80
    assert len(page.splitlines()) <= 60
    sharing = "sharing parameters instead, as float32, 12.7 times"
    for expected in ("memory of the largest rank", sharing, "metrics.h5", "lenet5"):
        assert expected in page
    for word in ("CPU", "It does not include start-up", "slowest rank"):
        assert word in " ".join(page.split())
    assert re.search(r"4 ranks with one core each +[\d.]+ ms +[\d.]+ (ms|s)", page)


@pytest.mark.parametrize("method", ["fedavg", "fedmd", "independent"])
def test_every_kind_of_method_can_be_timed(capsys, method):
    sets = ["models=[mlp]", "topology.kind=complete", f"method.name={method}", "method.local_steps=1", "rounds=2"]
    words = ["--ranks", "3", "--json", *(word for one in sets for word in ("--set", one))]
    assert commands.execute(commands.parse(["plan", *words]), World(None)) == 0
    seconds = json.loads(capsys.readouterr().out)["seconds"]
    phases = seconds["phases"]["mlp"]
    assert phases["mutual"] > 0
    assert phases["evaluate"] > 0
    # Each of 3 ranks hosts one of 3 equal participants.
    assert seconds["cpu"] == pytest.approx(3 * seconds["run"])
    assert seconds["run"] == pytest.approx(
        2 * (phases["local"] + phases["mutual"] + seconds["seed_samples_of_a_round"])
        + phases["evaluate"]
        # The rounds of fedmd's warm-up exchange nothing.
        + (0 if method == "fedmd" else 2) * phases["publish"]
    )


@pytest.fixture
def steps_of_20_ms(monkeypatch):
    """A clock that moves by 20 ms at every optimiser step, and stands still else."""
    clock = SimpleNamespace(now=0.0)

    def step(self, gradient):
        clock.now += 0.02

    monkeypatch.setattr(Participant, "step", step)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))


@pytest.mark.parametrize("steps", [(1, 100), (100, 1), (0, 100)])
@pytest.mark.parametrize("method", ["d_psgd", "fedprox", "fedmd", "fedh2l"])
def test_slow_steps_are_all_counted_whatever_phase_makes_them(steps_of_20_ms, method, steps):
    local, mutual = steps
    sets = [f"method.name={method}", f"method.local_steps={local}", f"method.mutual_steps={mutual}", "models=[mlp]"]
    config = loading.load(None, [*sets, "topology.kind=complete"]).resolved(4, launched=True)
    (phases,) = plan.plan_run(config, "", 4, True).calibration.phases.values()
    together = 0.02 * (local + mutual)
    expected = {"fedmd": (0.0, together), "fedh2l": (0.02 * local, 0.02 * mutual)}.get(method, (together, 0.0))
    assert (phases.local, phases.mutual) == pytest.approx(expected)
    assert phases.private_step == pytest.approx(0.02)


def test_an_evaluation_that_calibrates_draws_seed_rows_and_passes_them(monkeypatch):
    passed: list[int] = []
    monkeypatch.setattr(timing, "score", lambda participant, scored: passed.append(len(scored)))
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    found = {}
    for calibration in ("none", "seed_set"):
        given = ["models=[mlp]", "rounds=40", "evaluation.every=15", "evaluation.batch_size=2048"]
        config = loading.load(None, [*given, f"evaluation.calibration={calibration}"]).resolved(4, launched=True)
        found[calibration] = plan.plan_run(config, "", 4, True)
    assert [found[name].seed_draws for name in ("none", "seed_set")] == [40, 43]
    assert passed[1] - passed[0] == found["none"].required.counts.seed_rows_per_round > 0


def test_a_hub_with_far_more_neighbours_than_were_timed_is_told_of(steps_of_20_ms, capsys):
    words = ["--ranks", "20", "--set", "topology.kind=star", "--set", "models=[mlp]"]
    flat = " ".join(shown(capsys, *words).split())
    assert "Timed with 2 neighbours. The mean is 1.9, but one participant has 19: it and its rank take longer" in flat
    for others in (["--set", "topology.kind=ring"], ["--set", "method.name=independent"]):
        assert "Timed with" not in " ".join(shown(capsys, *words, *others).split())


def test_a_method_that_exchanges_nothing_says_so(capsys):
    page = shown(capsys, "--ranks", "4", "--no-calibration", "--set", "method.name=independent")
    assert "none: method independent exchanges nothing" in page


def test_data_that_do_not_suffice_are_told_and_planned_all_the_same(capsys):
    page = shown(capsys, "--ranks", "10", "--participants", "5000", "--no-calibration")
    flat = " ".join(page.split())
    assert "A run would be refused: participants: got 5000, but there are only 1438 training samples" in flat
    got = told(capsys, "--ranks", "10", "--participants", "50", "--set", "data.partition.samples_per_participant=100")
    assert "50 participants with 100 samples each need 5000, but the training data have 1438" in got["refused"]
    assert got["memory_bytes"]["data"] > 5 * 80 * 4 * 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0"], "--ranks: got '0', must be a whole number >= 1"),
        ([], "--ranks"),
        (["--ranks", "5", "--participants", "4"], "--ranks: got 5, must be 4 or fewer"),
        (["--ranks", "1", "--participants", "100001"], "participants: got 100001, must be 100000 or fewer"),
        (["--ranks", "4", "--set", "topology.kind=rign"], "topology.kind: got 'rign'"),
        (["--ranks", "4", "--set", "models=[lenet6]"], "models: got 'lenet6'"),
        (["--ranks", "4", "--set", "topology.kind=random_regular", "--set", "topology.degree=4"], "topology.degree"),
        (["--ranks", "4", "--set", "method.name=fedavg", "--set", "models=[mlp]"], "topology.kind: got 'ring'"),
        (["none.yaml", "--ranks", "4"], "none.yaml"),
    ],
)
def test_mistakes_are_told_by_their_key(words, message):
    with pytest.raises(UserError) as error:
        commands.execute(commands.parse(["plan", *words, "--no-calibration"], speaks=False), World(None))
    assert message in str(error.value)


# The kernel's own high-water mark: ru_maxrss of a new process begins at that of the process that started it.
LARGE = """
import pathlib, re, sys
from fedh2l_mpi.cli import commands
from fedh2l_mpi.runtime.world import World
code = commands.execute(commands.parse(sys.argv[1:]), World(None))
print("peak KiB", re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
assert "mpi4py" not in sys.modules
sys.exit(code)
"""


def test_a_hundred_thousand_participants_take_seconds_and_less_than_a_gigabyte():
    sets = ["topology.kind=random_regular", "topology.degree=4", "models=[mlp, lenet5]"]
    words = ["plan", "--ranks", "1000", "--participants", "100000", "--no-calibration"]
    words += [word for one in sets for word in ("--set", one)]
    begin = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", LARGE, *words], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begin < 45
    assert int(ended.stdout.split()[-1]) < 2**20
    assert "random_regular, 200,000 edges, degree 4" in ended.stdout


@pytest.mark.parametrize("graph", [["kind=complete"], ["kind=erdos_renyi", "probability=0.001"], ["kind=star"]])
def test_large_graphs_that_would_take_minutes_are_not_drawn(capsys, graph):
    sets = [word for one in graph for word in ("--set", f"topology.{one}")]
    got = told(capsys, "--ranks", "300", "--participants", "30000", "--set", "models=[mlp]", *sets)
    pairs = 30_000 * 29_999 / 2
    edges = {"kind=complete": pairs, "kind=erdos_renyi": pairs / 1000, "kind=star": 29_999}[graph[0]]
    assert got["graph"]["edges"] == pytest.approx(edges)
    assert (got["graph"]["caution"] is None) == (graph[0] != "kind=erdos_renyi")
