"""Who gets which GPU: no MPI and no GPU needed, only counts and names as ranks would see them."""

import logging
import os
import sys
from dataclasses import replace

import pytest
import torch
from helpers.launching import SEE_GPUS, hide_gpus, start

from fedh2l_mpi.config import DevicesConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import arithmetic, devices
from fedh2l_mpi.runtime.devices import (
    AssignedDevice,
    RankSlot,
    assign_device,
    check_devices_apart,
    check_nodes_apart,
    choose_device,
    choose_devices,
    collect_slots,
    find_isolated_hosts,
    sharing_note,
    unused_grants,
)
from fedh2l_mpi.runtime.world import World

SLURM_4_GPUS = {"granted": "0,1,2,3"}


def chosen(ranks_per_node: int, visible: int, **config: object) -> list[str]:
    settings = DevicesConfig(**config)
    return [choose_device(settings, local, ranks_per_node, visible) for local in range(ranks_per_node)]


def seated(ranks: list[int], visible: list[int], **given: str) -> list[RankSlot]:
    """Seats on nodes n1, n2, ...: how many ranks each has, and how many GPUs each of these sees."""
    slots: list[RankSlot] = []
    for number, (count, sees) in enumerate(zip(ranks, visible, strict=True), start=1):
        node = tuple(range(len(slots), len(slots) + count))
        slots += [RankSlot(rank, f"n{number}", node, sees, task=str(rank), **given) for rank in node]
    return slots


def under_mpirun(slots: list[RankSlot]) -> list[RankSlot]:
    """The same, but started by one daemon a node, as Slurm numbers those: 0, 0, 1, 2, ... (measured)."""
    hosts = sorted({slot.host for slot in slots})
    return [replace(slot, task=str(max(0, hosts.index(slot.host) - 1))) for slot in slots]


