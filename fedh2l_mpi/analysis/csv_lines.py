"""Write CSV in which no text is a formula: spreadsheets run a cell that begins with `=`, `+`, `-` or `@`."""

import csv
from collections.abc import Iterable
from typing import Any, TextIO

from fedh2l_mpi.runtime.terminal import harmless

FORMULA = ("=", "+", "-", "@", "\t")


class CsvLines:
    """Writer of CSV lines. Texts are made harmless, and numbers are written as they are.

    Parameters
    ----------
    file : text file, opened with `newline=""`
    """

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")

    def write(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write rows of texts and numbers."""
        self._writer.writerows([cell(value) if isinstance(value, str) else value for value in row] for row in rows)


def cell(text: str) -> str:
    """Return a text for one cell: a text that a spreadsheet would run as a formula gets an apostrophe in front.

    Numbers that are written as text, and a lone sign, stay as they are.

    Source: OWASP, "CSV Injection".
    """
    text = harmless(text)
    return f"'{text}" if len(text) > 1 and text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
