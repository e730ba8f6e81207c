"""Memory of a rank by arithmetic, against what tensors, steps and messages really use."""

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.configs import settled
from helpers.rounds import a_round_of
from torch.profiler import ProfilerActivity, profile

from fedh2l_mpi import api, methods
from fedh2l_mpi.config import Config, ExchangeConfig, TopologyConfig
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import ArrayTable, Source, digits
from fedh2l_mpi.evaluation import score
from fedh2l_mpi.exchange import ArraySpec, codecs
from fedh2l_mpi.exchange.row_skipping import CachedRows
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.methods.batched import BatchedParticipants
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.models import build
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning import memory, requirements, traffic
from fedh2l_mpi.planning.sizes import ModelSize, SampleCounts
from fedh2l_mpi.planning.step_memory import PhaseInputs
from fedh2l_mpi.planning.traffic import MessageSize
from fedh2l_mpi.planning.view_size import ViewSize
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph, Topology, draw

# A round of as many rows as with the whole seed set.
HALF_IN_TWO_VIEWS = ("seed_set.samples_per_round=144", "seed_set.views_per_sample=2")


def test_of_a_codec_both_what_is_sent_and_what_is_decoded_takes_memory():
    config = settled("participants=4", "exchange.codec=uint8", *HALF_IN_TWO_VIEWS)
    source, method = digits(), methods.build(config)
    needs = requirements.compute(config, source, method, requirements.count_samples(federated.plan(config, source)))
    assert needs.message == MessageSize(48, 4 + 288 * 10, 4 * 288 * 10, is_coded=True)
    memory = needs.memory(Hosting(4, 2), traffic.links([(0, 1), (1, 2), (2, 3), (3, 0)], Hosting(4, 2)))
    # Encoded: two published, two in the outgoing message, two in the incoming one. In float32: two published, these two
    # and two from the other rank decoded, and the two neighbours' of the participant that learns.
    assert memory.messages.tolist() == [6 * (4 + 2880) + 2 * 48 + 8 * 4 * 2880] * 2


