"""Import server: the process that imports everything once on a node, and forks the ranks."""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
import weakref
from collections.abc import Callable

from fedh2l_mpi.runtime import processes
from fedh2l_mpi.runtime.shared_imports import process_state, protocol, rendezvous
from fedh2l_mpi.runtime.shared_imports.parent import ParentProcess
from fedh2l_mpi.runtime.shared_imports.process_state import ProcessState

# The modules that a rank of a run imports. mpi4py.MPI is left out because importing it joins the job as a rank.
MODULES = (
    *("torch", "h5py", "mpi4py", "rich.console", "rich.progress", "rich.table", "networkx", "ctypes"),
    *("fedh2l_mpi.cli.main", "fedh2l_mpi.api", "fedh2l_mpi.run_directory", "fedh2l_mpi.simulation"),
    *("fedh2l_mpi.lifecycle.start", "fedh2l_mpi.lifecycle.progress", "fedh2l_mpi.lifecycle.resume"),
    *("fedh2l_mpi.lifecycle.run_metadata", "fedh2l_mpi.runtime.logs", "fedh2l_mpi.runtime.terminal"),
    *("fedh2l_mpi.analysis.report", "fedh2l_mpi.analysis.run"),
)
# Functions that keep a result which is the same for every rank; called before the fork, all ranks share it. The first
# call of Config builds validators, and the digest is that of the package's files.
PREPARED = (("fedh2l_mpi.config", "Config"), ("fedh2l_mpi.lifecycle.provenance", "source_digest"))
# Libraries start several threads at import otherwise, and a process with threads cannot be forked safely.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Open MPI's PMIx maps the job's facts at an address that its server chose, and may crash where that address is taken. A
# rank with all libraries in memory has fewer free addresses than one that joins the job first, so it asks for messages
# instead, as PMIx advises. Source: github.com/openpmix/openpmix, 3019 and 3886.
WITHOUT_FIXED_ADDRESSES = {"PMIX_MCA_gds": "hash"}
# Longest wait for a proxy's state, which it sends at once.
HANDOVER_S = 10.0
# A launcher starts its processes within this time.
LATE_MS = 5000
PR_SET_PDEATHSIG = 1
# The name that `ps` and `top` show.
NAME = "fedh2l-imports"


def serve(listener: socket.socket, proxies: int, is_run: Callable[[], bool]) -> ParentProcess:
    """Import everything, fork a rank for every proxy, report each rank's exit status, and end with the last rank.

    It returns in the ranks only.

    Parameters
    ----------
    proxies : int
        Number of proxies to expect.
    is_run : callable
        Returns True if the command line asks for a run.
    """
    name = process_state.rename_process(NAME)
    # A new session, because Ctrl-C in a terminal is for the proxies, which forward it to the ranks.
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    process_state.close_files(keep=(0, 1, 2, null, listener.fileno()))
    for number in protocol.forwarded_signals():
        signal.signal(number, signal.SIG_IGN)
    try:
        refused = _import_everything() if is_run() else "there is no run"
    except Exception as error:
        # For example, torch misses a library. Then the ranks import by themselves, and report the error.
        refused = f"importing fails with {type(error).__name__}: {error}"
    os.dup2(null, 2)
    server = _Server(listener, proxies, refused)
    try:
        rank = server.run()
    except BaseException:
        server.report_failure(f"the import server of this node failed:\n{traceback.format_exc().rstrip()}")
        os._exit(1)
    if rank is None:
        os._exit(0)
    # Close the sockets now; closed later by the garbage collector, their numbers may belong to files of the rank.
    listener.close()
    server.close()
    return _become(rank, name)


