"""Check the node of every rank, the cores that it may use, and the GPU that it would get."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedh2l_mpi.config import DevicesConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.doctor import mps
from fedh2l_mpi.launch.doctor.findings import Finding, Level, fact, failure, good, refused, spans, warning
from fedh2l_mpi.runtime import devices, shared_memory
from fedh2l_mpi.runtime.devices import RankSlot
from fedh2l_mpi.runtime.world import World

# Further nodes are only counted, so that the page stays short.
LISTED = 12


@dataclass(frozen=True)
class RankResources:
    """Cores and GPU of a rank.

    Attributes
    ----------
    cores : frozenset of int
        Cores that its process may run on.
    gpu : str
        Name of the GPU that it would get; empty for the CPU.
    uuid : str
        UUID of that GPU.
    trouble : str
        Reason why the GPU cannot be used; empty if it can.
    machine_cores : int
        Number of cores of the machine.
    shared_bytes : int or None
        Memory that the ranks of its machine can share, of which MPI may have taken its part already; None if unknown.
    """

    cores: frozenset[int]
    gpu: str = ""
    uuid: str = ""
    trouble: str = ""
    machine_cores: int = 0
    shared_bytes: int | None = None


def usable_cores() -> frozenset[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def visible_gpus() -> int:
    """Return the number of CUDA devices that PyTorch sees; 0 without PyTorch."""
    try:
        import torch
    except (ImportError, OSError):
        return 0
    return torch.cuda.device_count()


def claim_resources(device: str) -> RankResources:
    """Select `device` for this rank, as a run would, and return its cores and GPU."""
    own = RankResources(usable_cores(), machine_cores=os.cpu_count() or 1, shared_bytes=shared_memory.total_bytes())
    if device == "cpu":
        return own
    import torch

    try:
        uuid = devices.select_device(device)
        return replace(own, gpu=torch.cuda.get_device_name(device), uuid=uuid)
    except (RuntimeError, AssertionError) as error:
        return replace(own, trouble=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def examine(world: World, config: DevicesConfig, environ: Mapping[str, str]) -> list[Finding]:
    """Check cores and GPUs of every node. **Collective.**"""
    slots = devices.collect_slots(world, visible_gpus(), environ)
    lines: list[Finding] = []
    chosen = ["cpu"] * world.size
    try:
        chosen = devices.choose_devices(config, slots)
    except UserError as error:
        # All ranks have the same slots, so all of them get this error.
        lines.append(refused("GPUs", error))
    resources = world.collect(claim_resources(chosen[world.rank]))
    settings = world.collect(environ.get("CUDA_VISIBLE_DEVICES"))
    services = world.collect(mps.state(environ))
    cores = [core_use(here, [resources[rank] for rank in here[0].node], config.threads) for here in _nodes(slots)]
    if not lines:
        lines = gpu_use(config, slots, chosen, resources)
        lines += mps.use(slots, [own.uuid for own in resources], services)
    lines += _visible_devices(slots, settings)
    each_bytes = shared_memory.rank_bytes(environ) or shared_memory.MPICH_RANK_BYTES
    shared = [shared_memory_use(here, resources[here[0].rank], each_bytes) for here in _nodes(slots)]
    return _in_short(cores) + _in_short([found for found in shared if found is not None]) + lines


def shared_memory_use(here: Sequence[RankSlot], own: RankResources, each_bytes: int) -> Finding | None:
    """Check that the ranks of a node, or one for each of its cores, fit into its shared memory; None if unknown.

    Parameters
    ----------
    each_bytes : int
        What MPI takes there for a rank.
    """
    if own.shared_bytes is None:
        return None
    fits = max(1, own.shared_bytes // each_bytes)
    size = f"{own.shared_bytes / shared_memory.MIB:,.0f} MiB in {shared_memory.FOLDER}"
    text = f"{size} are enough for MPI with {_count(fits, 'rank')}"
    if fits >= max(len(here), len(own.cores)):
        return good(here[0].host, text)
    return warning(
        here[0].host,
        f"{text}; more may be killed without a message (SIGBUS, SIGSEGV)",
        f"start at most {_count(fits, 'rank')} a node (each can host several participants), or {shared_memory.LARGER}",
    )


def core_use(here: Sequence[RankSlot], resources: Sequence[RankResources], threads: int) -> Finding:
    """Check that the ranks of a node have a core for each of their threads.

    Parameters
    ----------
    here : sequence of RankSlot
        The ranks of one node.
    resources : sequence of RankResources
        Cores and GPU of each of them.
    threads : int
        Threads of each rank.
    """
    cores = [own.cores for own in resources]
    together = frozenset[int]().union(*cores)
    wanted = len(here) * threads
    text = f"{_ranks(here[0].node)}, {_count(threads, 'thread')} each, "
    text += f"on {_count(len(together), 'core')} ({spans(together)})"
    if wanted > len(together):
        fits = max(1, len(together) // threads)
        fix = f"start {_count(fits, 'rank')} a node (each can host several participants)"
        if len(together) < resources[0].machine_cores:
            fix += (
                f", or let them use more of its {resources[0].machine_cores} (srun -c {threads}; mpirun --bind-to none)"
            )
        return warning(here[0].host, f"{text}: {_count(wanted, 'thread')} are too many, so runs are slow", fix)
    if threads > min(map(len, cores)):
        return warning(
            here[0].host,
            f"{text}: a rank may use only {_count(min(map(len, cores)), 'core')} for its {threads} threads",
            f"give each rank {threads} (srun -c {threads}; mpirun --bind-to none), or set devices.threads",
        )
    return good(here[0].host, text)


def gpu_use(
    config: DevicesConfig, slots: Sequence[RankSlot], chosen: Sequence[str], resources: Sequence[RankResources]
) -> list[Finding]:
    """Report the GPU of every rank, and check that no two ranks have to share one."""
    broken = [slot for slot in slots if resources[slot.rank].trouble]
    if broken:
        text = f"rank {broken[0].rank} cannot use {chosen[broken[0].rank]}: {resources[broken[0].rank].trouble}"
        return [failure("GPUs", f"{text} (on {broken[0].host})", "check driver and PyTorch there with nvidia-smi")]
    uuids = [own.uuid for own in resources]
    lines = []
    try:
        devices.check_nodes_apart(slots, uuids, config.may_share)
    except UserError as error:
        lines.append(refused("GPUs", error))
    if note := devices.sharing_note(config, slots, uuids):
        lines.append(fact("GPUs", note))
    if unused := devices.unused_grants(config, slots):
        lines.append(Finding("GPUs", unused, Level.WARNING))
    if not any(uuids):
        reason = "devices.kind is cpu" if config.kind == "cpu" else "PyTorch sees no CUDA device"
        return lines or [fact("GPUs", f"none used: {reason}")]
    isolated = devices.find_isolated_hosts(slots, uuids)
    assigned = []
    for here in _nodes(slots):
        each = [f"rank {slot.rank} {chosen[slot.rank]}{_named(resources[slot.rank])}" for slot in here]
        sees = "each rank sees only its own" if here[0].host in isolated else f"{here[0].visible} seen"
        assigned.append(good(here[0].host, f"GPUs, {sees}: {', '.join(each)}"))
    if without := [slot.rank for slot in slots if not uuids[slot.rank]]:
        text = f"{_ranks(without)} (on {slots[without[0]].host}) would use the CPU, the others GPUs"
        lines.append(warning("GPUs", text, "set devices.kind=cuda to make this an error"))
    return lines + _in_short(assigned)


def _visible_devices(slots: Sequence[RankSlot], settings: Sequence[str | None]) -> list[Finding]:
    """Report CUDA_VISIBLE_DEVICES on every rank; return no finding if it is not set anywhere."""
    if not any(settings):
        return []
    by_value: dict[str, list[int]] = {}
    for slot, value in zip(slots, settings, strict=True):
        by_value.setdefault("unset" if value is None else repr(value), []).append(slot.rank)
    text = "; ".join(f"{value} on {_ranks(ranks)}" for value, ranks in by_value.items())
    return [fact("visible", f"CUDA_VISIBLE_DEVICES {text}")]


def _nodes(slots: Sequence[RankSlot]) -> list[list[RankSlot]]:
    return [[slots[rank] for rank in slot.node] for slot in slots if slot.local_rank == 0]


def _in_short(lines: list[Finding]) -> list[Finding]:
    """Return at most LISTED findings, warnings and failures first, and a line that counts the rest."""
    bad = [line for line in lines if line.level.value not in ("", "ok")]
    shown = bad[:LISTED]
    shown += [line for line in lines if line not in bad][: LISTED - len(shown)]
    left = len(lines) - len(shown)
    return [*shown, fact("", f"and {left} more nodes")] if left else shown


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'' if len(numbers) == 1 else 's'} {spans(numbers)}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _named(own: RankResources) -> str:
    return f" ({own.gpu}, {own.uuid[:12]})" if own.gpu else ""
