"""Check that the ranks of a node or device fit into its memory."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

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
    """Memory of a device, and the ranks that use it.

    Attributes
    ----------
    rank : int
    device : str
        Name, such as `cuda:0`.
    free_bytes, total_bytes : int
        Free and total memory of the device before this rank allocates anything.
    sharers : int
        Number of ranks that use the device, including this one.
    """

    rank: int
    device: str
    free_bytes: int
    total_bytes: int
    sharers: int = 1


def refuse_if_too_large(gpu: DeviceMemory, parts: dict[str, int], needed_bytes: int) -> None:
    """Raise if the ranks that use a device need more memory than it has.

    Parameters
    ----------
    parts : dict
        Memory of this rank by kind, for the message [bytes].
    needed_bytes : int
        Memory of all ranks that use the device [bytes].

    Raises
    ------
    UserError
        States both numbers and how to reduce the memory.
    """
    # Other ranks may already have allocated memory on a shared device, so compare with the total.
    available, word = (gpu.free_bytes, "free") if gpu.sharers == 1 else (gpu.total_bytes, "installed")
    if needed_bytes <= available:
        return
    listed = ", ".join(f"{kind} {readable(count)}" for kind, count in parts.items() if count)
    who = f"rank {gpu.rank} needs" if gpu.sharers == 1 else f"{gpu.sharers} ranks need"
    raise UserError(
        f"devices: {who} an estimated {readable(needed_bytes)} on {gpu.device}, where {readable(available)} are "
        f"{word} (rank {gpu.rank} needs: {listed}). Host fewer participants per rank (more ranks on other devices), or "
        "reduce optimizer.batch_size, optimizer.seed_batch_size or evaluation.batch_size."
    )


def check_memory(
    config: Config,
    plan: federated.Plan,
    method: Method,
    topology: Topology,
    world: World,
    device: torch.device,
    built: Mapping[int, nn.Module] | None = None,
) -> RankMemory | None:
    """Compare the memory that this rank needs with the free memory of its device. On a CPU, only warn.

    This is called before data and models are loaded. Activations are those that autograd keeps of the largest
    minibatch, plus the largest tensor for the backward pass; or those of an evaluation's forward pass. The number of
    gradient vectors was measured with every method. Workspaces of CUDA's libraries and memory that its allocator wastes
    are not counted, so a run that only just fits may still fail.

    Parameters
    ----------
    built : mapping of int to nn.Module, optional
        Models that participants of this rank will get, on the CPU: they are measured, and not built again for that.

    Returns
    -------
    RankMemory or None
        None if another rank of this node does the check.

    Raises
    ------
    UserError
        If the ranks do not fit on a CUDA device.
    """
    node = world.ranks_here
    if device.type != "cuda" and world.rank != node[0]:
        return None
    hosting = Hosting(config.size, world.size)
    by_architecture = {config.architecture(index): model for index, model in (built or {}).items()}
    run = compute(config, plan.source, method, count_samples(plan), by_architecture)
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
    """Return the ranks of this node that use a device."""
    visible = torch.cuda.device_count()
    return [
        rank
        for local_rank, rank in enumerate(node)
        if choose_device(config.devices, local_rank, len(node), visible) == device
    ]


def warn_if_node_too_small(host: str, ranks: Iterable[int], memory: RankMemory, available: int | None) -> None:
    """Log a warning if the ranks of a node will need more host memory than is available.

    Parameters
    ----------
    available : int or None
        From `available_bytes`, which excludes memory that the processes already use.
    """
    needed = int((memory.total - memory.bookkeeping)[list(ranks)].sum())
    if available is not None and needed > available:
        log.warning(
            f"the ranks on {host} will need an estimated {readable(needed)} more for data, models, optimisers, "
            f"messages and steps, but only {readable(available)} of memory are available there, so the node may run "
            "out of memory. Use more nodes, or host fewer participants on each."
        )


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the memory of this machine that is still available, MemAvailable [bytes]; None if it is unknown."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None
