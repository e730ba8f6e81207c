"""A small process beside rank 0 that says in the status file that the run has failed if rank 0 cannot.

A launcher kills all ranks as soon as one has died, and a killed process can say nothing. This one has a session of its
own, so that it is not killed with them, and ends with rank 0: it notices by the pipe between the two.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from fedh2l_mpi.lifecycle import status

DONE = b"done\n"
MEANT_FOR_OTHERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class Watchdog:
    """Started and told by rank 0.

    Parameters
    ----------
    path : Path
        The status file, which says that the run is running.
    who : str
        Rank 0 in words.
    lock : Path
        The run's lock: what of it is rank 0's goes with rank 0.
    """

    def __init__(self, path: Path, who: str, lock: Path) -> None:
        package = Path(__file__).resolve().parents[2]
        # -S: what is in site-packages would cost a start-up; the package itself is found by its folder.
        run = "from fedh2l_mpi.lifecycle import watchdog; watchdog.main()"
        start = f"import sys; sys.path.insert(0, {str(package)!r}); {run}"
        # Whoever ends a job may signal all that it finds of it. The guardian inherits the mask, and keeps it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, MEANT_FOR_OTHERS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", start, str(path.resolve()), who, str(lock.resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def dismiss(self) -> None:
        """The status file says what it has to: nothing is left to do."""
        self._process.communicate(DONE)


def main() -> None:
    """What the process does."""
    path, who, lock = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    held = lock.read_bytes() if lock.is_file() else b""
    if os.read(0, len(DONE)) != DONE:
        reason = f"{who} ended without a word: it was killed, or its launcher ended the job after another rank had died"
        status.end(path, "failed", reason, f"guardian, pid {os.getpid()}")
        if held and lock.is_file() and lock.read_bytes() == held:
            lock.unlink(missing_ok=True)
