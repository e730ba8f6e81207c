"""What the world is told of a run while it lives and when it ends: status file, lock, a guardian for sudden ends."""

import contextlib
import os
import time

from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.lifecycle.status import Status
from fedh2l_mpi.lifecycle.watchdog import Watchdog
from fedh2l_mpi.runtime.world import World

# A file a second is nothing to any file system.
STATUS_S = 1.0


class StatusReporter:
    """One rank's part of it.

    Parameters
    ----------
    rounds : int
        How many there are to be.
    """

    def __init__(self, world: World, claim: RunReservation, rounds: int) -> None:
        self._world, self._claim, self._rounds = world, claim, rounds
        self._path = claim.directory.status
        self._guardian: Watchdog | None = None
        self._job = os.environ.get("SLURM_JOB_ID", "")
        self._told_at, self._done, self.checkpoint = 0.0, 0, 0
        self._has_told_end = False

    def begin(self, done: int) -> None:
        """The rounds begin, after `done` finished ones.

        Raises
        ------
        OSError
            If the status file cannot be written.
        """
        self._done = self.checkpoint = done
        if self._world.rank == 0:
            # First: from the moment that the file says `running`, somebody takes that back if we cannot.
            self._guardian = Watchdog(self._path, str(self._world), self._claim.directory.lock)
            status.write(self._path, self._status("running"))

    def progress(self, done: int) -> None:
        """So many rounds are in the metrics file now; if that cannot be told now, then later: nothing depends on it."""
        self._done = done
        now = time.monotonic()
        if self._world.rank == 0 and now - self._told_at > STATUS_S:
            said = status.read(self._path)
            # Another rank may have said that it has failed; we shall be ended in a moment.
            if said is not None and said.state == "running":
                # A file server that does not answer for a moment (ESTALE, EIO) must not end the job.
                with contextlib.suppress(OSError):
                    status.write(self._path, self._status("running"), forced=False)
            self._told_at = now

    def end(self, state: str, reason: str = "") -> None:
        """The run has ended in order; its files are closed.

        Raises
        ------
        OSError
            If the status file cannot be written.
        """
        if self._world.rank == 0:
            status.write(self._path, self._status(state, reason))
            self._has_told_end = True
            self.leave()

    def fail(self, error: BaseException) -> None:
        """This rank ends the run by an error; its files are not closed yet, so `leave` has to follow."""
        state, reason = "failed", f"{self._world}, {self._world.at}: {type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            state, reason = "stopped", "interrupted"
        # Nobody is helped by a second error in place of the first.
        with contextlib.suppress(OSError):
            said = status.read(self._path)
            if self._world.rank == 0 and said is not None and said.state == "running":
                status.write(self._path, self._status(state, reason))
            else:
                status.end(self._path, state, reason, str(self._world))
            self._has_told_end = True

    def leave(self) -> None:
        """Nothing is written any more: let others have the run."""
        if not self._has_told_end:
            # The guardian does both when this process has ended.
            return
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None
        self._claim.release()

    def _status(self, state: str, reason: str = "") -> Status:
        who = str(self._world) + (f", job {self._job}" if self._job else "")
        return Status(state, self._done, self._rounds, reason, self.checkpoint, who)
