"""Check that the ranks of a node or device fit into its memory."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import Method
from fedh2l_mpi.planning.memory import RankMemory
from fedh2l_mpi.planning.requirements import compute, count_samples
from fedh2l_mpi.planning.traffic import links
from fedh2l_mpi.runtime.devices import AssignedDevice
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.units import size as readable
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Topology

log = logging.getLogger("fedh2l_mpi")


# Memory of a process on a GPU outside PyTorch's allocator: its context, and the kernels and workspaces that cuBLAS and
# cuDNN load later. Users report 256 to 400 MB for a context of CUDA 11.7 or later, which loads kernels lazily, and
# 300 to 600 MB in all, depending on the card. These values were not measured here; `benchmarks.gpu` measures them.
# Source: issues 107667 and 109888 of github.com/pytorch/pytorch.
CONTEXT_BYTES = 384 * 2**20
LIBRARIES_BYTES = 128 * 2**20
# Kinds of memory that are on the device, by their names in `RankMemory`.
ON_DEVICE = ("data", "models", "optimisers", "seed_rows", "step")


def refuse_if_too_large(rank: int, gpu: AssignedDevice, parts: dict[str, int], needed_bytes: int) -> None:
    """Raise if the ranks that use a device need more memory than is free there.

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
    if needed_bytes <= gpu.free_bytes:
        return
    listed = ", ".join(f"{kind} {readable(count)}" for kind, count in parts.items() if count)
    count = len(gpu.sharers)
    who = f"rank {rank} needs" if count == 1 else f"{count} ranks need"
    fix = "Host fewer participants per rank (more ranks on other devices)"
    if count > 1:
        fix = "Start as many ranks as GPUs, or more ranks on other nodes, set devices.kind=cpu"
    raise UserError(
        f"devices: {who} an estimated {readable(needed_bytes)} on {gpu.name}, where {readable(gpu.free_bytes)} of "
        f"{readable(gpu.total_bytes)} are free (rank {rank} needs: {listed}). {fix}, or reduce "
        "optimizer.batch_size, optimizer.seed_batch_size, evaluation.batch_size or seed_set.samples_per_round."
    )


def check_memory(
    config: Config,
    plan: federated.Plan,
    method: Method,
    topology: Topology,
    world: World,
    assigned: AssignedDevice,
    built: Mapping[int, nn.Module] | None = None,
) -> RankMemory | None:
    """Compare the memory that this rank needs with the free memory of its device. On a CPU, only warn.

    This is called before data and models are loaded. Activations are those that autograd keeps of the largest
    minibatch, plus the largest tensor for the backward pass; or those of an evaluation's forward pass. The number of
    gradient vectors was measured with every method. The ranks that share a GPU are added up, with CUDA's libraries of
    each; their contexts exist already, so the free memory does not contain them. Memory that the allocator wastes
    by rounding and fragmentation is not counted, so a run that only just fits may still fail.

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
    node, on_host = world.ranks_here, assigned.name == "cpu"
    if on_host and world.rank != node[0]:
        return None
    hosting = Hosting(config.size, world.size)
    by_architecture = {config.architecture(index): model for index, model in (built or {}).items()}
    run = compute(config, plan.source, method, count_samples(plan), by_architecture)
    memory = run.memory(hosting, links(topology.graph(0).edges, hosting), on_host=on_host)
    if on_host:
        warn_if_node_too_small(world.host, node, memory, available_bytes())
        return memory
    parts = {kind: memory.parts(world.rank)[kind] for kind in ON_DEVICE} | {"CUDA's libraries": LIBRARIES_BYTES}
    sharers = list(assigned.sharers)
    needed = int(memory.on_device[sharers].sum()) + LIBRARIES_BYTES * len(sharers)
    refuse_if_too_large(world.rank, assigned, parts, needed)
    return memory


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
