"""Check the folder /dev/shm, in which MPI's ranks of a node share memory, before MPI uses it.

If it is full, the kernel kills a rank that writes there (SIGBUS, or SIGSEGV by a later fault), and nothing says why.
Docker gives a container 64 MiB.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fedh2l_mpi.runtime.shared_imports.rendezvous import ranks_on_node

FOLDER = Path("/dev/shm")
MIB = 2**20
# What a rank takes there, measured with 2 to 32 ranks: MPICH 5.0.2 5.14 MiB, Open MPI 5.0.11 0.36 MiB.
MPICH_RANK_BYTES, OPEN_MPI_RANK_BYTES = 52 * MIB // 10, 4 * MIB // 10
# A node's ranks are numbered from 0 by these variables, most specific first.
LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
LARGER = "enlarge it (docker run --shm-size=1g)"


def total_bytes() -> int | None:
    """Return the size of the folder; None if there is none."""
    try:
        status = os.statvfs(FOLDER)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize


def free_bytes() -> int | None:
    """Return how much of the folder is free; None if there is no such folder."""
    try:
        status = os.statvfs(FOLDER)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def rank_bytes(environ: Mapping[str, str]) -> int | None:
    """Return what a rank takes with the MPI of this launcher; None if the launcher does not say which MPI it is."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ:
        return OPEN_MPI_RANK_BYTES
    # MPICH's mpirun, and srun with the PMI that MPICH speaks.
    return MPICH_RANK_BYTES if "MPI_LOCALNRANKS" in environ or "PMI_FD" in environ else None


def caution(environ: Mapping[str, str]) -> str:
    """Return a warning for the first rank of a node if its ranks do not fit into the folder; otherwise an empty text.

    It is meant for the moment before MPI is loaded. No rank has taken its part then, because MPI creates the memory
    only when all ranks of the node have come.
    """
    own = next((environ[name] for name in LOCAL_RANKS if name in environ), "")
    each, ranks, free = rank_bytes(environ), ranks_on_node(environ), free_bytes()
    if own != "0" or each is None or ranks is None or free is None or ranks * each <= free:
        return ""
    fits = max(1, free // each)
    return (
        f"{FOLDER} has {free / MIB:,.0f} MiB free on this node, but its {ranks} ranks take {ranks * each / MIB:,.0f} "
        f"MiB of it. MPI may be killed without a message (SIGBUS, SIGSEGV). Fix: {LARGER}, or start at most {fits} "
        f"rank{'' if fits == 1 else 's'} a node; each can host several participants."
    )
