"""Files with named columns, CSV or JSON Lines, read row by row and within bounds.

A CSV file is UTF-8 text with a header; its cells are separated by commas, semicolons or tabs, whichever the header has
most of. A file of JSON Lines has one object in each line.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fedh2l_mpi.data.sources import located
from fedh2l_mpi.errors import UserError, did_you_mean, shown
from fedh2l_mpi.runtime import paths

# A larger table belongs in a file that is read by row.
LARGEST_BYTES = 1 << 30
LONGEST_LINE = 1 << 24
MOST_COLUMNS = 20_000
DELIMITERS = ",;\t"
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class TableFile:
    """A file with named columns.

    Attributes
    ----------
    columns : tuple of str
        Names in the header, or of the first object.
    """

    path: Path
    columns: tuple[str, ...]
    delimiter: str

    def rows(self, chosen: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the line, from 1, and the cells of the chosen columns of every row."""
        places = [self.columns.index(name) for name in chosen]
        with _reading(self.path) as file:
            if not self.delimiter:
                yield from self._objects(file, chosen)
                return
            reader = csv.reader(file, delimiter=self.delimiter)
            next(reader)
            while True:
                # The first line of a row, because a quoted cell may have several.
                line = reader.line_num + 1
                cells = next(reader, None)
                if cells is None:
                    return
                if not cells:
                    continue
                if len(cells) != len(self.columns):
                    raise UserError(
                        f"{self.path}: line {line} has {len(cells)} cells, but the header has {len(self.columns)}."
                    )
                yield line, [cells[place] for place in places]

    def _objects(self, file: TextIO, chosen: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        for line, text in enumerate(file, 1):
            if text.strip():
                values = _object(self.path, line, text)
                missing = next((name for name in chosen if name not in values), None)
                if missing is not None:
                    raise UserError(f"{self.path}: line {line} has no {shown(missing)}.")
                yield line, [_as_text(self.path, line, name, values[name]) for name in chosen]

    def check_columns(self, wanted: Sequence[tuple[str, str | None]]) -> None:
        """Raise UserError if a column that a key names is missing.

        Parameters
        ----------
        wanted : sequence of (str, str or None)
            Config keys, and the columns that they name; None: no column.
        """
        for key, name in wanted:
            if name is not None and name not in self.columns:
                raise UserError(
                    f"{key}: {self.path} has no column {shown(name)}{did_you_mean(name, self.columns)}. "
                    f"It has {', '.join(self.columns[:12])}{', ...' if len(self.columns) > 12 else ''}."
                )


def find(root: str | None, usual: str, suffixes: Sequence[str], wanted: str) -> tuple[Path, Path | None]:
    """Return the training file of `data.root`, and the test file if there is one.

    The root is one file, or a folder with `train` and `test`, each with one of the suffixes.

    Raises
    ------
    UserError
        If there is no such file.
    """
    where, path = located(root, usual, wanted)
    if paths.is_file(where, path):
        return path, None
    if not paths.is_folder(where, path):
        raise UserError(f"{where}: there is no file {path}. It must be {wanted}.")
    found = {
        part: [one for one in (path / f"{part}{suffix}" for suffix in suffixes) if paths.is_file(where, one)]
        for part in ("train", "test")
    }
    if not found["train"]:
        names = " or ".join(f"train{suffix}" for suffix in suffixes)
        raise UserError(f"{where}: the folder {path} has no {names}. It must be {wanted}.")
    for files in found.values():
        if len(files) > 1:
            raise UserError(f"{where}: {path} has both {files[0].name} and {files[1].name}. Keep one.")
    return found["train"][0], found["test"][0] if found["test"] else None


def open_table(path: Path) -> TableFile:
    """Read the names of a file's columns.

    Raises
    ------
    UserError
        If it has none, or two of one name, or is no text.
    """
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise UserError(
            f"{path}: has {size} bytes. Allowed: {LARGEST_BYTES}, because every rank reads the whole file. Fix: use an "
            "npz file, which is read by row."
        )
    with _reading(path) as file:
        if "\0" in file.read(LONGEST_LINE):
            raise UserError(f"{path}: is no text, because it has bytes of value 0.")
        file.seek(0)
        first = file.readline(LONGEST_LINE)
        while first and not first.strip():
            first = file.readline(LONGEST_LINE)
        if not first:
            raise UserError(f"{path}: is empty.")
        if path.suffix in JSON_LINES:
            return TableFile(path, tuple(map(str, _object(path, 1, first))), "")
        delimiter = max(DELIMITERS, key=first.count)
    with _reading(path) as file:
        names = [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path}: has {len(names)} columns. Allowed: {MOST_COLUMNS:,}. Fix: use an npz file.")
    nameless = next((place for place, name in enumerate(names, 1) if not name), None)
    if nameless is not None or not names:
        raise UserError(
            f"{path}: column {nameless or 1} has no name in the header. Fix: name it; of pandas, use "
            "to_csv(index=False)."
        )
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {shown(twice)}. Fix: give each a name.")
    return TableFile(path, tuple(names), delimiter)


def _object(path: Path, line: int, text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {line} is no JSON object: {str(error)[:80]}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: line {line} is no JSON object, but {shown(values)}.")
    return values


def _as_text(path: Path, line: int, name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{path}: line {line}: {name} is {shown(value)}. It must be a text or a whole number.")
    return str(value)


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    """Open a file as UTF-8 text, with or without a byte-order mark; any error in reading it becomes a UserError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text (byte {error.object[error.start]:#04x}). Save it so.") from None
    except csv.Error as error:
        limit = f" Allowed: {csv.field_size_limit():,} characters in a cell, none of them 0."
        raise UserError(f"{path}: cannot be read as CSV: {error}.{limit}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None
