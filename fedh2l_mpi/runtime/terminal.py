"""What a person sees: a progress bar on a terminal, plain lines in a batch log, and the table at the end.

rich is imported by the rank that prints, not by the others.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedh2l_mpi.runtime import processes

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


@contextlib.contextmanager
def ignore_closed_output() -> Iterator[None]:
    """What is printed inside may be lost: standard output has gone (`... | head`), or its disk is full."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        processes.discard_output()


def is_terminal() -> bool:
    """Whether a person sits at standard output. Open MPI gives rank 0 a terminal that nobody sits at."""
    return sys.stdout.isatty() and "OMPI_COMM_WORLD_SIZE" not in os.environ


def open_console() -> "RichConsole":
    """Where tables are printed: as wide as the terminal, 120 columns in a batch log."""
    from rich.console import Console

    class Piped(Console):
        """Leaves it to us what happens where nobody reads any more (`... report RUN | head`)."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped() if is_terminal() else Piped(width=120)
