"""What a run may be asked for, and the signals that ask: noted from the first moment on, looked at between rounds."""

import signal
import time
from enum import IntEnum

from fedh2l_mpi.runtime.shared_imports import ParentProcess


class StopRequest(IntEnum):
    """What is asked for; of two, the larger counts."""

    NOTHING = 0
    CHECKPOINT = 1
    LAUNCHER_GONE = 2
    MAX_WALL = 3
    TERM = 4
    USR1 = 5
    # Last: whoever wrote the file does not want the job to start again.
    FILE_STOP = 6

    @property
    def stops(self) -> bool:
        """Whether the run ends."""
        return self > StopRequest.CHECKPOINT

    @property
    def reason(self) -> str:
        """As the status file has it."""
        return {
            StopRequest.LAUNCHER_GONE: "launcher gone",
            StopRequest.MAX_WALL: "max_wall",
            StopRequest.FILE_STOP: "file STOP",
        }.get(self, self.name)


class Signals:
    """Notes USR1 and TERM from its making on; before, they would end the process.

    Parameters
    ----------
    parent : ParentProcess or None
        Who has started this process; None: its parent.
    """

    def __init__(self, parent: ParentProcess | None = None) -> None:
        self.begin = time.monotonic()
        self.asked = StopRequest.NOTHING
        self.parent = parent or ParentProcess()
        signal.signal(signal.SIGUSR1, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = max(self.asked, StopRequest.USR1 if number == signal.SIGUSR1 else StopRequest.TERM)
