"""Messages and bytes of a run, against those of exchanges and of metrics files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.configs import settled

from fedh2l_mpi import api, metrics
from fedh2l_mpi.config import TopologyConfig
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.exchange import ArraySpec, Exchange
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.planning import disk, graph_schedule, requirements, traffic
from fedh2l_mpi.planning.traffic import MessageSize
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import draw

# A message with one 3 x 10 array: 48 bytes of header, 4 for the sender, 120 of numbers.
ARRAY = ArraySpec("posteriors", 3, 10)
SIZE = MessageSize(48, 4 + 120, 120)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize("kind", ["ring", "star", "complete", "random_regular", "erdos_renyi"])
def test_messages_and_bytes_are_those_that_the_exchange_gives_to_mpi(kind, ranks):
    graph = draw(TopologyConfig(kind=kind), 12, 0, 0)
    hosting = Hosting(12, ranks)
    told = traffic.links(graph.edges, hosting)
    for rank in range(ranks):
        exchange = Exchange(SimpleNamespace(rank=rank, comm=None, duplicate=lambda: None), hosting, ARRAY, 1.0)
        exchange.start(0, graph, {index: torch.full((3, 10), 0.1) for index in hosting.participants_of(rank)})
        assert exchange.mpi_sent == told.mpi_bytes_R(SIZE)[rank]
        assert len(exchange._routes) == told.messages_R[rank]
        assert sum(len(route.incoming.senders) for route in exchange._routes) == told.received_R[rank]
    assert told.edge_bytes(SIZE) == 2 * len(graph.edges) * ARRAY.message_bytes()
    assert told.degree_P.tolist() == graph.degrees().tolist()


@pytest.mark.parametrize("ranks", [1, 3, 4, 11])
def test_a_complete_graph_need_not_be_drawn(ranks):
    hosting = Hosting(11, ranks)
    drawn = traffic.links(draw(TopologyConfig(kind="complete"), 11, 0, 0).edges, hosting)
    told = traffic.expected_links(1.0, hosting)
    assert not told.expected
    for name in ("degree_P", "messages_R", "sent_R", "received_R", "degree_max_R", "edges"):
        assert np.array_equal(getattr(told, name), getattr(drawn, name)), name


def test_expected_links_are_the_mean_of_drawn_ones():
    hosting = Hosting(40, 7)
    config = TopologyConfig(kind="erdos_renyi", probability=0.1, connected=False)
    drawn = [traffic.links(draw(config, 40, 0, drawing).edges, hosting) for drawing in range(200)]
    told = traffic.expected_links(0.1, hosting)
    assert told.expected
    for name in ("messages_R", "sent_R", "received_R"):
        mean = np.mean([getattr(one, name) for one in drawn], axis=0)
        assert getattr(told, name) == pytest.approx(mean, rel=0.05), name
    assert told.edges == pytest.approx(np.mean([one.edges for one in drawn]), rel=0.02)


REDRAWN = ["topology.kind=erdos_renyi", "topology.redraw_every=2", "topology.probability=0.4"]


@pytest.mark.parametrize(
    "overrides",
    [
        REDRAWN,
        # Two, two and one pairs in turns.
        ["topology=one_peer_exponential"],
        ["method.name=d_psgd", "models=[mlp]"],
        ["method.name=fedmd", "method.warmup_rounds=2"],
        ["method.name=independent"],
        ["exchange.codec=top_k", "exchange.top_k=3"],
        ["method.name=d_psgd", "models=[mlp]", "exchange.codec=bfloat16"],
    ],
)
def test_traffic_and_the_metrics_file_are_those_of_the_run(tmp_path, overrides):
    config = settled(
        "participants=5", "rounds=5", *overrides, "method.local_steps=1", "method.mutual_steps=1", "evaluation.every=5"
    )
    directory = RunDirectory(tmp_path / "run")
    simulation = api.assemble(config, World(None), RunReservation(directory))
    simulation.run()
    hosting, source = Hosting(5, 1), digits()
    schedule = graph_schedule.draw_schedule(config, hosting, simulation.method.exchanges_in)
    needs = requirements.compute(config, source, simulation.method, requirements.count_samples(simulation.setup.plan))
    sent = int(metrics.read(directory.metrics)["bytes_sent"].sum())
    assert sent == (schedule.edge_bytes(needs.message) if needs.message is not None else 0)
    assert (sent > 0) == (config.method.name != "independent")
    told = disk.files(config, hosting, needs.counts, needs.models, schedule.edges, columns=needs.columns)
    assert told.metrics_bytes == pytest.approx(directory.metrics.stat().st_size, rel=0.01)
