"""Memory of the device and the node against what a run will need, with counted fakes: no GPU is needed."""

import numpy as np
import pytest
import torch
from torch import nn

from fedh2l_mpi import api, methods
from fedh2l_mpi.config import loading
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.planning import memory, memory_check, model_size, requirements, traffic
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.devices import AssignedDevice
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Topology

GIB = 2**30
PARTS = {"data": 2 * GIB, "models": 3 * GIB, "optimisers": 6 * GIB, "step": 0}


def run_of(*overrides: str):
    config = loading.load(None, ["participants=8", *overrides]).resolved(4, launched=True)
    plan = federated.plan(config, digits())
    return config, plan, methods.build(config), Topology(config.topology, config.size, config.seed, config.rounds)


class Ranks(World):
    """A world of ranks on nodes, without MPI."""

    def __init__(self, rank: int, hosts: list[str]) -> None:
        super().__init__(None)
        self.rank, self.size, self.host = rank, len(hosts), hosts[rank]
        self._processes = [(host, 1000 + number) for number, host in enumerate(hosts)]


def gpu(free_bytes: int, *sharers: int) -> AssignedDevice:
    return AssignedDevice("cuda:1", sharers, free_bytes, 80 * GIB)


def test_what_fits_to_the_last_byte_is_let_through_and_a_byte_more_is_not():
    memory_check.refuse_if_too_large(3, gpu(11 * GIB, 3), PARTS, 11 * GIB)
    with pytest.raises(UserError, match="rank 3 needs"):
        memory_check.refuse_if_too_large(3, gpu(11 * GIB, 3), PARTS, 11 * GIB + 1)


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_way_out():
    with pytest.raises(UserError) as refused:
        memory_check.refuse_if_too_large(3, gpu(10 * GIB, 3), PARTS, 11 * GIB)
    text = str(refused.value)
    assert "rank 3 needs an estimated 11 GiB on cuda:1, where 10 GiB of 80 GiB are free" in text
    assert "data 2 GiB, models 3 GiB, optimisers 6 GiB)" in text
    for way_out in ("fewer participants per rank", "optimizer.batch_size", "evaluation.batch_size", "seed_set.samples"):
        assert way_out in text