class _Rank:
    """A proxy and its rank.

    Attributes
    ----------
    connection : socket or None
        Connection to the proxy; None after the proxy has ended.
    pid : int
        Process of the rank; 0 after it has ended.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection: socket.socket | None = connection
        self.pid = pid

    def say(self, kind: bytes, number: int) -> None:
        """Send a message to the proxy, unless it has ended."""
        if self.connection is not None:
            protocol.send(self.connection, kind, number)


class _Server:
    """The server's loop, and its ranks."""

    def __init__(self, listener: socket.socket, proxies: int, refused: str) -> None:
        self._listener, self._proxies, self._refused = listener, proxies, refused
        self._ranks: list[_Rank] = []
        self._device_files: list[str] | None = None

    def run(self) -> tuple[ProcessState, list[int]] | None:
        """Serve until the last rank has ended, and return None. In a forked rank, return the state to restore."""
        wakeup_in, wakeup_out = socket.socketpair()
        wakeup_out.setblocking(False)
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.set_wakeup_fd(wakeup_out.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(wakeup_in, select.POLLIN)
        served = 0
        # A proxy that comes after the last rank has ended starts a new server. If imports are refused, this server
        # answers all proxies instead, so that none of them starts another one.
        while self._ranks or not served or (self._refused and served < self._proxies):
            ready = {number for number, _ in poll.poll(None if self._ranks or not served else LATE_MS)}
            if not ready:
                break
            if wakeup_in.fileno() in ready:
                wakeup_in.recv(4096)
                self._reap()
            for rank in self._ranks:
                if rank.connection is not None and rank.connection.fileno() in ready:
                    self._listen(rank, rank.connection, poll)
            if self._listener.fileno() in ready:
                served += 1
                if (becomes := self._accept(poll)) is not None:
                    return becomes
            self._ranks = [rank for rank in self._ranks if rank.pid or rank.connection]
        return None

    def close(self) -> None:
        """Close all connections."""
        for rank in self._ranks:
            if rank.connection is not None:
                rank.connection.close()

    def report_failure(self, text: str) -> None:
        """Report this server's failure to all proxies. Only the first one gets the text, and prints it."""
        for rank in self._ranks:
            if rank.connection is not None:
                protocol.send(rank.connection, protocol.FAULT, text)
                text = ""

    def _accept(self, poll: select.poll) -> tuple[ProcessState, list[int]] | None:
        """Fork a rank for the next proxy. Return the state to restore in the rank, and None in the server."""
        connection, _ = self._listener.accept()
        connection.settimeout(HANDOVER_S)
        try:
            facts, received = process_state.receive(rendezvous.check_peer(connection))
        except (process_state.PeerGoneError, rendezvous.CannotShareError):
            connection.close()
            return None
        if why := self._refused or self._unlike(facts):
            protocol.send(connection, protocol.NOT_SHARED, why)
            connection.close()
        else:
            # Block signals until the child has restored the rank's signal handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _die_with(parent)
                signal.set_wakeup_fd(-1)
                return facts, received
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            connection.settimeout(None)
            rank = _Rank(connection, pid)
            self._ranks.append(rank)
            poll.register(connection, select.POLLIN)
            rank.say(protocol.STARTED, pid)
        for number in received:
            os.close(number)
        return None

    def _unlike(self, facts: ProcessState) -> str:
        """Return why a child of this process cannot be that rank, or an empty text.

        If it can, this process takes the rank's CPUs, which the child inherits.
        """
        if self._device_files is None:
            self._device_files = facts["device_files"]
        if facts["device_files"] != self._device_files:
            own, first = (", ".join(files) or "none" for files in (facts["device_files"], self._device_files))
            return f"this rank may open the GPUs {own}, but the first rank on this node may open {first}"
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, facts["cpus"])
        if sorted(os.sched_getaffinity(0)) != facts["cpus"]:
            return f"this rank has CPUs {facts['cpus']}, which the import server of this node may not use"
        return ""

    def _listen(self, rank: _Rank, connection: socket.socket, poll: select.poll) -> None:
        """Forward a proxy's signals to its rank. If the proxy has ended, kill the rank at once."""
        try:
            numbers = connection.recv(4096)
        except OSError:
            numbers = b""
        if not numbers:
            poll.unregister(connection)
            connection.close()
            rank.connection = None
            numbers = bytes([signal.SIGKILL])
        for number in numbers:
            if rank.pid:
                # Send SIGSTOP, because the other stop signals have no effect in a process group without a shell.
                os.kill(rank.pid, signal.SIGSTOP if number in protocol.STOPS else number)

    def _reap(self) -> None:
        """Report the exit status of ranks that have ended to their proxies."""
        for rank in [rank for rank in self._ranks if rank.pid]:
            pid, status = os.waitpid(rank.pid, os.WNOHANG)
            if pid:
                rank.pid = 0
                rank.say(protocol.ENDED, status)


def _import_everything() -> str:
    """Import what ranks need. Return why this process must not be forked, or an empty text."""
    before = os.environ.copy()
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    gc.disable()
    files = set(os.listdir("/proc/self/fd"))
    for name in MODULES:
        # Ignore missing modules, because the rank that needs one reports it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in ONE_THREAD:
        os.environ.pop(name, None)
    os.environ.update(before)
    for module, name in PREPARED:
        getattr(importlib.import_module(module), name)()
    # What this process has made is not for its children to clean up at their end. PyTorch's finalizers of its libraries
    # of operators would also copy 27 MiB of memory in every rank.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    # Garbage collection writes to all objects, so freeze them; otherwise their memory pages are no longer shared.
    gc.collect()
    gc.freeze()
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        return f"importing starts {threads - 1} threads, and a process with threads cannot be forked safely"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return "importing initialises CUDA, which a forked process cannot use"
    if len(os.listdir("/proc/self/fd")) > len(files):
        return "importing leaves files open, and the ranks would share them"
    return ""


def _become(rank: tuple[ProcessState, list[int]], name: str) -> ParentProcess:
    """Turn this process into the rank whose state a proxy sent."""
    facts, received = rank
    gc.enable()
    process_state.rename_process(name)
    process_state.restore(facts, received)
    for variable, value in WITHOUT_FIXED_ADDRESSES.items():
        os.environ.setdefault(variable, value)
    # The destructors of what the server has loaded would copy most of the pages that ranks share.
    processes.leave_out_destructors()
    return ParentProcess(facts["proxy"], facts["launcher"])


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _do_nothing(number: int, frame: object) -> None:
    """Do nothing: the signal is in the wake-up file."""
