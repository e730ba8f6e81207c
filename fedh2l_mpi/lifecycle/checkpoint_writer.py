"""Write checkpoints in the background. A checkpoint contains everything that a resumed run needs.

A checkpoint is a folder, such as `round-00000010/` for the state after 10 rounds. It has one file for each rank,
`rank-0000.pt`, and `manifest.json` with the size and the SHA-256 of each file. It is written under a temporary name,
forced to the disk and then renamed, so it is complete or absent. Loading checks every digest, because PyTorch reads
97 of 100 files with a flipped bit without an error.

Each rank copies the state of its participants and continues to train. Its writer thread writes the copy, and the rank
then sends a report to rank 0. Rank 0 commits at its next poll. Training waits only if the writer thread is a whole
checkpoint behind.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.lifecycle.checkpoint_files import REPORT, commit, rank_file_name, unfinished_folder, write_states
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.clocks import Patience
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import TAGS, World

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("fedh2l_mpi")

PAUSE_S = 2e-3
# A run that fails waits this long for a commit. A commit needs less, unless the file server does not answer.
COMMIT_S = 5.0
T = TypeVar("T")


class Stateful(Protocol):
    """Participant whose state a checkpoint can contain."""

    index: int

    def state(self) -> dict[str, Any]:
        """Return a copy of its state in host memory."""


@dataclass
class _Pending:
    """Checkpoint that rank 0 has not committed yet, or that another rank has not reported yet."""

    begin: float
    own: Future[NDArray[Any]]
    reports: list[NDArray[Any]] = field(default_factory=list)
    requests: list["MPI.Request"] = field(default_factory=list)
    commit: Future[None] | None = None


class CheckpointWriter:
    """Writer of one rank's share of the checkpoints. Building it is **collective**.

    Parameters
    ----------
    facts : mapping
        Facts about the run for the manifest: numbers, texts and lists.
    keep : int
        Number of checkpoints to keep.
    deadline_s : float
        Longest wait for another rank's file [s].
    worked : callable, optional
        The writer thread calls it after each piece of work, with the name of the work, the checkpoint's number of
        rounds, and the `time.perf_counter` of begin and end [s].
    """

    def __init__(
        self,
        world: World,
        hosting: Hosting,
        directory: RunDirectory,
        facts: Mapping[str, Any],
        keep: int,
        deadline_s: float,
        worked: Callable[[str, int, float, float], None] | None = None,
    ) -> None:
        self._world, self._hosting, self._directory = world, hosting, directory
        self._facts, self._keep, self._deadline_s = facts, keep, deadline_s
        self._comm = world.duplicate()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._worked = worked
        self._pending: dict[int, _Pending] = {}
        # On rank 0, by number of rounds: the digest of the metrics file's rows, for pending checkpoints and the next.
        self._rows: dict[int, str] = {}
        self._sending: list[MPI.Request] = []
        self.newest = 0
        # Folders are named by the attempt, because a rank that outlives a killed job must not write into the next
        # job's files.
        self._attempt: str = world.from_first(lambda: f"{world.host}-{os.getpid()}")

    def note_rows(self, rounds: int, digest: str) -> None:
        """Note, on rank 0, that the metrics file contains `rounds` rounds. Only then is their checkpoint committed."""
        self._rows = {r: d for r, d in self._rows.items() if r in self._pending}
        self._rows[rounds] = digest

    def begin(self, rounds: int, participants: Sequence[Stateful], idle: Callable[[], None] = lambda: None) -> None:
        """Copy the states of this rank's participants after `rounds` rounds, and write the copy in the background.

        **Collective.** It waits if this rank has not written the previous checkpoint yet.

        Parameters
        ----------
        idle : callable
            Background work, called while this rank waits.

        Raises
        ------
        OSError
            If the previous checkpoint could not be written.
        """
        began = time.perf_counter()
        # Look at the pending checkpoints again after each call of `idle`, because it may commit and remove them.
        while not all(pending.own.done() for pending in self._pending.values()):
            idle()
            time.sleep(PAUSE_S)
        for pending in self._pending.values():
            pending.own.result()
        states = {participant.index: participant.state() for participant in participants}
        pause_ms = 1e3 * (time.perf_counter() - began)
        log.info(f"checkpoint after {rounds} rounds: paused {pause_ms:.1f} ms to copy", extra={"file_only": True})
        folder = unfinished_folder(self._directory.checkpoint(rounds), self._attempt)
        path = folder / rank_file_name(self._world.rank)
        own = self._in_background("write checkpoint", rounds, lambda: write_states(path, rounds, states))
        pending = self._pending[rounds] = _Pending(began, own)
        if self._comm is not None and self._world.rank == 0:
            for rank in range(1, self._world.size):
                pending.reports.append(np.zeros(1, REPORT))
                pending.requests.append(self._comm.Irecv(pending.reports[-1].view(np.uint8), rank, rounds % TAGS))

    def poll(self) -> bool:
        """Report and commit without waiting. Return True if a checkpoint was committed since the last call.

        Raises
        ------
        OSError
            If a file cannot be written.
        """
        has_committed = False
        for rounds, pending in list(self._pending.items()):
            if not pending.own.done():
                break
            own = pending.own.result()
            if self._world.rank != 0:
                self._report(rounds, own)
            elif pending.commit is not None:
                if pending.commit.done():
                    self._finish_commit(rounds)
                    has_committed = True
            elif rounds in self._rows and all(request.Get_status() for request in pending.requests):
                self._begin_commit(rounds, own)
        return has_committed

    def finish(self) -> None:
        """Wait until every checkpoint begun so far is committed (on rank 0) or reported. **Collective.**

        Raises
        ------
        OSError
            If a file cannot be written.
        LateRankError
            If a report does not arrive before the deadline.
        """
        while self._pending:
            rounds, pending = next(iter(self._pending.items()))
            pending.own.result()
            if self._world.rank == 0:
                others = list(range(1, self._world.size))
                what = f"file of the checkpoint after {rounds} rounds"
                self._world.wait(pending.requests, others, self._deadline_s, what)
                if pending.commit is not None:
                    pending.commit.result()
                elif rounds not in self._rows:
                    raise RuntimeError(
                        f"checkpoint after {rounds} rounds: its files were written, but its rows were never written."
                    )
            self.poll()
        self._world.wait(self._sending, [0] * len(self._sending), self._deadline_s, "report of a checkpoint")
        self._sending = []

    def abandon(self) -> None:
        """Stop writing after an error, but wait for a commit that has begun.

        A job that resumes the run looks for the newest checkpoint only once, so none must appear after that. It makes
        the later checkpoints again.
        """
        patience = Patience(COMMIT_S)
        while any(pending.commit and not pending.commit.done() for pending in self._pending.values()):
            if patience.is_over:
                break
            patience.pause(PAUSE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _in_background(self, what: str, rounds: int, work: Callable[[], T]) -> Future[T]:
        """Give the work to the writer thread."""
        worked = self._worked
        if worked is None:
            return self._thread.submit(work)

        def timed() -> T:
            begin = time.perf_counter()
            try:
                return work()
            finally:
                worked(what, rounds, begin, time.perf_counter())

        return self._thread.submit(timed)

    def _report(self, rounds: int, own: NDArray[Any]) -> None:
        """Send rank 0 the report of this rank's file."""
        if self._comm is not None:
            self._sending = [request for request in self._sending if not request.Test()]
            self._sending.append(self._comm.Isend(own.view(np.uint8), 0, rounds % TAGS))
        del self._pending[rounds]

    def _begin_commit(self, rounds: int, own: NDArray[Any]) -> None:
        pending = self._pending[rounds]
        self._world.wait(pending.requests, list(range(1, self._world.size)), self._deadline_s, "file of a checkpoint")
        pending.requests = []
        files = [
            {
                "name": rank_file_name(rank),
                "bytes": int(report["size"][0]),
                "sha256": bytes(report["sha256"][0]).hex(),
                "first": self._hosting.participants_of(rank).start,
                "participants": len(self._hosting.participants_of(rank)),
            }
            for rank, report in enumerate([own, *pending.reports])
        ]
        manifest = {"round": rounds, **self._facts, "rows_sha256": self._rows[rounds], "files": files}
        folder = unfinished_folder(self._directory.checkpoint(rounds), self._attempt)
        pending.commit = self._in_background(
            "commit checkpoint", rounds, lambda: commit(self._directory, folder, manifest, self._keep)
        )

    def _finish_commit(self, rounds: int) -> None:
        pending = self._pending.pop(rounds)
        if pending.commit is not None:
            pending.commit.result()
        self.newest = rounds
        seconds = time.perf_counter() - pending.begin
        log.info(f"checkpoint after {rounds} rounds: committed after {seconds:.2f} s", extra={"file_only": True})
