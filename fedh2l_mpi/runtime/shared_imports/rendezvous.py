"""Rendezvous of the processes of a node that can share imports: connect to the import server, or start it.

Processes can share imports if everything is equal that cannot be sent to another process: the launcher, the user, the
Python and its options, the variables that libraries read when they are loaded, and the limits. The digest of all these
is the name of an abstract Unix socket. Only one process can bind it, and it vanishes with that process.
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
from collections.abc import Mapping

from fedh2l_mpi.runtime.clocks import Patience
from fedh2l_mpi.runtime.processes import stat_fields

# Variables of the launchers with the number of ranks on this node, most specific first. srun's lists all nodes.
KNOWN_BY = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
# If one of these is more than 1, the launcher started several processes.
LAUNCHED_BY = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE")
# With these variables, libraries bind threads to CPUs when they are loaded, but a rank's CPUs differ from the server's.
BINDS_THREADS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
# Variables that a GPU's driver reads when a process first uses it. The server never does, so they may differ between
# the ranks of a node: each child has its own rank's values by then.
READ_BY_DRIVERS = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_", "NVIDIA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
)
# Prefixes of variables that Python or a library reads once, when it is loaded.
READ_AT_LOAD = (
    *("PYTHON", "VIRTUAL_ENV", "LD_", "PATH", "HOME", "LANG", "LC_", "TZ", "MALLOC_", "GLIBC_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "DNNL_", "ONEDNN_", "NPY_", "NUMPY_"),
    *("TORCH", "PYTORCH_", "ATEN_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "HIP_", "HSA_"),
    *("HDF5_", "H5PY_", "MPI4PY_"),
)
# Lines of /proc/self/status with properties that a process cannot send to another.
KEPT_IN_STATUS = ("Umask", "Groups", "CapEff", "NoNewPrivs", "Seccomp", "Mems_allowed_list")
NAMESPACES = ("mnt", "net", "ipc", "pid", "user", "uts")
PATIENCE_S = 20.0


class CannotShareError(Exception):
    """This process cannot share imports with others; the text is the reason."""


def ranks_on_node(environ: Mapping[str, str]) -> int | None:
    """Return the number of ranks on this node; 1 without a launcher, None if the launcher does not report it."""
    for name in KNOWN_BY[:-1]:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    tasks, node = environ.get(KNOWN_BY[-1], ""), environ.get("SLURM_NODEID", "")
    if tasks and node.isdigit():
        # For example 4(x2),3: two nodes with four tasks, and one with three.
        counts: list[int] = []
        for part in tasks.split(","):
            count, _, times = part.rstrip(")").partition("(x")
            counts += [int(count)] * int(times or 1)
        if int(node) < len(counts):
            return counts[int(node)]
    return None if any(environ.get(name, "1") != "1" for name in LAUNCHED_BY) else 1


def long_addresses_are_cut(environ: Mapping[str, str]) -> bool:
    """Return True if Slurm's PMI may cut the addresses by which forked ranks of MPICH find each other.

    MPICH 5 publishes the 4 KiB of memory at its address (some 500 bytes), in which zeros are compressed. Slurm's PMI
    cuts every message at 1 KiB. This is enough for the memory of a new process, but often too little for that of a
    forked one. The PMI of MPICH's own mpirun cuts nothing.
    """
    by_slurm = "PMI_FD" in environ and "MPI_LOCALNRANKS" not in environ
    return by_slurm and environ.get("SLURM_STEP_NUM_NODES", "1") != "1"


def is_known_to_work(environ: Mapping[str, str]) -> bool:
    """Return True if tests cover this launcher: the mpirun of MPICH or of Open MPI, or srun with PMI on one node.

    Open MPI's ranks under srun have crashed in rare cases, when PMIx found its fixed addresses taken.
    """
    by_mpirun = "MPI_LOCALNRANKS" in environ or "OMPI_COMM_WORLD_LOCAL_SIZE" in environ
    by_srun = "SLURM_STEP_TASKS_PER_NODE" in environ and "PMIX_RANK" not in environ
    return by_mpirun or (by_srun and environ.get("SLURM_STEP_NUM_NODES", "1") == "1")


def parent_is_a_rank(environ: Mapping[str, str]) -> bool:
    """Return True if the launcher started this process's parent, such as a script.

    Then every rank has its own parent, so the ranks cannot find each other. The check uses a variable that launchers
    set only for the processes that they start.
    """
    known = next((f"{name}={environ[name]}" for name in KNOWN_BY if name in environ), None)
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as parents:
            return known is not None and known.encode() in parents.read().split(b"\0")
    except OSError:
        # The parent belongs to another user, like Slurm's launcher.
        return False


def find_address() -> bytes:
    """Return the socket address for this process and all that can share imports with it.

    Raises
    ------
    CannotShareError
        If the launcher's process is not visible.
    """
    launcher = os.getppid()
    try:
        started = stat_fields(launcher)[19]
        with open("/proc/self/status") as status:
            kept = [line for line in status if line.partition(":")[0] in KEPT_IN_STATUS]
    except OSError as error:
        raise CannotShareError(
            f"{error.filename} cannot be read ({error.strerror}), for example in a PID namespace without the launcher"
        ) from None
    loads = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(READ_AT_LOAD) and not name.startswith(READ_BY_DRIVERS)
    }
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
    """Connect to the import server. If there is none, also return the socket on which this process must start it.

    Returns
    -------
    listener : socket or None
        None if the server exists already.
    connection : socket

    Raises
    ------
    CannotShareError
        If another user has bound the address, or the server does not answer.
    """
    patience = Patience(PATIENCE_S)
    while not patience.is_over:
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
            # Another process was faster, and will listen in a moment.
            patience.pause(0.002)
            continue
        listener.listen(4096)
        # Connect before the server starts, because it ends with its last connection.
        connection.connect(address)
        return listener, connection
    raise CannotShareError(f"the import server of this node did not answer within {PATIENCE_S:g} s")


def check_peer(connection: socket.socket) -> socket.socket:
    """Return the connection if the process at its other end belongs to this user.

    Raises
    ------
    CannotShareError
        If it belongs to another user.
    """
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        connection.close()
        raise CannotShareError(f"a process of user {uid} has bound the address of this node's import server")
    return connection


def _memory_policy() -> str:
    """Return the NUMA policy of this process's memory, which numactl or srun may have set."""
    try:
        with open("/proc/self/numa_maps") as maps:
            return maps.readline().split()[1]
    except (OSError, IndexError):
        return ""