def test_where_rows_are_skipped_what_is_held_takes_memory_and_a_place_in_the_checkpoint():
    ring = traffic.links([(0, 1), (1, 2), (2, 3), (3, 0)], Hosting(4, 2))
    source, told = digits(), []
    for bound in ("null", "0.1"):
        overrides = ["exchange.codec=float32", "seed_set.views=none", f"exchange.skip_below={bound}"]
        config = settled("participants=4", *overrides)
        method = methods.build(config)
        told.append(
            requirements.compute(config, source, method, requirements.count_samples(federated.plan(config, source)))
        )
    array = 4 * 288 * 10
    assert told[1].message == MessageSize(48, 4 + 288 // 8 + array, array, is_coded=True)
    assert [needs.kept_bytes for needs in told] == [0, array]
    usual, skipping = (needs.memory(Hosting(4, 2), ring) for needs in told)
    # Of two participants each, the state and the file with it.
    assert (skipping.checkpoint - usual.checkpoint).tolist() == [2 * 2 * array] * 2
    # Two published arrays in bytes, what is held of them and of two elsewhere; six arrays' bits and senders. Of the one
    # that is compared, the difference in float64 and the rows that are sent.
    bits = 6 * (4 + 36) - 4 * 4
    assert (skipping.messages - usual.messages).tolist() == [(6 + 3) * array + bits] * 2


def test_own_posteriors_that_are_compared_take_memory_and_no_place_in_a_checkpoint(tmp_path):
    ring = traffic.links([(0, 1), (1, 2), (2, 3), (3, 0)], Hosting(4, 2))
    source, told = digits(), []
    for kind in ("right", "better"):
        config = settled("participants=4", "rounds=1", "models=[mlp]", f"method.teachers={kind}")
        counts = requirements.count_samples(federated.plan(config, source))
        needs = requirements.compute(config, source, methods.build(config), counts)
        assert needs.kept_bytes == 0
        told.append(needs.memory(Hosting(4, 2), ring))
    # In two views.
    assert (told[1].models - told[0].models).tolist() == [2 * 4 * 2 * 288 * 10] * 2
    assert told[1].checkpoint.tolist() == told[0].checkpoint.tolist()
    simulation = api.assemble(config, World(None), RunReservation(RunDirectory(tmp_path / "run")))
    simulation.run()
    assert [participant.state()["kept"] for participant in simulation.participants] == [{}] * 4


@pytest.mark.parametrize("codec", codecs.KINDS)
def test_to_find_the_rows_that_changed_takes_about_what_is_told(codec):
    exchange = ExchangeConfig(codec=codec, top_k=3 if codec == "top_k" else None)
    array = ArraySpec("posteriors", 20_000, 10, True, codecs.build(exchange), skip_below=0.01)
    posteriors = torch.full((20_000, 10), 0.1).numpy()
    rows = CachedRows(array, [0])
    tracemalloc.start()
    part = rows.encode(0, posteriors)
    rows.decode(0, part)
    # The part itself is counted as what is published.
    measured = tracemalloc.get_traced_memory()[1] - len(part)
    tracemalloc.stop()
    told = memory.CHANGES_ARRAYS[codec] * array.memory_bytes
    assert 0.9 * told <= measured <= 1.02 * told


@pytest.mark.parametrize(
    "optimizer",
    [
        ["optimizer.name=adam", "seed_set.views_per_sample=2"],
        ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.average=none"],
        ["optimizer.name=adam", "optimizer.average=ema", "evaluation.local_test_share=0.2"],
        # Of the two architectures, only one has moments.
        ["optimizer.name=sgd", "optimizer.average=ema", "optimizer.per_model={resnet8: {name: adamw}}"],
    ],
)
def test_data_models_and_optimisers_are_the_bytes_of_the_tensors(tmp_path, optimizer):
    config = settled("participants=5", "models=[cnn, resnet8]", "evaluation.calibration=none", *optimizer)
    simulation = api.assemble(config, World(None), RunReservation(RunDirectory(tmp_path / "run")))
    needs = requirements.compute(config, digits(), simulation.method, requirements.count_samples(simulation.setup.plan))
    told = needs.memory(Hosting(5, 1), traffic.links(Graph(5, []).edges, Hosting(5, 1)))
    held = simulation.setup.federation
    own = [*held.private.values(), *held.validation.values(), *held.local_test.values()]
    sets = [*own, *held.tests, held.seed_set.samples]
    assert told.data[0] == sum(part.stored.nbytes + part.labels.nbytes for part in sets)
    rows = held.seed_set.of_round(0)
    # The labels of a single view are those of the seed set.
    made = [rows.inputs] if config.seed_set.views_per_sample == 1 else [rows.inputs, rows.labels, rows.targets]
    assert told.seed_rows[0] == sum(tensor.nbytes for tensor in made)
    learners = simulation.participants
    averages = [one.average.state().values() if one.average is not None else () for one in learners]
    assert any(map(len, averages)) == (config.optimizer.average == "ema")
    assert told.models[0] == sum(
        value.nbytes
        for one, average in zip(learners, averages, strict=True)
        for value in [*one.model.parameters(), *one.model.buffers(), *average]
    )
    assert told.optimisers[0] == sum(value.nbytes for one in learners for value in one.optimizer.state().values())
    assert told.optimisers[0] > 0


def test_a_rank_is_charged_for_its_own_participants_and_the_sum_does_not_depend_on_the_ranks():
    needs_config = settled("participants=7", "data.partition.kind=quantity")
    source, method = digits(), methods.build(needs_config)
    needs = requirements.compute(
        needs_config, source, method, requirements.count_samples(federated.plan(needs_config, source))
    )
    whole, parts = (
        needs.memory(hosting, traffic.links([(0, 1), (5, 6)], hosting)) for hosting in (Hosting(7, 1), Hosting(7, 3))
    )
    assert whole.models[0] == parts.models.sum()
    assert whole.optimisers[0] == parts.optimisers.sum()
    # Seed set and test sets lie on every rank.
    everyones = (needs.counts.seed + sum(needs.counts.tests)) * needs.counts.stored_bytes
    assert whole.data[0] == parts.data.sum() - 2 * everyones
    assert parts.seed_rows.tolist() == [whole.seed_rows[0]] * 3
    assert parts.messages.argmin() == 1, "the rank whose participants have no neighbours"


def test_pooled_data_lie_on_a_rank_once():
    config = settled("participants=6", "method.name=pooled")
    source, method = digits(), methods.build(config)
    needs = requirements.compute(config, source, method, requirements.count_samples(federated.plan(config, source)))
    one, six = (needs.memory(hosting, traffic.links([], hosting)) for hosting in (Hosting(6, 1), Hosting(6, 6)))
    private = int(needs.counts.private_P.sum()) * needs.counts.stored_bytes
    assert six.data.min() > private
    # The one rank holds the validation samples of five more, and nothing else twice.
    others = int(needs.counts.validation_P[1:].sum()) * needs.counts.stored_bytes
    assert one.data[0] == six.data[0] + others


def needs_of(config: Config, side: int = 8) -> tuple[requirements.Requirements, Source]:
    """Of participants with 64 private samples each, and of random pictures."""
    table = ArrayTable(np.zeros(500, dtype=np.int64), np.zeros((500, 1, side, side), dtype=np.uint8))
    source = Source("pictures", 10, SampleForm.image(1, side), 255.0, 0.5, 0.25, table, table)
    count, stored = config.size, source.sample_bytes + 8
    held = SampleCounts(np.full(count, 64), np.full(count, 0), 64, 64, [128], 10, stored, source.form.input_bytes)
    return requirements.compute(config, source, methods.build(config), held), source


@pytest.mark.parametrize("combine", ["gem", "gem_neighbours"])
def test_a_rank_is_charged_for_the_neighbours_of_those_it_hosts(combine):
    star = traffic.links([(0, i) for i in range(1, 5)], Hosting(5, 5))
    needs, _ = needs_of(settled("models=[mlp]", "participants=5", f"method.combine={combine}"))
    centre, *others = needs.memory(Hosting(5, 5), star).step.tolist()
    # A gradient for every neighbour, and it stacked.
    each = needs.message.held_bytes
    if combine == "gem_neighbours":
        # With so many gradients, a pass takes more than the update: there are also the neighbour's posteriors on a seed
        # minibatch of 64, and two terms of its divergence.
        each += 2 * needs.models["mlp"].trainable_bytes + 3 * 4 * 64 * 10
    assert others == [centre - 3 * each] * 4


def test_where_the_graph_is_redrawn_anybody_may_come_to_have_most_neighbours():
    star = traffic.links([(0, i) for i in range(1, 5)], Hosting(5, 5))
    once, again = (
        needs_of(settled("models=[mlp]", "participants=5", "topology.kind=erdos_renyi", *more))[0]
        for more in ([], ["topology.redraw_every=2"])
    )
    assert again.memory(Hosting(5, 5), star).step.tolist() == [int(once.memory(Hosting(5, 5), star).step.max())] * 5


@pytest.mark.parametrize("batching", ["off", "like"])
def test_where_the_device_is_the_host_what_a_learner_has_of_its_neighbours_is_there_once(batching):
    hosting = Hosting(6, 1)
    ring = traffic.links(draw(TopologyConfig(kind="ring"), 6, 0, 0).edges, hosting)
    needs, _ = needs_of(settled("models=[mlp]", "participants=6", f"devices.batching={batching}"))
    apart, one = (needs.memory(hosting, ring, on_host) for on_host in (False, True))
    assert apart.on_device == one.on_device
    learners = 6 if batching == "like" else 1
    assert apart.total - one.total == learners * 2 * needs.message.held_bytes
    # Where neighbours' arrays are taken one by one, all of them are among the messages only.
    needs, _ = needs_of(settled("models=[mlp]", "participants=6", "method.name=d_psgd"))
    assert needs.memory(hosting, ring, on_host=True).total == needs.memory(hosting, ring).total


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "d_psgd"])
def test_averaging_parameters_takes_about_what_is_told_however_many_neighbours(name):
    overrides = ["method.local_steps=2", "method.mutual_steps=2", "topology.kind=complete", f"method.name={name}"]
    # An evaluation in small pieces, so that it is not what takes most.
    config = settled("models=[mlp]", "participants=40", "evaluation.batch_size=32", *overrides)
    needs, source = needs_of(config, side=28)
    edges = draw(TopologyConfig(kind="complete"), 40, 0, 0).edges
    told = needs.memory(Hosting(40, 40), traffic.links(edges, Hosting(40, 40)))
    learner: Participant = requirements.stand_in_participant(
        config, source, build("mlp", SampleForm.image(1, 28), 10, 0), 64
    )
    samples, tested = requirements.random_samples(source, 64), requirements.random_samples(source, 128)
    now = a_round_of(samples, Graph(40, edges), (64,) * 40)
    theirs = torch.stack([needs.method.publish(learner, now)] * 39)

    def steps():
        needs.method.local_phase(learner, now)
        needs.method.mutual_phase(learner, now, theirs)
        score(learner, tested)

    steps()
    measured = peak_bytes(steps)
    assert measured <= 1.1 * told.step[0]
    assert told.step[0] <= 2.5 * measured
    assert told.messages[0] > 39 * needs.message.held_bytes


