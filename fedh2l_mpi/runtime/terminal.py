"""Print to a terminal or to a batch log.

Only the rank that prints imports rich.
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
    """Ignore errors of printing inside the context, such as a closed pipe (`... | head`) or a full disk."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        processes.discard_output()


def is_terminal() -> bool:
    """Return True if standard output is a user's terminal. Open MPI gives rank 0 a terminal without a user."""
    return sys.stdout.isatty() and "OMPI_COMM_WORLD_SIZE" not in os.environ


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def open_console() -> "RichConsole":
    """Return a console for tables: as wide as the terminal, or 120 columns in a batch log."""
    from rich.console import Console

    class Piped(Console):
        """Console that raises BrokenPipeError if the reader has closed the pipe (`... report RUN | head`)."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped() if is_terminal() else Piped(width=120)