@pytest.mark.parametrize(
    "sharers",
    [
        # Others may use the same GPU, such as ranks of another run: what they use is not free.
        (2,),
        # On node b, the third rank and not the second one.
        (1, 3),
    ],
)
def test_all_who_share_a_device_must_fit_into_what_is_free_there(sharers):
    config, plan, method, topology = run_of("devices.share=true")
    world = Ranks(sharers[0], ["a", "b", "b", "b"])

    def check(free_bytes: int):
        return memory_check.check_memory(config, plan, method, topology, world, gpu(free_bytes, *sharers))

    memory = check(80 * GIB)
    # The contexts exist before the free memory is measured; libraries are loaded later, by each process.
    needed = int(memory.on_device[list(sharers)].sum()) + len(sharers) * memory_check.LIBRARIES_BYTES
    check(needed)
    who = "devices: rank 2 needs" if len(sharers) == 1 else "devices: 2 ranks need"
    fix = "Host fewer" if len(sharers) == 1 else "Start as many ranks as GPUs, or .*devices.kind=cpu, or reduce "
    with pytest.raises(UserError, match=f"{who} an estimated .*step .*, CUDA's libraries 128 MiB.*{fix}"):
        check(needed - 1)


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning, whatever earlier runs have done to the logger."""
    said = []
    monkeypatch.setattr(memory_check.log, "warning", said.append)
    return said


def test_on_a_cpu_the_first_rank_of_a_node_warns_where_all_of_it_do_not_fit(monkeypatch, warnings):
    config, plan, method, topology = run_of()
    cpu, hosts = AssignedDevice("cpu"), ["a", "b", "b", "b"]
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 1)
    assert memory_check.check_memory(config, plan, method, topology, Ranks(2, hosts), cpu) is None
    assert warnings == []
    memory = memory_check.check_memory(config, plan, method, topology, Ranks(1, hosts), cpu)
    assert len(warnings) == 1
    assert "the ranks on b will need" in warnings[0]
    needed = int((memory.total - memory.bookkeeping)[[1, 2, 3]].sum())
    monkeypatch.setattr(memory_check, "available_bytes", lambda: needed)
    memory_check.check_memory(config, plan, method, topology, Ranks(1, hosts), cpu)
    assert len(warnings) == 1


BATCHNORM, SEPARATE = "models=[mlp, mobilenet]", "method.combine=gem"


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.batch_size=1", "method.local_labels=private"],
        ["optimizer.seed_batch_size=1", SEPARATE],
        ["optimizer.seed_batch_size=1", "method.mutual_steps=0", SEPARATE],
        ["seed_set.samples_per_round=1", "seed_set.views_per_sample=1", SEPARATE],
        [SEPARATE, "data.partition.samples_per_participant=2", "seed_set.share=0.5", "evaluation.validation_share=0"],
    ],
)
def test_a_model_that_cannot_be_trained_on_one_sample_is_refused_where_a_minibatch_is_one(overrides):
    config, plan, method, _ = run_of(BATCHNORM, *overrides)
    with pytest.raises(UserError, match="models: 'mobilenet' cannot be trained on a minibatch of one sample"):
        requirements.compute(config, plan.source, method, requirements.count_samples(plan))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.batch_size=2", "optimizer.seed_batch_size=2"],
        # A pass of both minibatches has more than one sample.
        ["optimizer.batch_size=1"],
        ["optimizer.seed_batch_size=1"],
        ["optimizer.seed_batch_size=1", "method.name=independent"],
        ["optimizer.seed_batch_size=1", "method.mutual_steps=0", "method.local_labels=private"],
        ["optimizer.batch_size=1", "models=[mlp, vit]"],
    ],
)
def test_minibatches_of_one_sample_that_a_model_takes_or_nobody_makes_are_let_through(overrides):
    config, plan, method, _ = run_of(BATCHNORM, *overrides)
    needs = requirements.compute(config, plan.source, method, requirements.count_samples(plan))
    assert set(needs.models) == {config.architecture(index) for index in range(config.size)}


def test_on_a_cpu_a_learners_neighbours_are_counted_once(warnings):
    config, plan, method, topology = run_of()
    world, hosting = Ranks(0, ["a"] * 4), Hosting(8, 4)
    needs = requirements.compute(config, plan.source, method, requirements.count_samples(plan))
    on_gpu = needs.memory(hosting, traffic.links(topology.graph(0).edges, hosting))
    on_cpu = memory_check.check_memory(config, plan, method, topology, world, AssignedDevice("cpu"))
    assert (on_gpu.total - on_cpu.total).tolist() == [2 * needs.message.held_bytes] * 4


def test_where_a_machine_does_not_tell_its_memory_nobody_warns(tmp_path, warnings):
    assert memory_check.available_bytes(tmp_path / "none") is None
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemAvailable:    42 kB\n")
    assert memory_check.available_bytes(tmp_path / "meminfo") == 42 * 1024
    (tmp_path / "old").write_text("MemTotal:       100 kB\n")
    assert memory_check.available_bytes(tmp_path / "old") is None
    one = memory.RankMemory(*(np.array([GIB]),) * 9)
    memory_check.warn_if_node_too_small("a", [0], one, None)
    assert warnings == []


def test_what_a_function_keeps_is_counted_like_what_a_layer_keeps():
    class Functional(nn.Module):
        def __init__(self, layers: bool) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 100), nn.Linear(100, 10)
            self.middle = nn.ReLU() if layers else torch.relu

        def forward(self, images):
            return self.second(self.middle(self.first(images.flatten(1))))

    by_layers, by_functions = (model_size.measure_model(Functional(layers), digits()) for layers in (True, False))
    # The image, the ReLU's output and the logits' log-softmax, float32; the label is an int64.
    assert by_functions.kept_bytes == by_layers.kept_bytes == 4 * (64 + 100 + 10) + 8
    assert by_functions.largest_bytes == 400
    # Without gradients, what the ReLU reads and writes.
    assert by_functions.forward_bytes == by_layers.forward_bytes == 2 * 400
    assert by_functions.state_bytes == by_functions.trainable_bytes == 4 * (6400 + 100 + 1000 + 10)


def test_looking_at_a_model_leaves_it_and_the_random_numbers_as_they_were():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model_size.measure_model(model, digits())
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_a_method_that_exchanges_nothing_has_no_message():
    config, plan, method, topology = run_of("method.name=independent")
    needs = requirements.compute(config, plan.source, method, requirements.count_samples(plan))
    hosting = Hosting(8, 4)
    memory = needs.memory(hosting, traffic.links(topology.graph(0).edges, hosting))
    assert needs.message is None
    assert memory.messages.tolist() == [0, 0, 0, 0]


def test_a_run_looks_before_it_loads(tmp_path, monkeypatch, warnings):
    config, *_ = run_of()
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 2**20)
    api.assemble(config, World(None), RunReservation(RunDirectory(tmp_path / "run")))
    assert len(warnings) == 1
    monkeypatch.undo()

    def refuse(*arguments, **more):
        raise UserError("devices: rank 0 needs more")

    monkeypatch.setattr(memory_check, "check_memory", refuse)
    with pytest.raises(UserError, match="needs more"):
        api.assemble(config, World(None), RunReservation(RunDirectory(tmp_path / "refused")))
    assert not (tmp_path / "refused").exists()
