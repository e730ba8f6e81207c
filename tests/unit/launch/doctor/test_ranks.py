"""Cores and GPUs of ranks, on clusters that are counted fakes."""

import re

import pytest
from helpers.doctor_findings import levels

from fedh2l_mpi.config import DevicesConfig
from fedh2l_mpi.launch.doctor import ranks
from fedh2l_mpi.launch.doctor.findings import Level, good, warning
from fedh2l_mpi.launch.doctor.ranks import RankResources
from fedh2l_mpi.runtime import shared_memory
from fedh2l_mpi.runtime.devices import RankSlot
from fedh2l_mpi.runtime.world import World


def seated(ranks_of_nodes: list[int], visible: int = 0) -> list[RankSlot]:
    slots: list[RankSlot] = []
    for number, count in enumerate(ranks_of_nodes, start=1):
        node = tuple(range(len(slots), len(slots) + count))
        slots += [RankSlot(rank, f"n{number}", node, visible) for rank in node]
    return slots


def on_cores(*cores: set[int]) -> list[RankResources]:
    return [RankResources(frozenset(own), machine_cores=8) for own in cores]


def test_a_core_for_each_thread_is_good():
    told = ranks.core_use(seated([2]), on_cores({0, 1, 2, 3}, {0, 1, 2, 3}), threads=2)
    assert (told.level, told.what) == (Level.GOOD, "n1")
    assert told.text == "ranks 0-1, 2 threads each, on 4 cores (0-3)"
    # Bound to a core each, as Open MPI does.
    assert ranks.core_use(seated([2]), on_cores({0}, {1}), threads=1).level is Level.GOOD


@pytest.mark.parametrize(
    ("cores", "threads", "says"),
    [
        (
            [{0, 1}] * 4,
            1,
            "4 threads are too many, .*start 2 ranks a node .*or let them use more of its 8 .srun -c 1",
        ),
        # All bound to one core, with seven idle: counting the machine's cores would not show it.
        ([{0}] * 2, 1, "on 1 core .*2 threads are too many, .*start 1 rank a node"),
        (
            [set(range(8))] * 4,
            4,
            "16 threads are too many, .*start 2 ranks a node .each can host several participants..$",
        ),
        ([{0}, {1}, {2}, {3}], 2, "8 threads are too many"),
        ([{0}, {1, 2, 3}], 2, "a rank may use only 1 core for its 2 threads. Fix: give each rank 2"),
    ],
)
def test_more_threads_than_cores_are_warned_of_with_a_number_that_fits(cores, threads, says):
    told = ranks.core_use(seated([len(cores)]), on_cores(*cores), threads)
    assert told.level is Level.WARNING
    assert re.search(says, told.text), told.text


@pytest.mark.parametrize(
    ("mebibytes", "count", "each", "says"),
    [
        (64, 12, shared_memory.MPICH_RANK_BYTES, "64 MiB in /dev/shm are enough for MPI with 12 ranks$"),
        (64, 16, shared_memory.MPICH_RANK_BYTES, "12 ranks; more may .* Fix: start at most 12 ranks .*--shm-size=1g"),
        (64, 16, shared_memory.OPEN_MPI_RANK_BYTES, "64 MiB in /dev/shm are enough for MPI with 160 ranks$"),
        (1024, 16, shared_memory.MPICH_RANK_BYTES, "1,024 MiB .* with 196 ranks$"),
    ],
)
def test_the_shared_memory_of_a_node_bounds_its_ranks(mebibytes, count, each, says):
    own = RankResources(frozenset({0, 1}), shared_bytes=mebibytes * 2**20)
    told = ranks.shared_memory_use(seated([count]), own, each)
    assert re.search(says, told.text), told.text
    assert told.level is (Level.WARNING if "more may" in says else Level.GOOD)
    assert ranks.shared_memory_use(seated([count]), RankResources(frozenset()), each) is None


