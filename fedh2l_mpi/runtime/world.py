"""The ranks of a run: communicator, hosting, handshake, waiting with a deadline, and how a job ends.

A single process without an MPI launcher never imports mpi4py; `World.comm` is None there.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from fedh2l_mpi.errors import LateRankError, UserError
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.processes import is_running

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

T = TypeVar("T")

# A round's messages have its number for a tag, of which MPI promises 2**15. Two rounds this far apart never meet.
TAGS = 2**14


class World:
    """The ranks of this run, seen from one of them. Building it is **collective**.

    Attributes
    ----------
    rank, size : int
        Of this process, and how many there are.
    comm : MPI.Intracomm or None
        A communicator of our own; None for a single process.
    launched : bool
        Whether an MPI launcher started this process.
    at : str
        What this rank is doing, for the message if it fails.
    """

    def __init__(self, comm: "MPI.Intracomm | None", launched: bool = False) -> None:
        self.comm = comm
        self.rank: int = comm.rank if comm is not None else 0
        self.size: int = comm.size if comm is not None else 1
        self.launched = launched
        self.host = socket.gethostname()
        self.at = "start-up"
        # Host and pid of every rank, to tell who has died when MPI reports a failure.
        self._processes = self.collect((self.host, os.getpid()))

    @property
    def ranks_here(self) -> list[int]:
        """The ranks on this host, this one among them, by its name: known without asking the others."""
        return [rank for rank, (host, _) in enumerate(self._processes) if host == self.host]

    def dead_ranks(self, patience_s: float) -> list[str]:
        """The ranks on this host whose process has ended, in words; those on other hosts cannot be seen.

        Parameters
        ----------
        patience_s : float
            How long to look until one is found [s]: MPI may notice before the process is all gone.
        """
        here = [(rank, pid) for rank, (host, pid) in enumerate(self._processes) if host == self.host]
        until = time.monotonic() + patience_s
        while not (dead := [(rank, pid) for rank, pid in here if not is_running(pid)]) and time.monotonic() < until:
            time.sleep(0.02)
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

    # Start-up: these pickle, and are never called in a round.

    def together(self, action: Callable[[], T]) -> T:
        """What `action` returns on this rank, after all ranks have finished theirs. **Collective.**

        Raises
        ------
        UserError
            On every rank alike, with the lowest rank's text, if any rank's action raised one.
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
        """What `action` returned on rank 0, the only rank to call it; its UserError is everyone's. **Collective.**"""
        result = self.together(lambda: action() if self.rank == 0 else None)
        return result if self.comm is None else self.comm.bcast(result, root=0)  # type: ignore[return-value]

    def collect(self, item: T) -> list[T]:
        """Every rank's `item` in the order of ranks, on every rank. **Collective.**"""
        return [item] if self.comm is None else self.comm.allgather(item)

    def node_ranks(self) -> list[int]:
        """The ranks on this rank's node, itself among them, in ascending order. **Collective.**"""
        if self.comm is None:
            return [0]
        from mpi4py import MPI

        # Not by the environment: under mpirun, Slurm's node-local number is 0 for every rank.
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        ranks = node.allgather(self.rank)
        node.Free()
        return ranks

    def handshake(self, digests: Mapping[str, bytes]) -> None:
        """Stop unless every rank holds the same seed set, graph, config and code. **Collective.**

        Parameters
        ----------
        digests : mapping
            From what is compared to its SHA-256 on this rank.

        Raises
        ------
        RuntimeError
            Names a rank that holds something else, and what.
        """
        names = list(digests)
        for rank, theirs in enumerate(self.collect([digests[name] for name in names])):
            differing = [
                name for name, ours, other in zip(names, digests.values(), theirs, strict=True) if ours != other
            ]
            if differing:
                raise RuntimeError(
                    f"{self} and rank {rank} do not hold the same {' and '.join(differing)}: "
                    "check that both see the same files and the same installation"
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
        """Wait for all requests, sleeping between tests so that a busy core is left to others.

        Parameters
        ----------
        owners : sequence of int
            The rank at the other end of each request; -1 where it may be any.
        deadline_s : float
            Longest wait [s].
        what : str
            What is awaited, for the message.
        idle : callable
            Called between tests: work that need not be done at once.

        Returns
        -------
        list of int
            Size of each message received [bytes]; of no meaning for a send.

        Raises
        ------
        LateRankError
            Names the ranks whose requests are not done by then.
        """
        if not requests:
            return []
        pending, statuses = list(requests), []  # type: ignore[var-annotated]
        test_all = type(pending[0]).Testall
        begin, pause, tries = time.monotonic(), 50e-6, 0
        while not test_all(pending, statuses):
            tries += 1
            if tries <= 20:
                continue
            if idle is not None:
                idle()
            if time.monotonic() - begin > deadline_s:
                late = sorted(
                    {owner for request, owner in zip(pending, owners, strict=True) if not request.Get_status()}
                )
                if late:
                    names = ", ".join(f"rank {rank}" if rank >= 0 else "some rank" for rank in late)
                    raise LateRankError(f"no {what} from {names} within {deadline_s:g} s (exchange.deadline_s)")
            time.sleep(pause)
            pause = min(pause * 1.5, 2e-3)
        return [status.count for status in statuses]

    def begin_max(self, ours: "NDArray[np.int64]", theirs: "NDArray[np.int64]") -> "MPI.Request":
        """Begin to find the maximum of every rank's `ours`, which arrives in `theirs`. **Collective.**"""
        from mpi4py import MPI

        if self.comm is None:
            raise RuntimeError("a single process has nobody to agree with")
        return self.comm.Iallreduce(ours, theirs, op=MPI.MAX)

    def abort(self, code: int) -> None:
        """End every rank of the job at once with exit code `code`. Does not return."""
        for stream in (sys.stdout, sys.stderr):
            # Nobody reads it, the disk under it is full, it is closed, it is None: the job has to end all the same.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        if self.comm is not None:
            from mpi4py import MPI

            # The whole job, not only our duplicate of its communicator.
            MPI.COMM_WORLD.Abort(code)
        os._exit(code)


def connect(environ: Mapping[str, str] = os.environ) -> World:
    """The world of this process. **Collective** where an MPI launcher started several.

    Raises
    ------
    UserError
        If the launcher started several processes and MPI cannot be loaded, or sees one: they would run apart from
        each other.
    """
    launch = Launch.from_environment(environ)
    if launch.size == 1:
        return World(None, launch.launched)
    if launch.launcher == "sbatch":
        raise UserError(
            f"the job has {launch.size} tasks (SLURM_NTASKS) but this process was started without a launcher; "
            "start it with srun or mpirun"
        )
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        # mpi4py raises the latter, of many lines, where it finds no MPI library.
        raise UserError(
            f"{launch.launcher} started {launch.size} processes, but mpi4py or its MPI library cannot be loaded "
            f"({str(error).partition(chr(10))[0]}); pip install 'fedh2l_mpi[mpi]'"
        ) from None
    if MPI.COMM_WORLD.size != launch.size:
        vendor = MPI.get_vendor()[0]
        fix = (
            f"use srun --mpi={'pmi2' if vendor == 'MPICH' else 'pmix'}"
            if launch.launcher == "srun"
            else f"use the mpirun of {vendor}, which mpi4py is using here"
        )
        raise UserError(
            f"{launch.launcher} started {launch.size} processes, but MPI ({vendor}) sees {MPI.COMM_WORLD.size}: "
            f"they would run apart from each other; {fix}"
        )
    return World(MPI.COMM_WORLD.Dup(), launched=True)
