"""The ranks of a run: connect them, compare them, wait with a deadline, and end the job.

A single process without an MPI launcher never imports mpi4py, and its `World.comm` is None.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fedh2l_mpi.errors import LateRankError, UserError
from fedh2l_mpi.runtime import libraries, shared_memory
from fedh2l_mpi.runtime.clocks import Patience, Timer
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.processes import is_running

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

T = TypeVar("T")

# Longest wait at the end for another rank, until the config says how long [s].
DEADLINE_S = 300.0
# The end of a job that is aborted takes a moment.
GRACE_S = 10.0
# Time that a launcher gets to read what this rank printed.
READING_S = 0.1
# Between two looks of a rank for what another rank of its node reads.
PROBING_S = 0.005

# The tag of a message is its round number modulo TAGS. MPI guarantees 2**15 tags, and two rounds that are so far apart
# are never in progress together.
TAGS = 2**14


class World:
    """The ranks of this run, seen from one of them. The constructor is **collective**.

    Attributes
    ----------
    rank, size : int
        Number of this process, and number of processes.
    comm : MPI.Intracomm or None
        Communicator of this run alone; None for a single process.
    launched : bool
        True if an MPI launcher started this process.
    at : str
        What this rank is doing, for the message if it fails.
    deadline_s : float
        Longest wait for the other ranks at the end [s].
    """

    def __init__(self, comm: "MPI.Intracomm | None", launched: bool = False) -> None:
        self.comm = comm
        self.rank: int = comm.rank if comm is not None else 0
        self.size: int = comm.size if comm is not None else 1
        self.launched = launched
        self.host = socket.gethostname()
        self.at, self.deadline_s = "start-up", DEADLINE_S
        self._duplicates: list[MPI.Intracomm] = []
        # Host and pid of every rank, to find the dead ranks if MPI reports a failure.
        self._processes = self.collect((self.host, os.getpid()))

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Keep `at` up to date while the context lasts; it stays if an error leaves the context, for the message."""
        before, self.at = self.at, what
        yield
        self.at = before

    def duplicate(self) -> "MPI.Intracomm | None":
        """Return a communicator of the same ranks for one purpose; None for a single process. **Collective.**"""
        if self.comm is None:
            return None
        self._duplicates.append(self.comm.Dup())
        return self._duplicates[-1]

    def close(self) -> None:
        """Free this world's communicators; MPI itself stays initialised. **Collective.**"""
        if self.comm is not None:
            for duplicate in self._duplicates:
                duplicate.Free()
            self._duplicates.clear()
            self.comm.Free()

    @property
    def ranks_here(self) -> list[int]:
        """Ranks on this host, including this one. They are known without communication."""
        return [rank for rank, (host, _) in enumerate(self._processes) if host == self.host]

    def dead_ranks(self, patience_s: float) -> list[str]:
        """Describe the ranks on this host whose process has ended. Ranks on other hosts are not visible.

        Parameters
        ----------
        patience_s : float
            Longest time to look for one [s]. MPI may notice a death before the process has disappeared.
        """
        here = [(rank, pid) for rank, (host, pid) in enumerate(self._processes) if host == self.host]
        patience = Patience(patience_s)
        while not (dead := [(rank, pid) for rank, pid in here if not is_running(pid)]) and not patience.is_over:
            patience.pause(0.02)
        return [f"rank {rank} (host {self.host}, pid {pid})" for rank, pid in dead]

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} (host {self.host}, pid {os.getpid()})"

    @property
    def mpi_library(self) -> str:
        """Name and version of the MPI library; `none` for a single process."""
        if self.comm is None:
            return "none"
        from mpi4py import MPI

        name, version = MPI.get_vendor()
        return f"{name} {'.'.join(map(str, version))}"

    # Start-up: these functions pickle, so they are never called in a round.

    def together(self, action: Callable[[], T]) -> T:
        """Call `action` on every rank, wait until all have finished, and return its result. **Collective.**

        Raises
        ------
        UserError
            On every rank alike, if the action raised one on any rank. The text is that of the lowest such rank.
        """
        result, text = None, None
        try:
            result = action()
        except UserError as error:
            text = str(error)
        texts = [text] if self.comm is None else self.comm.allgather(text)
        for text in texts:
            if text is not None:
                raise UserError(text, agreed=True)
        return result  # type: ignore[return-value]

    def from_first(self, action: Callable[[], T]) -> T:
        """Call `action` on rank 0 only, and return its result on every rank. **Collective.**

        Raises
        ------
        UserError
            On every rank alike, if the action raised one.
        """
        result = self.together(lambda: action() if self.rank == 0 else None)
        return result if self.comm is None else self.comm.bcast(result, root=0)  # type: ignore[return-value]

    def collect(self, item: T) -> list[T]:
        """Return every rank's `item` in the order of ranks, on every rank. **Collective.**"""
        return [item] if self.comm is None else self.comm.allgather(item)

    def node_ranks(self) -> list[int]:
        """Return the ranks on this rank's node, including itself, in ascending order. **Collective.**"""
        if self.comm is None:
            return [0]
        from mpi4py import MPI

        # Ask MPI, not the environment: under mpirun, SLURM_LOCALID is 0 on every rank.
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        ranks = node.allgather(self.rank)
        node.Free()
        return ranks

    def read_once_per_node(
        self, read: "Callable[[NDArray[np.int64]], NDArray[Any]]", rows_N: "NDArray[np.int64]"
    ) -> "NDArray[Any]":
        """Return `read(rows_N)`, for which one rank of a node reads the rows of all its ranks. **Collective.**

        Parameters
        ----------
        read : callable
            Reads rows, given in ascending order without repetition.
        rows_N : int64 (N,)
            This rank's rows, in such an order.

        Raises
        ------
        UserError
            On every rank of the node, if `read` raised one.
        """
        if self.comm is None:
            return read(rows_N)
        from mpi4py import MPI

        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        wanted = node.gather(rows_N)
        if wanted is None:
            # A blocking call would take its core from the rank that reads, if there are more ranks than cores.
            while not node.iprobe(source=0):
                time.sleep(PROBING_S)
            found: NDArray[Any] | str = node.recv(source=0)
        else:
            found = _read_for_all(read, wanted, node)
        node.Free()
        if isinstance(found, str):
            raise UserError(found)
        return found

    def handshake(self, digests: Mapping[str, bytes]) -> None:
        """Raise unless every rank has the same seed set, graph, config and code. **Collective.**

        Parameters
        ----------
        digests : mapping
            From the name of each compared item to its SHA-256 on this rank.

        Raises
        ------
        RuntimeError
            Names the first rank that differs, and the items that differ.
        """
        names = list(digests)
        for rank, theirs in enumerate(self.collect([digests[name] for name in names])):
            differing = [
                name for name, ours, other in zip(names, digests.values(), theirs, strict=True) if ours != other
            ]
            if differing:
                raise RuntimeError(
                    f"{self} and rank {rank} have a different {' and '.join(differing)}. "
                    "Check that both see the same files and the same installation."
                )

    # The round path: buffers only.

    def wait(
        self,
        requests: Sequence["MPI.Request"],
        owners: Sequence[int],
        deadline_s: float,
        what: str,
        idle: Callable[[], None] | None = None,
    ) -> list[int]:
        """Wait for all requests. Sleep between tests, so that other processes can use the core.

        Parameters
        ----------
        owners : sequence of int
            The rank at the other end of each request; -1 if it may be any rank.
        deadline_s : float
            Longest wait [s]. Time in which this process is stopped does not count.
        what : str
            Name of the awaited messages, for the error.
        idle : callable
            Background work, called between tests.

        Returns
        -------
        list of int
            Size of each received message [bytes]; undefined for a send.

        Raises
        ------
        LateRankError
            Names the ranks whose requests are not done at the deadline.
        """
        if not requests:
            return []
        pending, statuses = list(requests), []  # type: ignore[var-annotated]
        test_all = type(pending[0]).Testall
        patience, pause, tries = Patience(deadline_s), 50e-6, 0
        while not test_all(pending, statuses):
            tries += 1
            if tries <= 20:
                continue
            if idle is not None:
                idle()
            if patience.is_over:
                late = sorted(
                    {owner for request, owner in zip(pending, owners, strict=True) if not request.Get_status()}
                )
                if late:
                    names = ", ".join(f"rank {rank}" if rank >= 0 else "some rank" for rank in late)
                    raise LateRankError(f"no {what} from {names} within {deadline_s:g} s (exchange.deadline_s)")
            time.sleep(pause)
            pause = min(pause * 1.5, 2e-3)
        return [status.count for status in statuses]

    def begin_max(self, ours: "NDArray[Any]", theirs: "NDArray[Any]") -> "MPI.Request":
        """Start to compute the maximum of `ours` over all ranks, which arrives in `theirs`. **Collective.**"""
        from mpi4py import MPI

        if self.comm is None:
            raise RuntimeError("a single process has no other ranks to agree with")
        return self.comm.Iallreduce(ours, theirs, op=MPI.MAX)

    def leave(self, code: int) -> NoReturn:
        """Exit with `code` when all ranks are here, or after the deadline. **Collective.** It does not return.

        MPI's own end waits for every rank without a limit. A rank that was stopped or lost its link after all work was
        done would keep the job, and its nodes, although its status is `complete`.
        """
        if self.comm is None:
            sys.exit(code)
        try:
            # This also finds a late rank while the job can still be aborted, which ends the other ranks with `code`.
            self.wait([self.comm.Ibarrier()], [-1], self.deadline_s, "arrival at the end")
        except LateRankError as error:
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"fedh2l_mpi: warning: {self}: {error}. All work is done, so this rank ends the job with {code}.",
                    file=sys.stderr,
                )
            self.abort(code)
        self._flush()
        # Not a short time, because the launcher takes part, and Ctrl-Z may have stopped it.
        Timer(self.deadline_s, lambda: os._exit(code))
        _call_mpi("MPI_Finalize")
        sys.exit(code)

    def abort(self, code: int) -> NoReturn:
        """End every rank of the job at once with exit code `code`. It does not return."""
        self._flush()
        if self.comm is not None:
            from mpi4py import MPI

            Timer(GRACE_S, lambda: os._exit(code))
            # A launcher that ends a job may drop text that it has not read yet, such as the reason for this end.
            time.sleep(READING_S)
            # Abort the whole job instead of our duplicate of its communicator only.
            _call_mpi("MPI_Abort", MPI._handleof(MPI.COMM_WORLD), code)
            MPI.COMM_WORLD.Abort(code)
        os._exit(code)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            # The stream may be closed, missing or on a full disk. The job must end anyway, so ignore these errors.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()


