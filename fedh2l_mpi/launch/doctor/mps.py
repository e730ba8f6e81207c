"""Check NVIDIA's Multi-Process Service (MPS), with which processes that share a GPU compute on it at the same time.

Without it, a GPU serves one process after the other. No GPU was available, so what is said here of MPS is NVIDIA's.
"""

import enum
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedh2l_mpi.launch.doctor.findings import Finding, good, warning
from fedh2l_mpi.runtime.devices import RankSlot
from fedh2l_mpi.runtime.processes import is_running

CONTROL = "nvidia-cuda-mps-control"
# Folder of the daemon's pipes, and the variable that names another one.
FOLDER, VARIABLE = "/tmp/nvidia-mps", "CUDA_MPS_PIPE_DIRECTORY"
FEWER = "start one rank for each GPU (each can host several participants)"


class Mps(enum.Enum):
    """State of MPS on a node."""

    RUNNING = "runs"
    STOPPED = "does not run"
    MISSING = "is not installed"


def state(environ: Mapping[str, str]) -> Mps:
    """Return the state of MPS for a process with this environment.

    Source: NVIDIA, "Multi-Process Service", sections "Environment variables" and "Starting MPS on Linux".
    """
    folder = Path(environ.get(VARIABLE, FOLDER))
    try:
        if is_running(int((folder / f"{CONTROL}.pid").read_text())):
            return Mps.RUNNING
    except (OSError, ValueError):
        pass  # There is no daemon, or it belongs to another user.
    return Mps.STOPPED if shutil.which(CONTROL, path=environ.get("PATH")) else Mps.MISSING


def use(slots: Sequence[RankSlot], uuids: Sequence[str], states: Sequence[Mps]) -> list[Finding]:
    """Report MPS on the first node whose ranks share a GPU; return no finding if none do.

    Parameters
    ----------
    uuids : sequence of str
        UUID of every rank's GPU; empty for the CPU.
    states : sequence of Mps
        MPS as every rank finds it.
    """
    shared = [slot for slot in slots if uuids[slot.rank] and _ranks_on(slot, uuids) > 1]
    if not shared:
        return []
    # A node without MPS comes before one with it.
    slot = next((slot for slot in shared if states[slot.rank] is not Mps.RUNNING), shared[0])
    found, ranks = states[slot.rank], _ranks_on(slot, uuids)
    text = f"{ranks} ranks share a GPU on {slot.host}, and MPS {found.value} there"
    if found is Mps.RUNNING:
        return [good("MPS", f"{text}, so they can compute at the same time")]
    start = f", or start MPS first on every node (`{CONTROL} -d`)" if found is Mps.STOPPED else ""
    return [warning("MPS", f"{text}, so they take turns", f"{FEWER}{start}")]


def _ranks_on(slot: RankSlot, uuids: Sequence[str]) -> int:
    """Count the ranks of a rank's node that have its GPU."""
    return sum(uuids[rank] == uuids[slot.rank] for rank in slot.node)
