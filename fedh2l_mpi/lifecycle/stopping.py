"""Who may ask a run to stop or to make a checkpoint, and how all ranks come to do it after the same round.

A signal to any rank, the run's own time limit, and files in the run directory set a flag; the largest flag of all
ranks counts. Nothing is interrupted: a run stops between two rounds.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi.config import RunConfig
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("fedh2l_mpi")

# Rounds differ in length (evaluation, a busy machine), and ranks agree a round after they were asked.
ROUNDS_TO_SPARE = 2.5


class Stopping:
    """One rank's view of what is asked for.

    Parameters
    ----------
    signals : Signals or None
        None: signals do what they do by default.
    deadline_s : float
        Longest wait for the other ranks [s].
    """

    def __init__(
        self, world: World, signals: Signals | None, config: RunConfig, directory: RunDirectory, deadline_s: float
    ) -> None:
        self._world, self._signals, self._directory = world, signals, directory
        self._limit_s, self._deadline_s = config.max_wall_s, deadline_s
        self._begin = signals.begin if signals is not None else time.monotonic()
        self._round_began, self._longest_s = time.monotonic(), 0.0
        self._agreement = _Agreement(world, deadline_s) if world.comm is not None else None
        self._checkpoint_is_due = False
        # When the request was last made that the checkpoint on its way answers.
        self._answered_ns: int | None = None
        # When the request was last made that is answered, and cannot be removed.
        self._stays_ns: int | None = None

    def asked_before(self) -> StopRequest:
        """What signals had asked for before the first round, at all ranks together. **Collective.**"""
        return max(self._world.collect(self._signals.asked if self._signals is not None else StopRequest.NOTHING))

    def agreed(self, idle: Callable[[], None] | None = None) -> StopRequest:
        """What all ranks do after the round that has just ended here. **Collective**, and hardly ever waits.

        With several ranks, this is what was asked for by the end of the round before: the answer to that has had a
        whole round to arrive.

        Parameters
        ----------
        idle : callable
            Called while there is nothing to do but wait.
        """
        asked = self._asked()
        return asked if self._agreement is None else StopRequest(self._agreement.exchange(int(asked), idle))

    def close(self, idle: Callable[[], None] | None = None) -> None:
        """Take in the answer that is still on its way; after the last round. **Collective.**"""
        if self._agreement is not None:
            self._agreement.finish(idle)

    def checkpoint_begins(self) -> None:
        """The states are copied now: whoever asks in the run directory from here on asks for another checkpoint."""
        if self._world.rank == 0:
            self._answered_ns = _touched_ns(self._directory.checkpoint_request)

    def checkpoint_was_made(self) -> None:
        """The request in the run directory is answered; one that was made again in the meantime stays."""
        self._checkpoint_is_due = False
        touched_ns = _touched_ns(self._directory.checkpoint_request)
        if touched_ns not in (None, self._stays_ns) and touched_ns == self._answered_ns:
            self._stays_ns = None if _removed(self._directory.checkpoint_request) else touched_ns

    def run_has_ended(self) -> None:
        """What was asked for in the run directory is done; the next job is not to be stopped by it."""
        if self._world.rank == 0:
            _removed(self._directory.checkpoint_request)
            _removed(self._directory.stop_request)

    def _asked(self) -> StopRequest:
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._round_began)
        self._round_began = now
        asked = StopRequest.NOTHING
        if self._signals is not None:
            asked = self._signals.asked
            if self._world.launched and self._signals.parent.launcher_is_gone:
                asked = max(asked, StopRequest.LAUNCHER_GONE)
        if self._world.rank == 0:
            # One rank looks: every look is a request to the file system's server.
            if self._limit_s is not None and now - self._begin + ROUNDS_TO_SPARE * self._longest_s > self._limit_s:
                asked = max(asked, StopRequest.MAX_WALL)
            requested_ns = _touched_ns(self._directory.checkpoint_request)
            if not self._checkpoint_is_due and requested_ns not in (None, self._stays_ns):
                self._checkpoint_is_due = True
                asked = max(asked, StopRequest.CHECKPOINT)
            if _touched_ns(self._directory.stop_request) is not None:
                asked = StopRequest.FILE_STOP
        return asked


def _touched_ns(path: Path) -> int | None:
    """When a file was last touched [ns since 1970]; None where it is not, or cannot be seen now.

    A file server that does not answer for a moment (ESTALE, EIO) must not end the job: after the next round, it is
    asked again.
    """
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _removed(request: Path) -> bool:
    """Whether a request is no longer there; one that cannot be removed, such as a directory, must not end the job."""
    try:
        request.unlink(missing_ok=True)
    except OSError as error:
        log.warning(f"{request} cannot be removed: {error.strerror}; remove it, or the next job answers it again")
        return False
    return True


class _Agreement:
    """The maximum over all ranks, begun at the end of a round and taken in at the end of the next."""

    # A rank that misses a message names the one that is late; here nobody can tell, so those speak first.
    PATIENCE_S = 2.0

    def __init__(self, world: World, deadline_s: float) -> None:
        self._world, self._deadline_s = world, deadline_s
        self._ours, self._theirs = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._request: MPI.Request | None = None

    def exchange(self, value: int, idle: Callable[[], None] | None) -> int:
        """Begin with `value`, and take in what was begun before; 0 the first time."""
        agreed = self.finish(idle)
        self._ours[0] = value
        self._request = self._world.begin_max(self._ours, self._theirs)
        return agreed

    def finish(self, idle: Callable[[], None] | None = None) -> int:
        """Take in what was begun; 0 if nothing was."""
        if self._request is None:
            return 0
        what = "word on whether to stop"
        self._world.wait([self._request], [-1], self._deadline_s + self.PATIENCE_S, what, idle)
        self._request = None
        return int(self._theirs[0])
