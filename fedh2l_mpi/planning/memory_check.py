"""Check that the ranks of a node or device fit its memory."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import Method
from fedh2l_mpi.planning.memory import RankMemory
from fedh2l_mpi.planning.requirements import compute, count_samples
from fedh2l_mpi.planning.traffic import links
from fedh2l_mpi.runtime.devices import choose_device
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.units import size as readable
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Topology

log = logging.getLogger("fedh2l_mpi")


@dataclass(frozen=True)
class DeviceMemory:
    """Where memory is needed.

    Attributes
    ----------
    rank : int
    device : str
        Such as `cuda:0`.
    free_bytes, total_bytes : int
        Of the device, before this rank puts anything there.
    sharers : int
        Ranks that use the device, this one among them.
    """

    rank: int
    device: str
    free_bytes: int
    total_bytes: int
    sharers: int = 1


def refuse_if_too_large(gpu: DeviceMemory, parts: dict[str, int], needed_bytes: int) -> None:
    """Refuse a run whose rank, or ranks together, need more than the device has.

    Parameters
    ----------
    parts : dict
        What this rank needs, by kind, for the message [bytes].
    needed_bytes : int
        What all ranks need that use the device [bytes].

    Raises
    ------
    UserError
        With both numbers and the way out.
    """
    # The others of a shared device may have begun to fill it.
    available, word = (gpu.free_bytes, "free") if gpu.sharers == 1 else (gpu.total_bytes, "there in all")
    if needed_bytes <= available:
        return
    told = ", ".join(f"{kind} {readable(count)}" for kind, count in parts.items() if count)
    who = f"rank {gpu.rank} needs" if gpu.sharers == 1 else f"{gpu.sharers} ranks need"
    raise UserError(
        f"devices: {who} an estimated {readable(needed_bytes)} on {gpu.device}, where {readable(available)} are "
        f"{word} (of rank {gpu.rank}: {told}); host fewer participants a rank (more ranks, on other devices), or "
        "lower optimizer.batch_size, optimizer.seed_batch_size or evaluation.batch_size"
    )


def check_memory(
    config: Config, plan: federated.Plan, method: Method, topology: Topology, world: World, device: torch.device
) -> RankMemory | None:
    """Compare what this rank will put on its device with what is free there; on a CPU, warn where a node is too small.

    Called before data and models are loaded. Activations are those that autograd keeps of the largest minibatch, and
    twice the largest tensor beside them for the backward pass, or four times the largest tensor of an evaluation's
    forward pass; gradients are as many vectors as the methods were seen to hold at once. Workspaces of CUDA's libraries
    and what its caching allocator wastes are not counted, so a run that only just fits may still fail.

    Returns
    -------
    RankMemory or None
        None where another rank of this node looks.

    Raises
    ------
    UserError
        If it does not fit on a CUDA device.
    """
    node = world.ranks_here
    if device.type != "cuda" and world.rank != node[0]:
        return None
    hosting = Hosting(config.size, world.size)
    run = compute(config, plan.source, method, count_samples(plan))
    memory = run.memory(hosting, links(topology.graph(0).edges, hosting), on_host=device.type != "cuda")
    if device.type != "cuda":
        warn_if_node_too_small(world.host, node, memory, available_bytes())
        return memory
    free, total = torch.cuda.mem_get_info(device)
    sharers = _sharers(config, node, str(device)) if config.devices.share else [world.rank]
    gpu = DeviceMemory(world.rank, str(device), free, total, len(sharers))
    device_parts = {kind: memory.parts(world.rank)[kind] for kind in ("data", "models", "optimisers", "step")}
    refuse_if_too_large(gpu, device_parts, int(memory.on_device[sharers].sum()))
    return memory


def _sharers(config: Config, node: list[int], device: str) -> list[int]:
    """The ranks of this node that use a device."""
    visible = torch.cuda.device_count()
    return [
        rank
        for local_rank, rank in enumerate(node)
        if choose_device(config.devices, local_rank, len(node), visible) == device
    ]


def warn_if_node_too_small(host: str, ranks: Iterable[int], memory: RankMemory, available: int | None) -> None:
    """Warn in the log where the ranks of a node will together need more host memory than is available.

    Parameters
    ----------
    available : int or None
        From `available_bytes`: what the processes hold already is no longer in it.
    """
    needed = int((memory.total - memory.bookkeeping)[list(ranks)].sum())
    if available is not None and needed > available:
        log.warning(
            f"the ranks on {host} will need an estimated {readable(needed)} more for data, models, optimisers, "
            f"messages and steps, but {readable(available)} of memory are available there: the node may run out of "
            "memory; use more nodes, or host fewer participants on each"
        )


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory of this machine that processes can still get, from MemAvailable [bytes]; None where it is not told."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None
