"""Write a rank's log to its file and, on rank 0, to standard output."""

import contextlib
import logging
import logging.handlers
import shutil
import sys
import textwrap
from pathlib import Path
from types import TracebackType
from typing import TextIO

from fedh2l_mpi.runtime import processes
from fedh2l_mpi.runtime.terminal import harmless, is_terminal

log = logging.getLogger("fedh2l_mpi")


class RunLog:
    """The log of one run on one rank. As a context, it leaves the logger as it was."""

    def __init__(self) -> None:
        self._before = (log.level, log.propagate)
        # What is logged while the run directory does not exist yet is kept, and written by `open`.
        self._held = logging.handlers.MemoryHandler(
            capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False
        )
        self._handlers: list[logging.Handler] = []
        self._add(self._held)

    def open(self, path: Path, rank: int, size: int, prints: bool) -> None:
        """Send the log to a file, and to standard output if it `prints`; first, each message so far once."""
        handlers: list[logging.Handler] = [_Filed(path, encoding="utf-8")]
        if prints:
            handlers.append(_Printed(sys.stdout))
            handlers[-1].addFilter(lambda record: not getattr(record, "file_only", False))
        form = f"%(asctime)s {rank}/{size} %(levelname)s %(message)s"
        for handler in handlers:
            wraps = isinstance(handler, _Printed) and is_terminal()
            handler.setFormatter((_Wrapping if wraps else _Harmless)(form, "%H:%M:%S"))
            self._add(handler)
        log.removeHandler(self._held)
        # Every participant of an architecture loads the same file, so messages repeat.
        for record in {record.getMessage(): record for record in reversed(self._held.buffer)}.values():
            log.handle(record)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handler in self._handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(self._before[0])
        log.propagate = self._before[1]

    def _add(self, handler: logging.Handler) -> None:
        log.addHandler(handler)
        self._handlers.append(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class _Harmless(logging.Formatter):
    """Formatter whose lines send no codes to a terminal, whichever names they contain."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


class _Wrapping(_Harmless):
    """Formatter that breaks lines between words at the terminal's width. Later lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        width = shutil.get_terminal_size().columns
        indent = " " * len("12:34:56 ")
        lines = super().format(record).splitlines()
        return "\n".join(
            textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
            for line in lines
        )


class _Filed(logging.FileHandler):
    """Lines in a file. If it cannot be written, standard error says so once, and the run continues without them."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            # A closed standard error must not end the run either.
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"fedh2l_mpi: warning: the log {self.baseFilename} cannot be written: {error.strerror}",
                    file=sys.stderr,
                    flush=True,
                )

    def close(self) -> None:
        # The lines that could not be written are tried once more, and what ends the run must not be hidden by them.
        with contextlib.suppress(OSError):
            super().close()


class _Printed(logging.StreamHandler[TextIO]):
    """Lines on standard output, as long as somebody takes them."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            # The lines are in the log file, too, so nothing is lost.
            processes.discard_output()
        else:
            super().handleError(record)