def _read_for_all(
    read: "Callable[[NDArray[np.int64]], NDArray[Any]]", wanted: "list[NDArray[np.int64]]", node: "MPI.Comm"
) -> "NDArray[Any] | str":
    """Read all rows that a node's ranks want, send each of them its own, and return the first one's.

    If `read` raises a UserError, its text takes the place of the rows.
    """
    import numpy as np

    rows = np.unique(np.concatenate(wanted))
    try:
        values = read(rows)
    except UserError as error:
        for rank in range(1, node.size):
            node.send(str(error), rank)
        return str(error)
    for rank in range(1, node.size):
        node.send(values[np.searchsorted(rows, wanted[rank])], rank)
    return values[np.searchsorted(rows, wanted[0])]


def _call_mpi(name: str, *arguments: int) -> None:
    """Call a function of the MPI library while other threads of Python run; do nothing if the library hides it.

    mpi4py keeps Python's lock in the calls that end MPI, so a timer could not end a process that hangs there.
    """
    import ctypes

    from mpi4py import MPI

    # The library is loaded already, as a dependency of this file.
    function = getattr(ctypes.CDLL(MPI.__file__), name, None)
    if function is not None:
        # A handle is a pointer or an int, and is passed in one register either way.
        function(*(ctypes.c_void_p(argument) for argument in arguments))


