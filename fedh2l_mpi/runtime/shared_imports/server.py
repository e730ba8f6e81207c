"""The process that imports everything once on a node, and is forked into the ranks."""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable

from fedh2l_mpi.runtime.shared_imports import process_state, protocol, rendezvous
from fedh2l_mpi.runtime.shared_imports.parent import ParentProcess
from fedh2l_mpi.runtime.shared_imports.process_state import ProcessState

# What the ranks of a run would import one after the other. Not mpi4py.MPI: that joins the job, as one rank.
MODULES = (
    *("torch", "h5py", "mpi4py", "rich.console", "rich.progress", "rich.table", "networkx", "ctypes"),
    *("fedh2l_mpi.cli.main", "fedh2l_mpi.runtime.terminal", "fedh2l_mpi.lifecycle.start", "fedh2l_mpi.run_directory"),
    *(
        "fedh2l_mpi.simulation",
        "fedh2l_mpi.metrics.collector",
        "fedh2l_mpi.lifecycle.checkpoint_writer",
        "fedh2l_mpi.exchange",
    ),
    *("fedh2l_mpi.metrics.writer", "fedh2l_mpi.analysis.report", "fedh2l_mpi.analysis.run"),
)
# Libraries make their threads at once if they are to have several; a process with threads cannot be forked safely.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# A proxy sends all that it has to say at once.
HANDOVER_S = 10.0
# Processes that a launcher starts together are not farther apart.
LATE_MS = 5000
PR_SET_PDEATHSIG = 1
# As `ps` and `top` show it.
NAME = "fedh2l-imports"


def serve(listener: socket.socket, proxies: int, is_run: Callable[[], bool]) -> ParentProcess:
    """Import, then fork a rank for every proxy that asks, tell it how the rank ended, and end with the last.

    Returns in the ranks only.

    Parameters
    ----------
    proxies : int
        How many are to be expected.
    is_run : callable
        Whether the command line asks for a run.
    """
    name = process_state.rename_process(NAME)
    # A terminal's Ctrl-C means the proxies, and reaches the ranks through them.
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
        # Such as of a library that torch misses. Ranks import for themselves then, and meet it where it can be told.
        refused = f"importing fails with {type(error).__name__}: {error}"
    os.dup2(null, 2)
    server = _Server(listener, proxies, refused)
    try:
        rank = server.run()
    except BaseException:
        server.report_failure(f"the process that imports for this node failed:\n{traceback.format_exc().rstrip()}")
        os._exit(1)
    if rank is None:
        os._exit(0)
    # Now: closed later, by whoever collects garbage, they would close files of the rank's.
    listener.close()
    server.close()
    return _become(rank, name)


class _Rank:
    """A proxy and its rank.

    Attributes
    ----------
    connection : socket or None
        To the proxy; None when that has gone.
    pid : int
        Of the rank; 0 when that has ended.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection: socket.socket | None = connection
        self.pid = pid

    def say(self, kind: bytes, number: int) -> None:
        """Tell the proxy, unless it has gone."""
        if self.connection is not None:
            protocol.send(self.connection, kind, number)


class _Server:
    """Its ranks, and what it does for them."""

    def __init__(self, listener: socket.socket, proxies: int, refused: str) -> None:
        self._listener, self._proxies, self._refused = listener, proxies, refused
        self._ranks: list[_Rank] = []
        self._devices: ProcessState | None = None

    def run(self) -> tuple[ProcessState, list[int]] | None:
        """In a rank, what it is to become; None in the server, when the last rank has ended."""
        heard, told = socket.socketpair()
        told.setblocking(False)
        signal.signal(signal.SIGCHLD, _noted)
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(heard, select.POLLIN)
        served = 0
        # Whoever comes after the last rank has ended founds a server anew; who is refused must not.
        while self._ranks or not served or (self._refused and served < self._proxies):
            ready = {number for number, _ in poll.poll(None if self._ranks or not served else LATE_MS)}
            if not ready:
                break
            if heard.fileno() in ready:
                heard.recv(4096)
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
        """Last words: the first proxy prints them."""
        for rank in self._ranks:
            if rank.connection is not None:
                protocol.send(rank.connection, protocol.FAULT, text)
                text = ""

    def _accept(self, poll: select.poll) -> tuple[ProcessState, list[int]] | None:
        """Fork a rank for the next proxy; what it is to become, in the rank."""
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
            # Signals wait until the child has a rank's answers to them.
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
        """Why a child of this process cannot be that rank, or an empty text; this process then has the rank's CPUs."""
        if self._devices is None:
            self._devices = facts["devices"]
        if facts["devices"] != self._devices:
            return f"this rank sees {facts['devices']}, and the one that was first here sees {self._devices}"
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, facts["cpus"])
        if sorted(os.sched_getaffinity(0)) != facts["cpus"]:
            return f"this rank has CPUs {facts['cpus']}, which the process that imports for the node may not use"
        return ""

    def _listen(self, rank: _Rank, connection: socket.socket, poll: select.poll) -> None:
        """Pass a proxy's signals on; if it has gone, its rank goes at once."""
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
                # The default of the others has no effect where no shell watches the group of processes.
                os.kill(rank.pid, signal.SIGSTOP if number in protocol.STOPS else number)

    def _reap(self) -> None:
        """Tell the proxies of ranks that have ended."""
        for rank in [rank for rank in self._ranks if rank.pid]:
            pid, status = os.waitpid(rank.pid, os.WNOHANG)
            if pid:
                rank.pid = 0
                rank.say(protocol.ENDED, status)


def _import_everything() -> str:
    """Import what ranks need; why this process must not be forked, or an empty text."""
    before = os.environ.copy()
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    gc.disable()
    files = set(os.listdir("/proc/self/fd"))
    for name in MODULES:
        # A rank says by itself what it misses.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in ONE_THREAD:
        os.environ.pop(name, None)
    os.environ.update(before)
    # Pages with objects stay shared as long as nobody looks through them for garbage.
    gc.collect()
    gc.freeze()
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        return f"importing makes {threads - 1} threads, and a process with threads cannot be forked safely"
    if len(os.listdir("/proc/self/fd")) > len(files):
        return "importing leaves files open, which ranks would share"
    return ""


def _become(rank: tuple[ProcessState, list[int]], name: str) -> ParentProcess:
    """Be the rank that a proxy has handed over."""
    facts, received = rank
    gc.enable()
    process_state.rename_process(name)
    process_state.restore(facts, received)
    return ParentProcess(facts["proxy"], facts["launcher"])


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _noted(number: int, frame: object) -> None:
    """The wake-up file has it."""
