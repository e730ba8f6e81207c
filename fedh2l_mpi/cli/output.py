"""Options and files with which commands write what they have read from runs."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.terminal import harmless, log_width, open_console, say, without_trailing_blanks

if TYPE_CHECKING:
    from rich.console import RenderableType

RUNS = "run directories, metrics files, folders that hold runs, or globs"


def give(text: str, out: Path | None, what: str) -> None:
    """Print a text, or write it to a file."""
    if out is None:
        say(text, end="" if text.endswith("\n") else "\n")
        return
    with written(out) as file:
        file.write(harmless(text))
    say(f"{what}: {out}")


def show(table: "RenderableType", out: Path | None, what: str) -> None:
    """Print what rich lays out, or write it to a file without colours."""
    if out is None:
        open_console().print(table)
        return
    from rich.console import Console

    with written(out) as file:
        Console(file=without_trailing_blanks(file), width=log_width(), color_system=None).print(table)
    say(f"{what}: {out}")


@contextlib.contextmanager
def written(path: Path) -> Iterator[TextIO]:
    try:
        # A run directory's name need not be UTF-8.
        with path.open("w", encoding="utf-8", errors="replace") as file:
            yield file
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written: {error.strerror}") from None


def width(text: str) -> float:
    from fedh2l_mpi.analysis.figures.style import COLUMN_MM, PAGE_MM

    try:
        return {"column": COLUMN_MM, "page": PAGE_MM}.get(text) or float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be column, page, or a width in mm") from None
