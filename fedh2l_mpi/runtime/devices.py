"""Who learns on which GPU: chosen by the rank's number on its node, and compared with what the others there have.

What a rank can see is gathered first, so that every rank takes the same decision about all of them: a choice that
would not work on one node stops the run on every rank, with that node's name.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedh2l_mpi.config import DevicesConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.world import World

log = logging.getLogger("fedh2l_mpi")

# What Slurm, depending on its version, puts into CUDA_VISIBLE_DEVICES where it grants no GPU.
NOTHING_GRANTED = ("", "NoDevFiles", "-1")


@dataclass(frozen=True)
class RankSlot:
    """Where a rank sits, and which GPUs it finds there.

    Attributes
    ----------
    rank : int
    host : str
    node : tuple of int
        The ranks on its node, itself among them, in ascending order.
    visible : int
        CUDA devices that PyTorch sees.
    granted : str
        CUDA_VISIBLE_DEVICES, where Slurm gave GPUs to a job; else empty.
    gpus_per_task : str
        SLURM_GPUS_PER_TASK; empty where that was not asked for.
    task : str
        SLURM_PROCID: the Slurm task that this rank is, or was started by.
    """

    rank: int
    host: str
    node: tuple[int, ...]
    visible: int
    granted: str = ""
    gpus_per_task: str = ""
    task: str = ""

    @property
    def local_rank(self) -> int:
        """This rank's number among the ranks of its node."""
        return self.node.index(self.rank)


def collect_slots(world: World, visible: int, environ: Mapping[str, str]) -> list[RankSlot]:
    """Every rank's slot, in the order of ranks, on every rank. **Collective.**"""
    granted = environ.get("CUDA_VISIBLE_DEVICES", "") if "SLURM_JOB_ID" in environ else ""
    return world.collect(
        RankSlot(
            world.rank,
            world.host,
            tuple(world.node_ranks()),
            visible,
            granted="" if granted in NOTHING_GRANTED else granted,
            gpus_per_task=environ.get("SLURM_GPUS_PER_TASK", ""),
            task=environ.get("SLURM_PROCID", ""),
        )
    )


def choose_device(config: DevicesConfig, local_rank: int, local_size: int, visible: int) -> str:
    """Name of the torch device for a rank, from its number on its node.

    Parameters
    ----------
    local_rank, local_size : int
        This rank's number among the ranks of its node, and how many these are.
    visible : int
        CUDA devices that this rank sees.

    Raises
    ------
    UserError
        If CUDA is asked for and none is visible, the map does not fit, or ranks would have to share a device unasked.
    """
    if config.kind == "cpu" or (config.kind == "auto" and visible == 0):
        return "cpu"
    if visible == 0:
        raise UserError("devices.kind: got 'cuda', but no CUDA device is visible; use 'auto' or 'cpu'")
    if config.map is not None:
        if local_rank >= len(config.map) or config.map[local_rank] >= visible:
            raise UserError(
                f"devices.map: got {list(config.map)}, must name one of {visible} visible devices for each of "
                f"{local_size} ranks on a node"
            )
        return f"cuda:{config.map[local_rank]}"
    # One visible device and several ranks is how a scheduler isolates each task's GPU, or a shared one: the comparison
    # of UUIDs tells the two apart.
    if visible >= local_size or visible == 1:
        return f"cuda:{local_rank if visible >= local_size else 0}"
    if not config.share:
        raise UserError(
            f"devices.share: {local_size} ranks on a node but {visible} GPUs; start {visible} ranks a node (they host "
            "several participants each), or set devices.share=true"
        )
    return f"cuda:{local_rank % visible}"


def choose_devices(config: DevicesConfig, slots: Sequence[RankSlot]) -> list[str]:
    """Every rank's torch device, in the order of ranks.

    Raises
    ------
    UserError
        If Slurm gave each node's GPUs to one task that all its ranks share, or as `choose_device`; of several nodes,
        with the host of the first that does not fit.
    """
    if config.kind != "cpu":
        check_tasks_have_gpus(slots)
    devices = []
    for slot in slots:
        with _naming_host(slot, slots):
            devices.append(choose_device(config, slot.local_rank, len(slot.node), slot.visible))
    return devices


