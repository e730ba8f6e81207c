"""The simulated time of a plan is that of the run."""

import pytest

from fedh2l_mpi import api, methods, metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.planning.simulated_time import network_text, simulated_seconds
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World


def settled(*overrides):
    return loading.load(None, overrides).resolved(1, launched=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["topology=one_peer_exponential"],
        ["method.name=fedmd", "method.warmup_rounds=2", "topology=star"],
        ["method.name=d_psgd", "models=[mlp]", "network.spread=0.5"],
        ["method.name=independent"],
    ],
)
def test_a_plan_and_its_run_take_the_same_simulated_time(tmp_path, overrides):
    config = settled(
        *("participants=5", "rounds=5", "method.local_steps=1", "method.mutual_steps=1", "evaluation.every=5"),
        *("network=satellite", "network.speed_steps_per_s=[2, 20]", *overrides),
    )
    directory = RunDirectory(tmp_path / "run")
    simulation = api.assemble(config, World(None), RunReservation(directory))
    simulation.run()
    array = simulation.setup.array
    edge_bytes = array.message_bytes(1) if array is not None else 0
    run_s = simulated_seconds(config, simulation.method, edge_bytes)
    assert run_s == metrics.read(directory.metrics)["simulated_seconds"][-1].max() > 0


def test_measured_speeds_count_as_soon_as_they_are_known():
    config = settled("participants=3", "rounds=4", "network=lan", "network.speed_steps_per_s=measure")
    method, steps = methods.build(config), config.method.local_steps + config.method.mutual_steps
    assert simulated_seconds(config, method, 0) == 0.0
    assert simulated_seconds(config, method, 0, [10.0, 4.0, 20.0]) == pytest.approx(4 * steps / 4.0)
    assert network_text(config, 0.5, with_speeds=True) == "lan: 500 ms simulated in 4 rounds, 125 ms per round"
    assert "without the steps, which are not timed yet" in network_text(config, 0.5, with_speeds=False)


def test_no_clock_and_graphs_that_are_too_large_have_no_simulated_time():
    assert simulated_seconds(settled(), methods.build(settled()), 100) is None
    large = settled("participants=10000", "topology=complete", "network=lan")
    assert simulated_seconds(large, methods.build(large), 100) is None
    assert network_text(large, None, with_speeds=True).startswith("lan: not simulated here")


@pytest.mark.parametrize("words", [["--check"], ["plan", "--no-calibration", "--ranks", "4"]])
def test_check_and_plan_print_the_simulated_time(capsys, words):
    sets = ["rounds=10", "network=lte", "network.speed_steps_per_s=20"]
    words = [*words, *(word for one in sets for word in ("--set", one))]
    assert commands.execute(commands.parse(words), World(None)) == 0
    # 20 steps of 0.05 s; the messages travel during the 2 local ones.
    assert "lte: 10 s simulated in 10 rounds, 1 s per round" in " ".join(capsys.readouterr().out.split())