def connect(environ: Mapping[str, str] = os.environ) -> World:
    """Return the world of this process. **Collective** if an MPI launcher started several processes.

    Raises
    ------
    UserError
        If the launcher started several processes, but MPI cannot be loaded or sees a different number of them. Each
        process would run alone then.
    """
    launch = Launch.from_environment(environ)
    if launch.size == 1:
        return World(None, launch.launched)
    if launch.launcher == "sbatch":
        raise UserError(
            f"the job has {launch.size} tasks (SLURM_NTASKS), but this process was started without a launcher. "
            "Start it with srun or mpirun."
        )
    if caution := shared_memory.caution(environ):
        with contextlib.suppress(OSError, ValueError):
            print(f"fedh2l_mpi: warning: {caution}", file=sys.stderr, flush=True)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        # mpi4py raises RuntimeError with many lines if it finds no MPI library, so print the first line only.
        raise UserError(
            f"{launch.launcher} started {launch.size} processes, but mpi4py or its MPI library cannot be loaded "
            f"({str(error).partition(chr(10))[0]}). Fix: {libraries.fix('mpi4py')}."
        ) from None
    if MPI.COMM_WORLD.size != launch.size:
        vendor = MPI.get_vendor()[0]
        fix = (
            f"Use srun --mpi={'pmi2' if vendor == 'MPICH' else 'pmix'}."
            if launch.launcher == "srun"
            else f"Use the mpirun of {vendor}, because mpi4py uses that library here."
        )
        raise UserError(
            f"{launch.launcher} started {launch.size} processes, but MPI ({vendor}) sees {MPI.COMM_WORLD.size}, "
            f"so each would run alone. {fix}"
        )
    return World(MPI.COMM_WORLD.Dup(), launched=True)