def test_four_ranks_and_four_gpus_a_node_pair_up():
    assert chosen(4, 4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert chosen(3, 4) == ["cuda:0", "cuda:1", "cuda:2"]


def test_an_isolated_task_takes_the_one_gpu_it_sees():
    assert chosen(4, 1) == ["cuda:0"] * 4


def test_a_map_is_followed():
    assert chosen(4, 4, map=(2, 3, 0, 1)) == ["cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    for wrong in ((0, 1), (0, 1, 2, 4)):
        with pytest.raises(UserError, match=r"devices.map: got \[0, 1"):
            chosen(4, 4, map=wrong)


def test_a_map_may_put_an_isolated_task_on_its_only_gpu_and_nowhere_else():
    assert chosen(2, 1, map=(0, 0)) == ["cuda:0", "cuda:0"]
    with pytest.raises(UserError, match=r"devices.map: got \[0, 1\], but it must name one of the 1 visible devices"):
        chosen(2, 1, map=(0, 1))


@pytest.mark.parametrize("refuses", [{"share": False}, {"kind": "cuda"}, {"kind": "cuda", "share": False}])
def test_fewer_gpus_than_ranks_are_shared_unless_each_rank_is_to_have_its_own(refuses):
    with pytest.raises(UserError, match="4 ranks on a node but 3 GPUs. Start 3 ranks per node .*devices.share=true"):
        chosen(4, 3, **refuses)
    for shares in ({}, {"share": True}, {"kind": "cuda", "share": True}):
        assert chosen(4, 3, **shares) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    # A machine with one GPU looks like isolated tasks here; UUIDs tell them apart.
    assert chosen(4, 1, **refuses) == ["cuda:0"] * 4
    assert chosen(5, 2, share=True) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


def test_no_gpu_means_the_cpu_unless_cuda_was_demanded():
    assert chosen(2, 0) == ["cpu", "cpu"]
    assert chosen(2, 4, kind="cpu") == ["cpu", "cpu"]
    with pytest.raises(UserError, match="devices.kind: got 'cuda', but no CUDA device is visible"):
        chosen(2, 0, kind="cuda")


def test_two_ranks_on_one_physical_gpu_are_refused_unless_asked():
    check_devices_apart(["GPU-a", "GPU-b", "", ""], share=False)
    check_devices_apart(["GPU-a", "GPU-a"], share=True)
    with pytest.raises(UserError, match="ranks 0 and 2 of a node both have GPU GPU-a. Request GPUs per node"):
        check_devices_apart(["GPU-a", "GPU-b", "GPU-a"], share=False)


def test_sixteen_ranks_on_four_nodes_of_four_gpus_use_each_gpu_once():
    slots = seated([4] * 4, [4] * 4, **SLURM_4_GPUS)
    got = choose_devices(DevicesConfig(), slots)
    assert got == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"] * 4
    uuids = [f"GPU-{slot.host}-{device}" for slot, device in zip(slots, got, strict=True)]
    assert len(set(uuids)) == 16
    check_nodes_apart(slots, uuids, share=False)
    assert find_isolated_hosts(slots, uuids) == []


def test_ranks_that_are_dealt_out_in_turn_count_on_their_own_node():
    # mpirun --map-by node: the ranks of a node are not consecutive, and the global rank would give the wrong device.
    slots = [RankSlot(rank, f"n{rank % 2 + 1}", tuple(range(rank % 2, 8, 2)), 4) for rank in range(8)]
    assert choose_devices(DevicesConfig(), slots) == [f"cuda:{rank // 2}" for rank in range(8)]


def test_isolated_tasks_are_recognised_by_their_different_gpus():
    slots = seated([4] * 4, [1] * 4, gpus_per_task="1", granted="0")
    assert choose_devices(DevicesConfig(), slots) == ["cuda:0"] * 16
    uuids = [f"GPU-{number}" for number in range(16)]
    check_nodes_apart(slots, uuids, share=False)
    assert find_isolated_hosts(slots, uuids) == ["n1", "n2", "n3", "n4"]


def test_one_gpu_that_several_ranks_see_is_refused_by_its_uuid_and_its_node_named():
    # Counts look the same as with isolated tasks: one visible device and four ranks in both.
    slots = seated([4, 4], [1, 1])
    assert choose_devices(DevicesConfig(), slots) == ["cuda:0"] * 8
    uuids = [f"GPU-{rank}" for rank in range(4)] + ["GPU-z"] * 4
    with pytest.raises(UserError, match=r"ranks 0 and 1 of a node both have GPU GPU-z. Request .* Host: n2\."):
        check_nodes_apart(slots, uuids, share=False)
    check_nodes_apart(slots, uuids, share=True)
    assert find_isolated_hosts(slots, uuids) == ["n1"]


def test_equal_uuids_on_different_nodes_are_no_sharing():
    # Virtual GPUs of different hosts may have one UUID.
    slots = seated([1, 1], [1, 1])
    check_nodes_apart(slots, ["GPU-a", "GPU-a"], share=False)


def test_gpus_dealt_out_three_and_one_serve_three_ranks_and_one():
    # srun -N2 -n4 --gpus=4 gives the first node 0,1,2 and the second 0.
    slots = seated([3, 1], [3, 1])
    assert choose_devices(DevicesConfig(), slots) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]


def test_gpus_dealt_out_three_and_one_are_refused_for_two_ranks_and_two():
    slots = seated([2, 2], [3, 1])
    got = choose_devices(DevicesConfig(), slots)
    assert got == ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    uuids = ["GPU-a", "GPU-b", "GPU-d", "GPU-d"]
    with pytest.raises(UserError, match=r"both have GPU GPU-d.* Host: n2\."):
        check_nodes_apart(slots, uuids, share=False)


def test_the_node_that_has_too_few_gpus_is_named():
    with pytest.raises(UserError, match=r"3 ranks on a node but 2 GPUs. Start 2 ranks per node .* Host: n2\."):
        choose_devices(DevicesConfig(share=False), seated([3, 3], [4, 2]))
    # On a single host, its name would say nothing.
    with pytest.raises(UserError, match=r"devices.share=true\.$"):
        choose_devices(DevicesConfig(share=False), seated([3], [2]))


def test_a_node_without_gpus_stops_a_run_that_demands_them():
    assert choose_devices(DevicesConfig(), seated([1, 1], [1, 0])) == ["cuda:0", "cpu"]
    with pytest.raises(UserError, match=r"no CUDA device is visible.* Host: n2\."):
        choose_devices(DevicesConfig(kind="cuda"), seated([1, 1], [1, 0]))


@pytest.mark.parametrize("visible", [0, 1, 4])
def test_gpus_per_task_are_refused_for_ranks_of_mpirun_whatever_torch_sees(visible):
    slots = under_mpirun(seated([4] * 4, [visible] * 4, gpus_per_task="1"))
    assert [slot.task for slot in slots] == ["0"] * 8 + ["1"] * 4 + ["2"] * 4
    with pytest.raises(
        UserError, match="--gpus-per-task .*SLURM_GPUS_PER_TASK=1.* mpirun.*Use --gpus-per-node, or start with srun"
    ):
        choose_devices(DevicesConfig(), slots)
    assert choose_devices(DevicesConfig(kind="cpu"), slots) == ["cpu"] * 16


def test_gpus_per_task_are_fine_for_srun_for_one_node_and_for_a_rank_a_node():
    for slots in (
        seated([4] * 4, [1] * 4, gpus_per_task="1"),
        # The batch script's own node: its ranks see all that was granted there.
        under_mpirun(seated([4], [4], gpus_per_task="1")),
        under_mpirun(seated([1] * 4, [1] * 4, gpus_per_task="1")),
        under_mpirun(seated([4] * 4, [4] * 4)),
    ):
        assert len(choose_devices(DevicesConfig(), slots)) == len(slots)


def test_granted_gpus_that_torch_does_not_see_are_told():
    assert unused_grants(DevicesConfig(), seated([2], [2], **SLURM_4_GPUS)) == ""
    assert unused_grants(DevicesConfig(), seated([2], [0])) == ""
    blind = seated([2, 2], [0, 0], **SLURM_4_GPUS)
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3 on n1), but PyTorch sees none" in unused_grants(DevicesConfig(), blind)
    assert unused_grants(DevicesConfig(kind="cpu"), blind) == ""


