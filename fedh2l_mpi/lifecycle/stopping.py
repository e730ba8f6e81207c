"""Collect requests to stop or to make a checkpoint, so that all ranks answer them after the same round.

A signal to any rank, the run's time limit, or a file in the run directory makes a request. The largest request of all
ranks counts. A run stops only between two rounds.
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

# The time limit leaves room for this many rounds, because rounds differ in length (evaluation, a busy machine) and
# ranks agree one round after the request.
ROUNDS_TO_SPARE = 2.5


class Stopping:
    """One rank's view of the requests.

    Parameters
    ----------
    signals : Signals or None
        Signals that make requests; None: signals have their default effect.
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
        self._wakes = signals.wakes if signals is not None else 0
        self._agreement = _Agreement(world, deadline_s) if world.comm is not None else None
        self._checkpoint_is_due = False
        # Modification time of the request that the checkpoint in progress answers.
        self._answered_ns: int | None = None
        # Modification time of an answered request that cannot be removed.
        self._remaining_ns: int | None = None

    def requested_before(self) -> StopRequest:
        """Return the largest request that signals made on any rank before the first round. **Collective.**"""
        return max(self._world.collect(self._signals.asked if self._signals is not None else StopRequest.NOTHING))

    def agree(self, idle: Callable[[], None] | None = None) -> StopRequest:
        """Return the request that all ranks answer after the round that has just ended. **Collective.**

        If there are several ranks, this is the largest request of the round before. Its message has had a whole round
        to arrive, so this hardly ever waits.

        Parameters
        ----------
        idle : callable
            Background work, called while this rank waits.
        """
        requested = self._requested()
        return requested if self._agreement is None else StopRequest(self._agreement.exchange(int(requested), idle))

    def close(self, idle: Callable[[], None] | None = None) -> None:
        """Receive the last agreement, after the last round. **Collective.**"""
        if self._agreement is not None:
            self._agreement.finish(idle)

    def begin_answer(self) -> None:
        """Note that the states are copied now, so that a later request in the run directory gets another checkpoint."""
        if self._world.rank == 0:
            self._answered_ns = _touched_ns(self._directory.checkpoint_request)

    def finish_answer(self) -> None:
        """Remove the request of a checkpoint that has been made, unless it was made again in the meantime."""
        self._checkpoint_is_due = False
        touched_ns = _touched_ns(self._directory.checkpoint_request)
        if touched_ns not in (None, self._remaining_ns) and touched_ns == self._answered_ns:
            self._remaining_ns = None if _remove(self._directory.checkpoint_request) else touched_ns

    def remove_requests(self) -> None:
        """Remove all requests in the run directory after the run has ended, so that they do not stop the next job."""
        if self._world.rank == 0:
            _remove(self._directory.checkpoint_request)
            _remove(self._directory.stop_request)

    def _requested(self) -> StopRequest:
        now = time.monotonic()
        wakes = self._signals.wakes if self._signals is not None else 0
        # The length of a round in which the job was suspended says nothing about later rounds; it would end the run
        # long before its limit.
        if wakes == self._wakes:
            self._longest_s = max(self._longest_s, now - self._round_began)
        self._wakes = wakes
        self._round_began = now
        requested = StopRequest.NOTHING
        if self._signals is not None:
            requested = self._signals.asked
            if self._world.launched and self._signals.parent.launcher_is_gone:
                requested = max(requested, StopRequest.LAUNCHER_GONE)
        if self._world.rank == 0:
            # Only rank 0 looks at the files, because every look costs the file system's server a call.
            if self._limit_s is not None and now - self._begin + ROUNDS_TO_SPARE * self._longest_s > self._limit_s:
                requested = max(requested, StopRequest.MAX_WALL)
            requested_ns = _touched_ns(self._directory.checkpoint_request)
            if not self._checkpoint_is_due and requested_ns not in (None, self._remaining_ns):
                self._checkpoint_is_due = True
                requested = max(requested, StopRequest.CHECKPOINT)
            if _touched_ns(self._directory.stop_request) is not None:
                requested = StopRequest.FILE_STOP
        return requested


def _touched_ns(path: Path) -> int | None:
    """Return the modification time of a file [ns since 1970]; None if it is missing or cannot be seen now.

    An error is ignored, because a file server that does not answer for a moment (ESTALE, EIO) must not end the job.
    Rank 0 looks again after the next round.
    """
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _remove(request: Path) -> bool:
    """Remove a request, and return True if it is gone.

    A request that cannot be removed, such as a directory, only causes a warning, because it must not end the job.
    """
    try:
        request.unlink(missing_ok=True)
    except OSError as error:
        log.warning(
            f"{request}: the request cannot be removed: {error.strerror}. "
            "Fix: remove it; otherwise the next job answers it again."
        )
        return False
    return True


class _Agreement:
    """Maximum over all ranks. It is begun at the end of a round and received at the end of the next."""

    # Wait longer than for a message, because a rank that misses a message can name the late rank; this cannot.
    PATIENCE_S = 2.0

    def __init__(self, world: World, deadline_s: float) -> None:
        self._world, self._deadline_s = world, deadline_s
        self._ours, self._theirs = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._request: MPI.Request | None = None

    def exchange(self, value: int, idle: Callable[[], None] | None) -> int:
        """Begin a maximum with `value`, and return the one before; 0 the first time."""
        before = self.finish(idle)
        self._ours[0] = value
        self._request = self._world.begin_max(self._ours, self._theirs)
        return before

    def finish(self, idle: Callable[[], None] | None = None) -> int:
        """Return the maximum that was begun; 0 if there is none."""
        if self._request is None:
            return 0
        what = "agreement on requests to stop"
        self._world.wait([self._request], [-1], self._deadline_s + self.PATIENCE_S, what, idle)
        self._request = None
        return int(self._theirs[0])
