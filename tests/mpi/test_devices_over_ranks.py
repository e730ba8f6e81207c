"""The choice of GPUs among real ranks; the GPUs are counted fakes, the ranks and their node are not."""

import pytest
import torch

from fedh2l_mpi.config import DevicesConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.devices import assign_device
from fedh2l_mpi.runtime.world import World


@pytest.mark.mpi(ranks=3)
def test_ranks_of_a_node_take_a_gpu_each_and_refuse_together(comm, monkeypatch):
    world, taken = World(comm), []
    assert world.node_ranks() == [0, 1, 2]

    def machine(gpus: int, uuid_of) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", taken.append)
        properties = lambda device: type("Properties", (), {"uuid": uuid_of(device)})  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 8))

    machine(4, lambda device: f"GPU-{device}")
    assert assign_device(world, DevicesConfig(), {}).name == f"cuda:{world.rank}"
    assert assign_device(world, DevicesConfig(map=(3, 2, 0)), {}).name == f"cuda:{(3, 2, 0)[world.rank]}"
    # Each task isolated to one GPU of its own.
    machine(1, lambda device: f"GPU-of-rank-{world.rank}")
    assert assign_device(world, DevicesConfig(), {"SLURM_PROCID": str(world.rank)}).name == "cuda:0"
    assert taken == [f"cuda:{world.rank}", f"cuda:{(3, 2, 0)[world.rank]}", "cuda:0"]

    # The second and third ranks are isolated to one GPU.
    machine(1, lambda device: "GPU-0" if world.rank else "GPU-1")
    sharers = assign_device(world, DevicesConfig(), {}).sharers
    assert sharers == ((1, 2) if world.rank else (0,))
    del taken[-1]

    # What one rank alone would find is raised on all of them, with the same words.
    machine(1, lambda device: "GPU-0" if world.rank else "GPU-1")
    with pytest.raises(UserError, match="ranks 1 and 2 of a node both have GPU GPU-0") as clash:
        assign_device(world, DevicesConfig(share=False), {})
    machine(0 if world.rank == 2 else 3, lambda device: f"GPU-{device}")
    with pytest.raises(UserError, match="no CUDA device is visible") as blind:
        assign_device(world, DevicesConfig(kind="cuda"), {})
    assert clash.value.agreed
    assert blind.value.agreed
    assert assign_device(world, DevicesConfig(share=True, kind="cpu"), {}).name == "cpu"
