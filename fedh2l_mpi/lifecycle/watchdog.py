"""Watchdog of rank 0: a small process that reports in the status file that the run failed if rank 0 was killed.

A launcher kills all ranks as soon as one has died, and a killed process cannot report. The watchdog survives that,
because it has its own session. It ends with rank 0, whose end closes the pipe between the two.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.runtime.clocks import Patience

DONE = b"done\n"
DISMISSAL_S = 5.0
MEANT_FOR_OTHERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class Watchdog:
    """Handle of the watchdog's process, which rank 0 starts and dismisses.

    Parameters
    ----------
    path : Path
        The status file of the running run.
    who : str
        Description of rank 0.
    lock : Path
        The run's lock. If rank 0 still holds it when it is killed, the watchdog removes it.
    """

    def __init__(self, path: Path, who: str, lock: Path) -> None:
        package = Path(__file__).resolve().parents[2]
        # -S skips site-packages, because importing from there delays the start. The path of the package is added here.
        run = "from fedh2l_mpi.lifecycle import watchdog; watchdog.main()"
        start = f"import sys; sys.path.insert(0, {str(package)!r}); {run}"
        # Block these signals, because a batch system may send them to every process of the job. The watchdog inherits
        # the mask and keeps it.
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
        """End the watchdog, because the status file reports the end already.

        A watchdog that does not end, because somebody stopped it for example, is killed; it has nothing left to do.
        """
        patience = Patience(DISMISSAL_S)
        # A watchdog that was killed has closed the pipe, and one that was stopped still has room for a word in it.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # type: ignore[union-attr]
            pipe.write(DONE)
        while self._process.poll() is None and not patience.is_over:
            patience.pause(0.01)
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Wait for the dismissal. If rank 0 ends without it, report the failure and remove rank 0's lock."""
    path, who, lock = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    held = lock.read_bytes() if lock.is_file() else b""
    if os.read(0, len(DONE)) != DONE:
        reason = f"{who} ended without a report: it was killed, or its launcher ended the job because another rank died"
        status.end(path, "failed", reason, f"watchdog, pid {os.getpid()}")
        if held and lock.is_file() and lock.read_bytes() == held:
            lock.unlink(missing_ok=True)
