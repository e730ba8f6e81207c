"""Choose every rank's device by its number on its node, and check that no two ranks share one unasked.

All ranks first collect what each of them sees, so every rank makes the same decision about all of them. A choice that
does not work on one node stops the run on every rank, and the message names that node.
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

# Values of CUDA_VISIBLE_DEVICES if Slurm grants no GPU; they depend on its version.
NOTHING_GRANTED = ("", "NoDevFiles", "-1")
# Beginning of the name of a slice of a GPU in CUDA_VISIBLE_DEVICES.
SLICE = "MIG-"
# Hosts that a line names.
NAMED = 4


@dataclass(frozen=True)
class RankSlot:
    """A rank's place: its node, its number there, and the GPUs that it sees.

    Attributes
    ----------
    rank : int
    host : str
    node : tuple of int
        All ranks on its node, including itself, in ascending order.
    visible : int
        Number of CUDA devices that PyTorch sees.
    granted : str
        CUDA_VISIBLE_DEVICES if Slurm gave GPUs to the job; otherwise empty.
    gpus_per_task : str
        SLURM_GPUS_PER_TASK; empty if the job did not request it.
    task : str
        SLURM_PROCID: the Slurm task that is this rank, or that started it.
    slices : int
        Number of MIG slices that CUDA_VISIBLE_DEVICES names, of which CUDA shows the first one only.
    """

    rank: int
    host: str
    node: tuple[int, ...]
    visible: int
    granted: str = ""
    gpus_per_task: str = ""
    task: str = ""
    slices: int = 0

    @property
    def local_rank(self) -> int:
        """Number of this rank among the ranks of its node."""
        return self.node.index(self.rank)


@dataclass(frozen=True)
class AssignedDevice:
    """A rank's device, and the ranks that use the same one.

    Attributes
    ----------
    name : str
        Name of the torch device, such as `cuda:0`.
    sharers : tuple of int
        Ranks of this node that use the same physical device, including this rank, in ascending order. On a CPU, this
        rank alone. GPUs are compared by what `identity_of` returns, because every isolated rank calls its own `cuda:0`.
    free_bytes, total_bytes : int
        Free and installed memory of a GPU; of a MIG slice, those of the slice. 0 on a CPU. The free memory is what is
        left when every sharer has a CUDA context, and none of them has allocated anything.
    """

    name: str
    sharers: tuple[int, ...] = (0,)
    free_bytes: int = 0
    total_bytes: int = 0


def collect_slots(world: World, visible: int, environ: Mapping[str, str]) -> list[RankSlot]:
    """Return the slots of all ranks, in the order of ranks, on every rank. **Collective.**"""
    named = environ.get("CUDA_VISIBLE_DEVICES", "")
    granted = named if "SLURM_JOB_ID" in environ else ""
    return world.collect(
        RankSlot(
            world.rank,
            world.host,
            tuple(world.node_ranks()),
            visible,
            granted="" if granted in NOTHING_GRANTED else granted,
            gpus_per_task=environ.get("SLURM_GPUS_PER_TASK", ""),
            task=environ.get("SLURM_PROCID", ""),
            slices=sum(name.strip().startswith(SLICE) for name in named.split(",")),
        )
    )


def choose_device(config: DevicesConfig, local_rank: int, local_size: int, visible: int) -> str:
    """Return the name of the torch device for a rank, from its number on its node.

    Parameters
    ----------
    local_rank, local_size : int
        Number of this rank among the ranks of its node, and the number of these ranks.
    visible : int
        Number of CUDA devices that this rank sees.

    Raises
    ------
    UserError
        If CUDA is requested but no device is visible, if the map does not fit, or if ranks would share a device
        that `devices.share` does not allow to be shared.
    """
    if config.kind == "cpu" or (config.kind == "auto" and visible == 0):
        return "cpu"
    if visible == 0:
        raise UserError("devices.kind: got 'cuda', but no CUDA device is visible. Use 'auto' or 'cpu'.")
    if config.map is not None:
        if local_rank >= len(config.map) or config.map[local_rank] >= visible:
            raise UserError(
                f"devices.map: got {list(config.map)}, but it must name one of the {visible} visible devices for each "
                f"of the {local_size} ranks on a node."
            )
        return f"cuda:{config.map[local_rank]}"
    # If several ranks see one device each, the scheduler isolated every task's GPU, or they share one. The comparison
    # of UUIDs distinguishes the two.
    if visible >= local_size or visible == 1:
        return f"cuda:{local_rank if visible >= local_size else 0}"
    if not config.may_share:
        raise UserError(
            f"devices.share: there are {local_size} ranks on a node but {visible} GPUs. Start {visible} ranks per node "
            "(each hosts several participants), or set devices.share=true."
        )
    return f"cuda:{local_rank % visible}"


def choose_devices(config: DevicesConfig, slots: Sequence[RankSlot]) -> list[str]:
    """Return every rank's torch device, in the order of ranks.

    Raises
    ------
    UserError
        If Slurm gave each node's GPUs to one task that all its ranks share, or like `choose_device`. If there are
        several nodes, the message names the first host that does not fit.
    """
    if config.kind != "cpu":
        check_tasks_have_gpus(slots)
    devices = []
    for slot in slots:
        with _naming_host(slot, slots):
            devices.append(choose_device(config, slot.local_rank, len(slot.node), slot.visible))
    return devices


def check_tasks_have_gpus(slots: Sequence[RankSlot]) -> None:
    """Raise if GPUs were requested per Slurm task, but mpirun started the ranks.

    Then Slurm sees one task per node, and gives it the GPUs of one task. On the node of the batch script, mpirun's
    ranks have all GPUs. The devices that torch sees do not matter for this check.

    Raises
    ------
    UserError
        If there are several nodes, and two ranks of one node belong to one Slurm task.
    """
    per_task = next((slot.gpus_per_task for slot in slots if slot.gpus_per_task), "")
    if not per_task or len({slot.node for slot in slots}) == 1:
        return
    tasks = [(slot.node, slot.task) for slot in slots]
    if len(set(tasks)) < len(tasks):
        raise UserError(
            f"devices: --gpus-per-task (SLURM_GPUS_PER_TASK={per_task}) does not work with mpirun: the ranks of every "
            "node except the first would share one GPU. Use --gpus-per-node, or start with srun."
        )


def check_devices_apart(uuids: Sequence[str], share: bool) -> None:
    """Raise if two ranks of a node have the same physical device, unless sharing is allowed.

    Parameters
    ----------
    uuids : sequence of str
        UUID of the device of each rank on the node; empty for a CPU.

    Raises
    ------
    UserError
        Names the two ranks and the device.
    """
    used: dict[str, int] = {}
    for local_rank, uuid in enumerate(uuids):
        if uuid and uuid in used and not share:
            raise UserError(
                f"devices: ranks {used[uuid]} and {local_rank} of a node both have GPU {uuid}. Request GPUs per node "
                "(--gpus-per-node) instead of per task, or set devices.share=true."
            )
        used[uuid] = local_rank


def check_nodes_apart(slots: Sequence[RankSlot], uuids: Sequence[str], share: bool) -> None:
    """Apply `check_devices_apart` to every node, from the UUIDs of all ranks."""
    for slot in slots:
        if slot.local_rank == 0:
            with _naming_host(slot, slots):
                check_devices_apart([uuids[rank] for rank in slot.node], share)


def find_isolated_hosts(slots: Sequence[RankSlot], uuids: Sequence[str]) -> list[str]:
    """Return the hosts whose ranks each see one GPU of their own, because the scheduler isolates its tasks."""
    found = []
    for slot in (slot for slot in slots if slot.local_rank == 0):
        here = [uuids[rank] for rank in slot.node]
        sees_one = all(slots[rank].visible == 1 for rank in slot.node)
        if sees_one and len(here) > 1 and all(here) and len(set(here)) == len(here):
            found.append(slot.host)
    return found


def unused_grants(config: DevicesConfig, slots: Sequence[RankSlot]) -> str:
    """Return a warning if Slurm granted GPUs that PyTorch does not see; otherwise an empty text."""
    blind = [slot for slot in slots if slot.granted and not slot.visible]
    if config.kind != "auto" or not blind:
        return ""
    return (
        f"Slurm granted GPUs (CUDA_VISIBLE_DEVICES={blind[0].granted} on {blind[0].host}), but PyTorch sees none, "
        "so the CPU is used. Install a PyTorch with CUDA, or set devices.kind=cpu if you want the CPU."
    )


def assign_device(world: World, config: DevicesConfig, environ: Mapping[str, str] = os.environ) -> AssignedDevice:
    """Choose this rank's torch device, and check it against the devices of the other ranks. **Collective.**

    The free memory of a GPU is measured between two steps that all ranks take together: after the first one, every
    rank has its CUDA context; before the second one, none of them allocates anything.

    Raises
    ------
    UserError
        On every rank alike, if the devices of any node do not fit the config.
    """
    import torch

    from fedh2l_mpi.runtime import arithmetic

    slots = collect_slots(world, torch.cuda.device_count(), environ)
    device = world.together(lambda: choose_devices(config, slots))[world.rank]
    if device != "cpu" and not arithmetic.fix_workspace() and world.rank == 0:
        log.warning(
            f"CUDA was in use before this run without {arithmetic.WORKSPACE}, so the last bits may differ from run to "
            f"run. Fix: set {arithmetic.WORKSPACE}={arithmetic.SIZES} before CUDA is first used."
        )
    uuids = world.collect(select_device(device, environ))
    free_bytes, total_bytes = (0, 0) if device == "cpu" else torch.cuda.mem_get_info(device)
    world.together(lambda: check_nodes_apart(slots, uuids, config.may_share))
    if world.rank == 0:
        if isolated := find_isolated_hosts(slots, uuids):
            log.info(f"each rank sees only its own GPU (isolated by the scheduler) on {', '.join(isolated)}")
        if note := sharing_note(config, slots, uuids):
            log.info(note)
        if warning := unused_grants(config, slots):
            log.warning(warning)
    return AssignedDevice(device, find_sharers(slots, uuids, world.rank), free_bytes, total_bytes)


def find_sharers(slots: Sequence[RankSlot], uuids: Sequence[str], rank: int) -> tuple[int, ...]:
    """Return the ranks of this rank's node that have the same device, including itself; only itself on a CPU."""
    if not uuids[rank]:
        return (rank,)
    return tuple(other for other in slots[rank].node if uuids[other] == uuids[rank])