@pytest.mark.parametrize(
    ("environ", "granted"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "7"}, "0,1"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_JOB_ID": "7"}, ""),
        ({"SLURM_JOB_ID": "7"}, ""),
    ],
)
def test_only_what_slurm_granted_counts_as_granted(environ, granted):
    assert [slot.granted for slot in collect_slots(World(None), 0, environ)] == [granted]


def test_tests_hide_gpus_from_themselves_and_from_what_they_launch_unless_asked():
    assert os.environ.get(SEE_GPUS) == "1" or os.environ["CUDA_VISIBLE_DEVICES"] == ""
    hidden, seen = {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "0,1", SEE_GPUS: "1"}
    hide_gpus(hidden)
    hide_gpus(seen)
    assert (hidden["CUDA_VISIBLE_DEVICES"], seen["CUDA_VISIBLE_DEVICES"]) == ("", "0,1")
    asks = "import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    told, _ = start([sys.executable, "-c", asks]).communicate(timeout=30)
    assert told.strip() == repr(os.environ.get("CUDA_VISIBLE_DEVICES"))


class Machine:
    """A CUDA machine that counts what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
        self.calls: list[str] = []
        # Set first, so that it is gone after the test, too.
        monkeypatch.setenv(arithmetic.WORKSPACE, "")
        monkeypatch.delenv(arithmetic.WORKSPACE)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", self.select)
        monkeypatch.setattr(torch.cuda, "get_device_properties", self.properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self.memory)

    def select(self, device: str) -> None:
        # cuBLAS reads it at the first use of CUDA.
        assert os.environ[arithmetic.WORKSPACE] == ":4096:8"
        self.calls.append(f"set {device}")

    def properties(self, device: str) -> object:
        self.calls.append(f"ask {device}")
        return type("Properties", (), {"uuid": f"GPU-{device}"})

    def memory(self, device: str) -> tuple[int, int]:
        self.calls.append(f"memory {device}")
        return 70, 80


def test_the_device_is_set_before_it_is_asked_anything(monkeypatch):
    machine = Machine(monkeypatch, 4)
    assert assign_device(World(None), DevicesConfig(map=(2,)), {}).name == "cuda:2"
    # The first question opens the context, and the second one finds the contexts of all.
    assert machine.calls == ["set cuda:2", "memory cuda:2", "ask cuda:2", "memory cuda:2"]


def test_cuda_is_not_touched_for_the_cpu(monkeypatch):
    machine = Machine(monkeypatch, 4)
    assert assign_device(World(None), DevicesConfig(kind="cpu"), {}).name == "cpu"
    assert machine.calls == []
    assert arithmetic.WORKSPACE not in os.environ


def test_a_process_that_used_cuda_before_the_run_is_warned(monkeypatch, logged):
    Machine(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assign_device(World(None), DevicesConfig(), {})
    assert [record.getMessage().partition(",")[0] for record in logged.records] == [
        "CUDA was in use before this run without CUBLAS_WORKSPACE_CONFIG"
    ]
    # The next run in the same process finds what the first one has set.
    assign_device(World(None), DevicesConfig(), {})
    assert len(logged.records) == 1


class OneOf:
    """A world of several ranks, seen from rank 0, in which the others hold the given values."""

    def __init__(self, slots: list[RankSlot], uuids: list[str]) -> None:
        self.rank, self.host, self._others = 0, "n1", [slots, uuids]
        self._node, self.collected = list(slots[0].node), []

    def node_ranks(self) -> list[int]:
        return self._node

    def collect(self, mine: object) -> list[object]:
        self.collected.append(mine)
        held = self._others.pop(0)
        return [mine, *held[1:]]

    def together(self, action):
        return action()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="fedh2l_mpi")
    return caplog


def test_isolation_is_logged_in_one_line(monkeypatch, logged):
    Machine(monkeypatch, 1)
    world = OneOf(seated([2, 2], [1, 1]), ["", "GPU-1", "GPU-2", "GPU-3"])
    assert assign_device(world, DevicesConfig(), {}).name == "cuda:0"
    assert [record.getMessage() for record in logged.records] == [
        "each rank sees only its own GPU (isolated by the scheduler) on n1, n2"
    ]


@pytest.mark.parametrize(
    ("visible", "uuids", "environ", "sharers"),
    [
        # Each of four ranks is isolated to a GPU of its own, which it calls cuda:0.
        (1, ["", "GPU-1", "GPU-2", "GPU-3"], {}, (0,)),
        # Two and two are isolated to the same ones, in an order that no numbering gives.
        (1, ["", "GPU-1", "GPU-1", "GPU-cuda:0"], {}, (0, 3)),
        # One GPU has another number for every rank.
        (2, ["", "GPU-cuda:0", "GPU-1", "GPU-cuda:0"], {}, (0, 1, 3)),
        # Two slices of a GPU, if both have the UUID of the whole.
        (1, ["", "MIG-b", "MIG-a", "GPU-cuda:0"], {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-c"}, (0, 2)),
    ],
)
def test_ranks_share_a_gpu_if_it_is_the_same_one_whatever_they_call_it(monkeypatch, visible, uuids, environ, sharers):
    Machine(monkeypatch, visible)
    got = assign_device(OneOf(seated([4], [visible]), uuids), DevicesConfig(share=True), environ)
    assert got == AssignedDevice("cuda:0", sharers, 70, 80)


def test_memory_is_read_when_every_rank_has_its_context_and_before_any_goes_on(monkeypatch):
    machine, world = Machine(monkeypatch, 2), OneOf(seated([2], [2]), ["", "GPU-1"])
    read = []
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (read.append((len(world.collected), device)), (7, 8))[1]
    )
    together, at = world.together, []
    world.together = lambda action: (at.append(len(read)), together(action))[1]
    assert assign_device(world, DevicesConfig(), {}).free_bytes == 7
    # Once before the second collection, which waits for all ranks, and once after it.
    assert read == [(1, "cuda:0"), (2, "cuda:0")]
    # All ranks meet again before they go on.
    assert at == [0, 2]
    assert machine.calls == ["set cuda:0", "ask cuda:0"]


def test_a_neighbour_on_the_same_gpu_stops_the_run(monkeypatch):
    Machine(monkeypatch, 1)
    for refuses in ({"share": False}, {"kind": "cuda"}):
        with pytest.raises(UserError, match="both have GPU GPU-cuda:0"):
            assign_device(OneOf(seated([2], [1]), ["", "GPU-cuda:0"]), DevicesConfig(**refuses), {})


def test_ranks_that_share_gpus_unasked_are_told_of_in_one_line(monkeypatch, logged):
    Machine(monkeypatch, 1)
    four = ["", *["GPU-cuda:0"] * 3]
    got = assign_device(OneOf(seated([4], [1]), four), DevicesConfig(), {})
    assert (got.name, got.sharers) == ("cuda:0", (0, 1, 2, 3))
    assert [(record.levelname, record.getMessage()) for record in logged.records] == [
        (
            "INFO",
            "4 ranks share 1 GPU on n1. For a GPU each, start as many ranks as GPUs; devices.kind=cpu takes the CPU, "
            "and devices.share=false refuses this",
        )
    ]
    logged.clear()
    assign_device(OneOf(seated([4], [1]), four), DevicesConfig(share=True), {})
    assert not logged.records
    # Two slices are at hand, and all ranks have the first of them.
    sliced = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    assign_device(OneOf(seated([2], [1]), ["", "MIG-a"]), DevicesConfig(), sliced)
    assert "start each rank with one of the 2 MIG slices alone" in logged.records[0].getMessage()


def test_nodes_that_share_alike_are_listed_together():
    uuids = ["a", "a", "b", "a", "a", "a", "b", "c", "", "", *["a"] * 10]
    slots = seated([3, 2, 3, 2, *[2] * 5], [2, 1, 3, 0, *[1] * 5])
    note = sharing_note(DevicesConfig(), slots, uuids)
    assert note.startswith(
        "3 ranks share 2 GPUs on n1; 2 ranks share 1 GPU on n2, n5, n6, n7 and 2 more nodes. For a GPU each, "
    )
    assert sharing_note(DevicesConfig(), seated([2, 1], [2, 1]), ["a", "b", "a"]) == ""


def test_gpus_that_torch_cannot_use_are_warned_of(monkeypatch, logged):
    Machine(monkeypatch, 0)
    slurm = {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert assign_device(World(None), DevicesConfig(), slurm).name == "cpu"
    assert [record.levelname for record in logged.records] == ["WARNING"]
    assert "CUDA_VISIBLE_DEVICES=0,1" in logged.records[0].getMessage()
