"""Report a run's progress and end in its status file, even if rank 0 is killed."""

import contextlib
import os
import time

from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.lifecycle.status import Status
from fedh2l_mpi.lifecycle.watchdog import Watchdog
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

# One file a second is no load for any file system.
STATUS_S = 1.0


class StatusReporter:
    """One rank's part in the reports. Rank 0 writes them, or any rank that fails.

    Parameters
    ----------
    rounds : int
        Rounds of the whole run.

    Attributes
    ----------
    checkpoint : int
        Finished rounds in the newest checkpoint.
    """

    def __init__(self, world: World, directory: RunDirectory, rounds: int) -> None:
        self._world, self._directory, self._rounds = world, directory, rounds
        self._path = directory.status
        self._watchdog: Watchdog | None = None
        self._job = os.environ.get("SLURM_JOB_ID", "")
        self._written_at, self._done, self.checkpoint = 0.0, 0, 0
        self._has_reported_end = False

    def begin(self, done: int) -> None:
        """Report that the rounds begin, after `done` finished ones.

        Raises
        ------
        OSError
            If the status file cannot be written.
        """
        self._done = self.checkpoint = done
        if self._world.rank == 0:
            # Start the watchdog first; otherwise the status could stay `running` if this process is killed.
            self._watchdog = Watchdog(self._path, str(self._world), self._directory.lock)
            status.write(self._path, self._status("running"))

    def progress(self, done: int) -> None:
        """Report that `done` rounds are in the metrics file, at most once a second.

        A report that fails is made again later, because nothing depends on it.
        """
        self._done = done
        now = time.monotonic()
        if self._world.rank == 0 and now - self._written_at > STATUS_S:
            written = status.read(self._path)
            # Another rank may have reported its failure; the job ends in a moment.
            if written is not None and written.state == "running":
                # A file server that fails for a moment (ESTALE, EIO) must not end the job.
                with contextlib.suppress(OSError):
                    status.write(self._path, self._status("running"), forced=False)
            self._written_at = now

    def end(self, state: str, reason: str = "") -> None:
        """Report that the run has ended in order; its files are closed.

        Raises
        ------
        OSError
            If the status file cannot be written.
        """
        if self._world.rank == 0:
            status.write(self._path, self._status(state, reason))
            self._has_reported_end = True
            self.leave()

    def fail(self, error: BaseException) -> None:
        """Report that this rank ends the run by an error. Its files are not closed yet, so `leave` has to follow."""
        state, reason = "failed", f"{self._world}, {self._world.at}: {type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            state, reason = "stopped", "interrupted"
        # Ignore a failure to write the status: it would hide the original error.
        with contextlib.suppress(OSError):
            written = status.read(self._path)
            if self._world.rank == 0 and written is not None and written.state == "running":
                status.write(self._path, self._status(state, reason))
            else:
                status.end(self._path, state, reason, str(self._world))
            self._has_reported_end = True

    def leave(self) -> None:
        """Dismiss the watchdog, unless the end could not be reported: then the watchdog does that."""
        if self._has_reported_end and self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    def _status(self, state: str, reason: str = "") -> Status:
        who = str(self._world) + (f", job {self._job}" if self._job else "")
        return Status(state, self._done, self._rounds, reason, self.checkpoint, who)