def check_tasks_have_gpus(slots: Sequence[RankSlot]) -> None:
    """Refuse GPUs per Slurm task where ranks are no tasks, because mpirun started them.

    Slurm then knows one task a node, and gives it one task's GPUs; what torch sees does not matter, nor whether it sees
    any. On the node of the batch script, mpirun's ranks have all GPUs.

    Raises
    ------
    UserError
        On several nodes, if two ranks of one node belong to one Slurm task.
    """
    per_task = next((slot.gpus_per_task for slot in slots if slot.gpus_per_task), "")
    if not per_task or len({slot.node for slot in slots}) == 1:
        return
    tasks = [(slot.node, slot.task) for slot in slots]
    if len(set(tasks)) < len(tasks):
        raise UserError(
            f"devices: GPUs were asked for per task (SLURM_GPUS_PER_TASK={per_task}), but mpirun started the ranks, "
            "which are no tasks of Slurm's: all ranks of a node, but for the first node, would get the same GPU; use "
            "--gpus-per-node instead of --gpus-per-task, or start with srun"
        )


def check_devices_apart(uuids: Sequence[str], share: bool) -> None:
    """Refuse two ranks of a node on one physical device, unless sharing is allowed.

    Parameters
    ----------
    uuids : sequence of str
        The device of each rank on the node; empty for a CPU.
    """
    used: dict[str, int] = {}
    for local_rank, uuid in enumerate(uuids):
        if uuid and uuid in used and not share:
            raise UserError(
                f"devices: ranks {used[uuid]} and {local_rank} of a node both have GPU {uuid}; ask for GPUs per node "
                "(--gpus-per-node), not per task, or set devices.share=true"
            )
        used[uuid] = local_rank


def check_nodes_apart(slots: Sequence[RankSlot], uuids: Sequence[str], share: bool) -> None:
    """`check_devices_apart` on every node, from the UUIDs of all ranks."""
    for slot in slots:
        if slot.local_rank == 0:
            with _naming_host(slot, slots):
                check_devices_apart([uuids[rank] for rank in slot.node], share)


def find_isolated_hosts(slots: Sequence[RankSlot], uuids: Sequence[str]) -> list[str]:
    """Hosts whose several ranks each see one GPU, and no two the same: the scheduler isolates its tasks."""
    found = []
    for slot in (slot for slot in slots if slot.local_rank == 0):
        here = [uuids[rank] for rank in slot.node]
        sees_one = all(slots[rank].visible == 1 for rank in slot.node)
        if sees_one and len(here) > 1 and all(here) and len(set(here)) == len(here):
            found.append(slot.host)
    return found


def unused_grants(config: DevicesConfig, slots: Sequence[RankSlot]) -> str:
    """A warning that GPUs were granted which PyTorch does not see; empty where all is well."""
    blind = [slot for slot in slots if slot.granted and not slot.visible]
    if config.kind != "auto" or not blind:
        return ""
    return (
        f"Slurm granted GPUs (CUDA_VISIBLE_DEVICES={blind[0].granted} on {blind[0].host}), but PyTorch sees none, "
        "so the CPU is used; install a PyTorch with CUDA, or set devices.kind=cpu if that is meant"
    )


def assign_device(world: World, config: DevicesConfig, environ: Mapping[str, str] = os.environ) -> str:
    """This rank's torch device, also compared with those of the other ranks on its node. **Collective.**

    Raises
    ------
    UserError
        On every rank alike, if the devices of any node do not fit the config.
    """
    import torch

    slots = collect_slots(world, torch.cuda.device_count(), environ)
    device = world.together(lambda: choose_devices(config, slots))[world.rank]
    uuids = world.collect(select_device(device))
    world.together(lambda: check_nodes_apart(slots, uuids, config.share))
    if world.rank == 0:
        if isolated := find_isolated_hosts(slots, uuids):
            log.info(f"each rank sees one GPU, its own (isolated by the scheduler), on {', '.join(isolated)}")
        if warning := unused_grants(config, slots):
            log.warning(warning)
    return device


def select_device(device: str) -> str:
    """Make a torch device this process's own; its UUID, empty for the CPU."""
    if device == "cpu":
        return ""
    import torch

    # Before the first call that needs CUDA: that one would open a context on device 0 for every rank.
    torch.cuda.set_device(device)
    return str(torch.cuda.get_device_properties(device).uuid)


@contextmanager
def _naming_host(slot: RankSlot, slots: Sequence[RankSlot]) -> Iterator[None]:
    """Of several hosts, put the slot's behind a UserError from inside."""
    try:
        yield
    except UserError as error:
        if len({other.host for other in slots}) == 1:
            raise
        raise UserError(f"{error} (on {slot.host})") from None
