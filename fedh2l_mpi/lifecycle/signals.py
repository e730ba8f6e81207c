"""Requests to a run, and the signals that make them. They are noted from the start and answered between rounds."""

import signal
import time
from enum import IntEnum

from fedh2l_mpi.runtime.shared_imports import ParentProcess


class StopRequest(IntEnum):
    """Request to a run. If there are several, the largest one counts."""

    NOTHING = 0
    CHECKPOINT = 1
    LAUNCHER_GONE = 2
    MAX_WALL = 3
    TERM = 4
    USR1 = 5
    # The largest, because the user who makes the file wants the job to end for good, and not to be requeued.
    FILE_STOP = 6

    @property
    def stops(self) -> bool:
        """True if the request ends the run."""
        return self > StopRequest.CHECKPOINT

    @property
    def reason(self) -> str:
        """Text for the status file."""
        return {
            StopRequest.LAUNCHER_GONE: "launcher gone",
            StopRequest.MAX_WALL: "max_wall",
            StopRequest.FILE_STOP: "file STOP",
        }.get(self, self.name)


class Signals:
    """Receiver of the signals USR1 and TERM. Before it is built, these signals end the process.

    Parameters
    ----------
    parent : ParentProcess or None
        The process that started this one; None: its parent.

    Attributes
    ----------
    begin : float
        The `time.monotonic` of the start [s].
    asked : StopRequest
        The largest request so far.
    wakes : int
        Number of times that this process was woken up, for example after Slurm had suspended its job.
    """

    def __init__(self, parent: ParentProcess | None = None) -> None:
        self.begin = time.monotonic()
        self.asked = StopRequest.NOTHING
        self.parent = parent or ParentProcess()
        self.wakes = 0
        signal.signal(signal.SIGCONT, self._note_wake)
        signal.signal(signal.SIGUSR1, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = max(self.asked, StopRequest.USR1 if number == signal.SIGUSR1 else StopRequest.TERM)

    def _note_wake(self, number: int, frame: object) -> None:
        self.wakes += 1
