"""Print to a terminal or to a batch log.

Names come from files of anybody, and may contain codes that a terminal obeys: they clear the screen, change its title,
or turn the order of letters around. `say` and `rich_text` show such characters instead of sending them.

Only the rank that prints imports rich.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from fedh2l_mpi.runtime import processes

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.text import Text

# Control characters, except tab and newline, and those that change the direction of writing or break a line.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

# Columns of a table in a batch log.
WIDTH_OF_A_LOG = 120


def harmless(text: str, one_line: bool = False) -> str:
    r"""Return a text in which control characters are written as in Python, such as `\x1b`.

    Parameters
    ----------
    one_line : bool
        True: tabs and newlines are written so, too.
    """
    text = CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.replace("\n", "\\n").replace("\t", "\\t") if one_line else text


def say(text: object, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print a text, made harmless, on standard output or another file."""
    print(harmless(str(text)), file=file, end=end, flush=flush)


def rich_text(text: str, style: str = "") -> "Text":
    """Return a text, made harmless, for rich to print without markup."""
    from rich.text import Text

    return Text(harmless(text), style=style)


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


def log_width() -> int:
    """Return the columns of a table for a batch log: COLUMNS of the environment, or WIDTH_OF_A_LOG."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else WIDTH_OF_A_LOG


def open_console() -> "RichConsole":
    """Return a console for tables, as wide as the terminal, or as `log_width`."""
    from rich.console import Console

    class Piped(Console):
        """Console that raises BrokenPipeError if the reader has closed the pipe (`... report RUN | head`)."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped() if is_terminal() else Piped(width=log_width(), file=without_trailing_blanks(sys.stdout))


def without_trailing_blanks(file: TextIO) -> TextIO:
    """Return a file that drops the blanks with which rich fills lines, and writes everything else to this file."""

    class Trimming:
        """Text file for rich, which writes whole lines."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, text: str) -> int:
            return file.write(re.sub(" +$", "", text, flags=re.MULTILINE))

    return cast(TextIO, Trimming())
