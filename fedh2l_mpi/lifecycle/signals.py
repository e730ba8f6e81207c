"""Requests to a run, and the signals that make them. They are noted from the start and answered between rounds."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from enum import IntEnum
from types import FrameType

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
    # The largest, because the user who asks for these wants the job to end for good, and not to be requeued.
    INTERRUPT = 7
    FILE_STOP = 8

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
            StopRequest.INTERRUPT: "interrupted",
            StopRequest.FILE_STOP: "file STOP",
        }.get(self, self.name)


REQUESTS = {
    signal.SIGHUP: StopRequest.HUP,
    signal.SIGTERM: StopRequest.TERM,
    signal.SIGUSR1: StopRequest.USR1,
}
# A launcher and the terminal may both send the signal of one Ctrl-C, so another within this time is the same one.
SAME_INTERRUPT_S = 0.5
INTERRUPTED = "fedh2l_mpi: stopping after this round, with a checkpoint; Ctrl-C again ends the run at once\n"


class Signals:
    """Receiver of the signals USR1, TERM and HUP. Before it is built, these signals end the process.

    HUP comes when a terminal or its connection is closed. A process that ignores it, by `nohup`, still ignores it.
    INT, of Ctrl-C, is a request only during the rounds (`interruptible`), because before them there is nothing to keep.

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

    @contextlib.contextmanager
    def interruptible(self, speaks: bool) -> Iterator[None]:
        """Take the first Ctrl-C as a request while the context lasts; the second raises `KeyboardInterrupt`.

        Parameters
        ----------
        speaks : bool
            Whether this process answers the first Ctrl-C on standard error.
        """
        before = signal.getsignal(signal.SIGINT)
        if before == signal.SIG_IGN:
            # A shell starts a program in the background so, and Ctrl-C is meant for another one.
            yield
            return
        first_s: float | None = None

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal first_s
            now_s = time.monotonic()
            if first_s is None:
                first_s = now_s
                self.asked = max(self.asked, StopRequest.INTERRUPT)
                if speaks:
                    # Not by print or a log, because the signal may have come while they hold their lock.
                    with contextlib.suppress(OSError):
                        os.write(2, f"\n{INTERRUPTED}".encode())
            elif now_s - first_s > SAME_INTERRUPT_S:
                signal.default_int_handler(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

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
