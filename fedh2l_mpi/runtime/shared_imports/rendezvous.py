"""Where the processes of one node that can share imports find each other, and who founds the server.

They share what cannot be handed over from process to process: the launcher that started them, the user, the Python and
its options, what libraries read when they are loaded, limits. The digest of all that is the name of an abstract Unix
socket, which vanishes with its holder and can be bound by one process only.
"""

import contextlib
import errno
import hashlib
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Mapping

from fedh2l_mpi.runtime.processes import stat_fields

# How many ranks of the job are on this node, by launcher, most specific first; srun's is a list of nodes.
KNOWN_BY = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
# Any of these says that there are several processes.
LAUNCHED_BY = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE")
# Libraries bind threads to CPUs by these as soon as they are loaded, and a rank's CPUs are not the server's.
BINDS_THREADS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
# Which GPUs a process sees may differ between the ranks of a node.
DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
# Beginnings of variables that Python or a library reads once, when it is loaded.
READ_AT_LOAD = (
    *("PYTHON", "VIRTUAL_ENV", "LD_", "PATH", "HOME", "LANG", "LC_", "TZ", "MALLOC_", "GLIBC_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "DNNL_", "ONEDNN_", "NPY_", "NUMPY_"),
    *("TORCH", "PYTORCH_", "ATEN_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "HIP_", "HSA_"),
    *("HDF5_", "H5PY_", "MPI4PY_"),
)
# Lines of /proc/self/status that a process cannot hand over.
KEPT_IN_STATUS = ("Umask", "Groups", "CapEff", "NoNewPrivs", "Seccomp", "Mems_allowed_list")
NAMESPACES = ("mnt", "net", "ipc", "pid", "user", "uts")
PATIENCE_S = 20.0


class CannotShareError(Exception):
    """Why this process cannot share imports with others."""


def ranks_on_node(environ: Mapping[str, str]) -> int | None:
    """How many ranks of this job the launcher started on this node; 1 without a launcher, None if it does not say."""
    for name in KNOWN_BY[:-1]:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    tasks, node = environ.get(KNOWN_BY[-1], ""), environ.get("SLURM_NODEID", "")
    if tasks and node.isdigit():
        # Such as 4(x2),3: two nodes with four tasks, one with three.
        counts: list[int] = []
        for part in tasks.split(","):
            count, _, times = part.rstrip(")").partition("(x")
            counts += [int(count)] * int(times or 1)
        if int(node) < len(counts):
            return counts[int(node)]
    return None if any(environ.get(name, "1") != "1" for name in LAUNCHED_BY) else 1


def long_addresses_are_cut(environ: Mapping[str, str]) -> bool:
    """Whether ranks of MPICH would find each other only if little has been imported before MPI begins.

    To ranks on other nodes, MPICH 5 publishes the 4 KiB of memory in which its address of some 500 bytes begins, with
    zeros written short. Slurm's PMI cuts every message at 1 KiB: enough for the memory of a process that has just
    begun, often too little for that of a forked one. The PMI of MPICH's own mpirun cuts nothing.
    """
    by_slurm = "PMI_FD" in environ and "MPI_LOCALNRANKS" not in environ
    return by_slurm and environ.get("SLURM_STEP_NUM_NODES", "1") != "1"


def parent_is_a_rank(environ: Mapping[str, str]) -> bool:
    """Whether the launcher started this process's parent: every rank then has one of its own, and no other to meet.

    Launchers tell only what they start how many ranks are on a node.
    """
    known = next((f"{name}={environ[name]}" for name in KNOWN_BY if name in environ), None)
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as parents:
            return known is not None and known.encode() in parents.read().split(b"\0")
    except OSError:
        # Of another user, as Slurm's launcher is.
        return False


def find_address() -> bytes:
    """The address at which this process and those that can share imports with it meet.

    Raises
    ------
    CannotShareError
        If the launcher cannot be seen.
    """
    launcher = os.getppid()
    try:
        started = stat_fields(launcher)[19]
        with open("/proc/self/status") as status:
            kept = [line for line in status if line.partition(":")[0] in KEPT_IN_STATUS]
    except OSError as error:
        raise CannotShareError(
            f"{error.filename} cannot be read ({error.strerror}), as in a PID namespace without the launcher"
        ) from None
    loads = {name: value for name, value in os.environ.items() if name.startswith(READ_AT_LOAD) and name not in DEVICES}
    alike = [
        [os.getresuid(), os.getresgid(), launcher, started, _memory_policy(), kept],
        [os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES if os.path.exists(f"/proc/self/ns/{name}")],
        [sys.executable, sys.version, list(sys.flags), sorted(sys._xoptions.items()), sys.warnoptions, sys.path],
        [sorted(loads.items()), os.getpriority(os.PRIO_PROCESS, 0), os.stat("/").st_dev, os.stat("/").st_ino],
        [[name, resource.getrlimit(getattr(resource, name))] for name in dir(resource) if name.startswith("RLIMIT_")],
    ]
    digest = hashlib.sha256(json.dumps(alike, default=str).encode()).hexdigest()
    return b"\0fedh2l_mpi-imports-" + digest[:40].encode()


def connect_or_listen(address: bytes) -> tuple[socket.socket | None, socket.socket]:
    """A connection to the server, and the socket that it is to listen on if this process has to found it.

    Raises
    ------
    CannotShareError
        If another user holds the address, or nobody answers.
    """
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_S:
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(ConnectionRefusedError):
            connection.connect(address)
            return None, check_peer(connection)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(address)
        except OSError as error:
            listener.close()
            connection.close()
            if error.errno != errno.EADDRINUSE:
                raise CannotShareError(f"no Unix socket can be bound: {error.strerror}") from None
            # Another process was faster, and listens in a moment.
            time.sleep(0.002)
            continue
        listener.listen(4096)
        # Before there is a server: it ends with its last connection, so that it needs a first.
        connection.connect(address)
        return listener, connection
    raise CannotShareError(f"the process that imports for this node did not answer within {PATIENCE_S:g} s")


def check_peer(connection: socket.socket) -> socket.socket:
    """The connection, if the process at its other end is this user's.

    Raises
    ------
    CannotShareError
        If it is another's.
    """
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        connection.close()
        raise CannotShareError(f"a process of user {uid} is at the address where this node's ranks meet")
    return connection


def _memory_policy() -> str:
    """On which memory nodes this process's memory is put: bound by numactl or srun, it stays so."""
    try:
        with open("/proc/self/numa_maps") as maps:
            return maps.readline().split()[1]
    except (OSError, IndexError):
        return ""