def sharing_note(config: DevicesConfig, slots: Sequence[RankSlot], uuids: Sequence[str]) -> str:
    """Return a line about the nodes whose ranks share GPUs without having been asked to; empty if there are none."""
    if config.share is not None:
        return ""
    hosts: dict[str, list[str]] = {}
    slices = 0
    for slot in (slot for slot in slots if slot.local_rank == 0):
        here = [uuids[rank] for rank in slot.node if uuids[rank]]
        if len(set(here)) < len(here):
            gpus = "1 GPU" if len(set(here)) == 1 else f"{len(set(here))} GPUs"
            hosts.setdefault(f"{len(here)} ranks share {gpus}", []).append(slot.host)
            slices = max(slices, slot.slices)
    if not hosts:
        return ""
    listed = "; ".join(f"{what} on {_some(names)}" for what, names in hosts.items())
    one_each = "start as many ranks as GPUs"
    if slices > 1:
        one_each = f"start each rank with one of the {slices} MIG slices alone, because CUDA shows only the first"
    return f"{listed}. For a GPU each, {one_each}; devices.kind=cpu takes the CPU, and devices.share=false refuses this"


def select_device(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """Select a torch device for this process, open its CUDA context, and return its identity; empty for the CPU."""
    if device == "cpu":
        return ""
    import torch

    # Select the device before the first call that needs CUDA; otherwise every rank opens a context on device 0.
    torch.cuda.set_device(device)
    # The driver can only report the free memory of a device that has a context, so this call opens one.
    torch.cuda.mem_get_info(device)
    return identity_of(str(torch.cuda.get_device_properties(device).uuid), environ)


def identity_of(uuid: str, environ: Mapping[str, str]) -> str:
    """Return what distinguishes a rank's GPU, or its slice of a GPU, from those of the other ranks of its node.

    A process sees at most one MIG slice, the first one that CUDA_VISIBLE_DEVICES names. This name is used for a slice,
    because some versions of CUDA may give the UUID of the whole GPU to each of its slices (not verified here).

    Parameters
    ----------
    uuid : str
        The UUID that PyTorch gives.

    Source: NVIDIA, "Multi-Instance GPU user guide", section "CUDA device enumeration".
    """
    first = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return first if first.startswith(SLICE) else uuid


def _some(hosts: Sequence[str]) -> str:
    """Return the names of the first hosts, and the number of the others."""
    more = f" and {len(hosts) - NAMED} more nodes" if len(hosts) > NAMED else ""
    return ", ".join(hosts[:NAMED]) + more


@contextmanager
def _naming_host(slot: RankSlot, slots: Sequence[RankSlot]) -> Iterator[None]:
    """Add the host to a UserError from inside the context, if there are several hosts."""
    try:
        yield
    except UserError as error:
        if len({other.host for other in slots}) == 1:
            raise
        raise UserError(f"{error} Host: {slot.host}.") from None