def test_who_gets_which_gpu_is_listed_by_node():
    slots = seated([2, 2], visible=2)
    resources = [RankResources(frozenset({0}), "NVIDIA A100", f"1234567-{rank}-rest") for rank in range(4)]
    told = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0", "cuda:1"] * 2, resources)
    assert levels(told) == [Level.GOOD] * 2
    assert told[1].what == "n2"
    assert told[1].text == (
        "GPUs, 2 seen: rank 2 cuda:0 (NVIDIA A100, 1234567-2-re), rank 3 cuda:1 (NVIDIA A100, 1234567-3-re)"
    )


def test_ranks_that_would_be_left_on_the_cpu_are_warned_of():
    slots = [*seated([1], visible=1), RankSlot(1, "n2", (1,), 0)]
    resources = [RankResources(frozenset({0}), "A100", "uuid"), RankResources(frozenset({0}))]
    told = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0", "cpu"], resources)
    assert [line.text for line in told if line.level is Level.WARNING] == [
        "rank 1 (on n2) would use the CPU, the others GPUs. Fix: set devices.kind=cuda to make this an error."
    ]


def test_isolated_tasks_are_named_as_such():
    slots = seated([2], visible=1)
    resources = [RankResources(frozenset({0}), "A100", f"uuid-{rank}") for rank in range(2)]
    (told,) = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0"] * 2, resources)
    assert told.text.startswith("GPUs, each rank sees only its own: rank 0 cuda:0 (A100, uuid-0)")


def test_a_shared_gpu_is_a_failure_unless_allowed():
    slots = seated([2], visible=1)
    resources = [RankResources(frozenset({0}), "A100", "uuid")] * 2
    told = ranks.gpu_use(DevicesConfig(share=False), slots, ["cuda:0"] * 2, resources)
    assert told[0].level is Level.FAILURE
    assert "ranks 0 and 1 of a node both have GPU uuid. Request GPUs per node" in told[0].text
    assert levels(ranks.gpu_use(DevicesConfig(share=True), slots, ["cuda:0"] * 2, resources)) == [Level.GOOD]
    # What nobody asked for is told.
    told = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0"] * 2, resources)
    assert levels(told) == [Level.FACT, Level.GOOD]
    assert told[0].text.startswith("2 ranks share 1 GPU on n1.")


def test_a_gpu_that_cannot_be_used_is_a_failure():
    resources = [RankResources(frozenset({0}), trouble="RuntimeError: CUDA driver version is insufficient")]
    (told,) = ranks.gpu_use(DevicesConfig(), seated([1], 1), ["cuda:0"], resources)
    assert told.level is Level.FAILURE
    assert (
        "rank 0 cannot use cuda:0: RuntimeError: CUDA driver version is insufficient (on n1). Fix: check" in told.text
    )


def test_too_few_gpus_are_a_failure_with_the_runs_own_words(monkeypatch):
    monkeypatch.setattr(ranks, "visible_gpus", lambda: 0)
    told = ranks.examine(World(None), DevicesConfig(kind="cuda"), {})
    assert [line.text for line in told if line.level is Level.FAILURE] == [
        "devices.kind: got 'cuda', but no CUDA device is visible. Use 'auto' or 'cpu'."
    ]


def test_granted_gpus_that_torch_does_not_see_are_a_warning(monkeypatch):
    monkeypatch.setattr(ranks, "visible_gpus", lambda: 0)
    slurm = {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}
    told = ranks.examine(World(None), DevicesConfig(), slurm)
    assert [line.text for line in told if "PyTorch sees none" in line.text and line.level is Level.WARNING]
    assert told[-1].text == "CUDA_VISIBLE_DEVICES '0,1' on rank 0"


def test_many_nodes_stay_on_one_page_and_a_bad_one_is_among_those_shown():
    many = [good(f"n{number}", "fine") for number in range(100)] + [warning("n100", "slow", "mend it")]
    shown = ranks._in_short(many)
    assert len(shown) == ranks.LISTED + 1
    assert shown[0].what == "n100"
    assert shown[-1].text == "and 89 more nodes"