def peak_bytes(action) -> int:
    """The most that lived at once of what `action` allocated on the CPU."""
    # Garbage of earlier tests would be freed meanwhile, and counted against the action.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


@pytest.mark.parametrize(
    ("side", "degree", "combine"), [(8, 2, "gem"), (8, 8, "gem"), (28, 4, "gem"), (8, 2, "joint"), (28, 4, "joint")]
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_cohort_takes_no_more_than_is_told_and_not_much_less(side, degree, combine, optimizer):
    overrides = ["models=[mlp]", "participants=20", "devices.batching=like", f"optimizer.name={optimizer}"]
    overrides += [f"method.combine={combine}"]
    config = settled(*overrides, "method.local_steps=2", "method.mutual_steps=2")
    table = ArrayTable(np.zeros(500, dtype=np.int64), np.zeros((500, 1, side, side), dtype=np.uint8))
    source = Source("pictures", 10, SampleForm.image(1, side), 255.0, 0.5, 0.25, table, table)
    method = methods.build(config)
    held = SampleCounts(
        np.full(20, 64), np.full(20, 0), 256, 256, [128], 10, source.sample_bytes + 8, source.form.input_bytes
    )
    needs = requirements.compute(config, source, method, held)
    graph = draw(TopologyConfig(kind="random_regular", degree=degree), 20, 0, 0)
    # Of 20 on one rank, 16 step together.
    hosting = Hosting(20, 1)
    told = needs.memory(hosting, traffic.links(graph.edges, hosting))
    alone = replace(needs, config=settled(*overrides, "devices.batching=off"))
    one_by_one = alone.memory(hosting, traffic.links(graph.edges, hosting))
    # Sixteen members' views of their neighbours' arrays, and the cohort's of the same, instead of one participant's.
    assert told.messages[0] - one_by_one.messages[0] == (2 * 16 - 1) * degree * needs.message.held_bytes
    for same in ("data", "models", "optimisers", "checkpoint"):
        assert getattr(told, same) == getattr(one_by_one, same)
    samples = requirements.random_samples(source, 256)
    now = a_round_of(samples, graph, (64,) * 20)
    arrived = torch.full((20, 256, 10), 0.1)
    cohorts = []

    def steps():
        method.local_phase(cohorts[0], now)
        method.mutual_phase(cohorts[0], now, torch.stack([arrived[:degree]] * 16, dim=1))

    def join() -> None:
        models = [build("mlp", SampleForm.image(1, side), 10, 0) for _ in range(16)]
        learners = [requirements.stand_in_participant(config, source, model, 64) for model in models]
        cohorts.append(BatchedParticipants(learners))

    # At first, vectors of 16 members of 20 and the matrices that replace them, one after the other.
    of_all = told.models[0] + told.optimisers[0]
    assert peak_bytes(join) <= told.step[0] + 16 / 20 * of_all + 16 * 64 * (source.form.input_bytes + 8)
    steps()
    # With SGD, which computes less on the way than Adam, the more so.
    assert 0.5 * told.step[0] <= peak_bytes(steps) <= told.step[0]


def test_what_every_rank_remembers_of_all_is_about_as_large_as_told():
    def remembered(participants: int, each: int) -> tuple[int, int]:
        labels = np.tile(np.arange(10), 5000).astype(np.int64)
        table = ArrayTable(labels, np.zeros((len(labels), 1, 1, 1), dtype=np.uint8))
        source = Source("none", 10, SampleForm.image(1, 1), 255.0, 0.0, 1.0, table, table)
        overrides = [f"data.partition.samples_per_participant={each}", "evaluation.test_samples_per_domain=100"]
        config = settled(f"participants={participants}", "topology.kind=small_world", *overrides)
        tracemalloc.start()
        plan = federated.plan(config, source)
        topology = Topology(config.topology, participants, 0, 1)
        rows = [
            {
                "architecture": "lenet5", "parameters": 61706 + index, "parameter_bytes": 4 * index + 1000,
                "private_samples": 700 + index, "own_domain": index % 4, "rank": index + 300, "host": "node",
                "device": "cpu", "pid": 10_000 + index,
            }
            for index in range(participants)
        ]  # fmt: skip
        measured = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(rows) == participants
        size = ModelSize(1, 4, 4, 4, 4, 4, 4)
        sizes = dict.fromkeys(config.models, size)
        links = traffic.links(topology.graph(0).edges, Hosting(participants, 1))
        counts = requirements.count_samples(plan)
        phases = PhaseInputs(config, counts, sizes, ViewSize(0, 0, 0), None, PhaseMemory())
        told = memory.rank_memory(config, Hosting(participants, 1), phases, links)
        return measured, int(told.bookkeeping[0])

    federation_warmed_up = remembered(50, 10)
    assert federation_warmed_up[0] > 0
    for participants, each in ((2000, 10), (500, 100)):
        measured, told = remembered(participants, each)
        assert told == pytest.approx(measured, rel=0.25)
