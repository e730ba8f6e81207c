"""Write a rank's log to its file and, on rank 0, to standard output."""

import logging
import logging.handlers
import sys
from typing import TextIO

from fedh2l_mpi.runtime import processes

log = logging.getLogger("fedh2l_mpi")


def buffer_log() -> logging.handlers.MemoryHandler:
    """Keep log records in memory until the run directory exists. `setup_logging` then writes them."""
    held = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    log.addHandler(held)
    log.setLevel(logging.INFO)
    log.propagate = False
    return held


def setup_logging(
    path: str, rank: int, size: int, speaks: bool, held: logging.handlers.MemoryHandler | None = None
) -> None:
    """Write this rank's log to its file and, if it `speaks`, to standard output.

    Parameters
    ----------
    path : str
        The log file.
    speaks : bool
        True: also write to standard output, except records marked `file_only`.
    held : MemoryHandler or None
        From `buffer_log`: its records are written first, each message once.
    """
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    if speaks:
        handlers.append(_Spoken(sys.stdout))
        handlers[-1].addFilter(lambda record: not getattr(record, "file_only", False))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {rank}/{size} %(levelname)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    if held is not None:
        log.removeHandler(held)
        # Every participant of an architecture loads the same file, so equal messages are written once.
        for record in {record.getMessage(): record for record in reversed(held.buffer)}.values():
            log.handle(record)


class _Spoken(logging.StreamHandler[TextIO]):
    """Handler for standard output that goes silent if standard output is closed."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            # The lines are in the log file, too, so nothing is lost.
            processes.discard_output()
        else:
            super().handleError(record)
