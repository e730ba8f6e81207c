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
    HUP = 4
    TERM = 5
    USR1 = 6
    # The largest, because the user who makes the file wants the job to end for good, and not to be requeued.
    FILE_STOP = 7

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


REQUESTS = {
    signal.SIGHUP: StopRequest.HUP,
    signal.SIGTERM: StopRequest.TERM,
    signal.SIGUSR1: StopRequest.USR1,
}


class Signals:
    """Receiver of the signals USR1, TERM and HUP. Before it is built, these signals end the process.

    HUP comes when a terminal or its connection is closed. A process that ignores it, by `nohup`, still ignores it.

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
        self._ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self.install()

    def install(self) -> None:
        """Install the handlers, again if a library has replaced one: UCX, of MPICH, prints its traffic after a HUP."""
        signal.signal(signal.SIGCONT, self._note_wake)
        for number in REQUESTS:
            signal.signal(number, self._note)
        if self._ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def ignore(self) -> None:
        """Ignore these signals from now on, when all is done.

        Python gives a handled signal its default effect as it exits, so a late one would kill a process that is done.
        """
        for number in REQUESTS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: object) -> None:
        self.asked = max(self.asked, REQUESTS[signal.Signals(number)])

    def _note_wake(self, number: int, frame: object) -> None:
        self.wakes += 1
