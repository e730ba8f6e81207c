"""Hosting, launchers, and who gets which GPU: no MPI and no GPU needed, only what a rank would see."""

import pytest

from fedh2l_mpi.config import DevicesConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.world import Hosting, Launch, World, check_devices_apart, choose_device, connect


@pytest.mark.parametrize("participants", [1, 2, 3, 7, 16, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_every_participant_has_one_rank_in_contiguous_even_blocks(participants, ranks):
    hosting = Hosting(participants, ranks)
    blocks = [list(hosting.of(rank)) for rank in range(ranks)]
    assert [index for block in blocks for index in block] == list(range(participants))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert all(hosting.rank_of(participant) == rank for rank, block in enumerate(blocks) for participant in block)


@pytest.mark.parametrize(
    ("environ", "size", "rank", "launched"),
    [
        ({}, 1, 0, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, 4, 2, True),
        ({"PMI_SIZE": "3", "PMI_RANK": "1"}, 3, 1, True),
        ({"PMI_SIZE": "1", "PMI_RANK": "0", "SLURM_NTASKS": "16"}, 1, 0, True),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16", "SLURM_PROCID": "5"}, 16, 5, True),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, 16, 0, True),
        ({"SLURM_NTASKS": "1"}, 1, 0, False),
        ({"PMI_SIZE": "nonsense"}, 1, 0, False),
    ],
)
def test_launchers_are_recognised(environ, size, rank, launched):
    launch = Launch.of(environ)
    assert (launch.size, launch.rank, launch.launched) == (size, rank, launched)


def test_a_batch_script_that_forgot_its_launcher_is_told():
    with pytest.raises(UserError, match="16 tasks .*without a launcher; start it with srun or mpirun"):
        connect({"SLURM_NTASKS": "16"})


def test_a_single_process_needs_no_mpi():
    world = connect({})
    assert (world.rank, world.size, world.comm, world.mpi_library) == (0, 1, None, "none")
    assert world.collect("x") == ["x"]
    assert world.from_first(lambda: 5) == 5
    world.handshake({"anything": b"1"})
    with pytest.raises(UserError, match="wrong"):
        World(None).together(lambda: (_ for _ in ()).throw(UserError("wrong")))


def devices(ranks_per_node: int, visible: int, **config: object) -> list[str]:
    settings = DevicesConfig(**config)
    return [choose_device(settings, local, ranks_per_node, visible) for local in range(ranks_per_node)]


def test_four_ranks_and_four_gpus_a_node_pair_up():
    assert devices(4, 4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices(3, 4) == ["cuda:0", "cuda:1", "cuda:2"]


def test_an_isolated_task_takes_the_one_gpu_it_sees():
    assert devices(4, 1) == ["cuda:0"] * 4


def test_a_map_is_followed():
    assert devices(4, 4, map=(2, 3, 0, 1)) == ["cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    for wrong in ((0, 1), (0, 1, 2, 4)):
        with pytest.raises(UserError, match=r"devices.map: got \[0, 1"):
            devices(4, 4, map=wrong)


def test_fewer_gpus_than_ranks_are_shared_only_if_asked():
    with pytest.raises(UserError, match="4 ranks on a node but 3 GPUs; start 3 ranks a node .*devices.share=true"):
        devices(4, 3)
    assert devices(4, 3, share=True) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]


def test_no_gpu_means_the_cpu_unless_cuda_was_demanded():
    assert devices(2, 0) == ["cpu", "cpu"]
    assert devices(2, 4, kind="cpu") == ["cpu", "cpu"]
    with pytest.raises(UserError, match="devices.kind: got 'cuda', but no CUDA device is visible"):
        devices(2, 0, kind="cuda")


def test_two_ranks_on_one_physical_gpu_are_refused_unless_asked():
    check_devices_apart(["GPU-a", "GPU-b", "", ""], share=False)
    check_devices_apart(["GPU-a", "GPU-a"], share=True)
    with pytest.raises(UserError, match="ranks 0 and 2 of a node both have GPU GPU-a; ask for GPUs per node"):
        check_devices_apart(["GPU-a", "GPU-b", "GPU-a"], share=False)
