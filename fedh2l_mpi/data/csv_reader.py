"""Reader of tables: each row of a CSV file is a vector of features, with columns for its class and domain.

A column of numbers is one feature, standardised by the training rows. A column of texts becomes one feature for each
of its values in the training rows, in alphabetical order, which is 1 for the row's value and 0 for the others; a value
that the training rows lack has zeros only.

Every rank holds the whole table, which is small.

Shape letters: N rows, F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config.data_files import Csv
from fedh2l_mpi.data import statistics
from fedh2l_mpi.data.class_labels import numbered
from fedh2l_mpi.data.sources import ArrayTable, NaturalDomains, Source
from fedh2l_mpi.data.table_file import TableFile, find, open_table
from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.sample_form import SampleForm

WANTED = "one CSV file with a header, or a folder with train.csv and test.csv"
# Texts that stand for an empty cell, in small letters.
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
MOST_VALUES_OF_A_COLUMN = 1000
# Features of all rows, 1 GiB as float32.
MOST_NUMBERS = 1 << 28


@dataclass
class Column:
    """A column of features, as it is found while its file is read.

    Attributes
    ----------
    numbers, texts : int
        Cells that are numbers, and cells that are other texts.
    values : dict
        Number of every text, in the order in which they come.
    first_text : tuple of int and str
        Line and content of the first cell that is no number.
    missing : int
        Empty cells.
    first_missing : int
        Line of the first of them.
    """

    name: str
    numbers: int = 0
    texts: int = 0
    values: dict[str, int] = field(default_factory=dict)
    first_text: tuple[int, str] = (0, "")
    missing: int = 0
    first_missing: int = 0

    @property
    def is_text(self) -> bool:
        """True if a cell is no number."""
        return self.texts > 0


@dataclass(frozen=True)
class Cells:
    """The cells of one file.

    Attributes
    ----------
    values : float64 (N, columns)
        Numbers, or the number of a text in its column's `values`; NaN for empty cells.
    """

    labels: list[str]
    domains: list[str]
    lines: list[int]
    values: NDArray[np.float64]


def open_csv(data: Csv) -> Source:
    """Open the table at `data.root`.

    Raises
    ------
    UserError
        If there is no such file, it is no table, or a cell or column does not fit.
    """
    paths = find(data.root, "csv", [".csv"], WANTED)
    train_file, test_file = open_table(paths[0]), None if paths[1] is None else open_table(paths[1])
    named = [("data.label", data.label), ("data.domain", data.domain), *(("data.drop", name) for name in data.drop)]
    for one in (train_file, test_file):
        if one is not None:
            one.check_columns(named)
    if test_file is not None and set(test_file.columns) != set(train_file.columns):
        others = sorted(set(test_file.columns) ^ set(train_file.columns))
        raise UserError(f"{test_file.path}: its columns differ from those of {train_file.path.name} in {others[0]!r}.")
    unused = {data.label, data.domain, *data.drop}
    columns = [Column(name) for name in train_file.columns if name not in unused]
    if not columns:
        raise UserError(f"{train_file.path}: has no column of features next to data.label, data.domain and data.drop.")
    _find_kinds(train_file, columns)
    train = _cells(train_file, columns, data)
    test = None if test_file is None else _cells(test_file, columns, data)
    what = (f"{train_file.path}: column {data.label}", f"{(test_file or train_file).path}: column {data.label}")
    labels = numbered(what, train.labels, test.labels if test is not None else None, least=2)
    natural = None
    if data.domain is not None:
        what = (f"{train_file.path}: column {data.domain}", f"{(test_file or train_file).path}: column {data.domain}")
        domains = numbered(what, train.domains, test.domains if test is not None else None, least=1)
        natural = NaturalDomains(domains.names, domains.train, domains.test)
    rows = statistics.training_rows(labels.train, natural, None if test is not None else data.share_for_testing)
    features, names = _features(columns, train, test, rows, data, train_file.path)
    form = SampleForm("vector", (len(names),))
    table = ArrayTable(labels.train, features[0])
    mean, std = statistics.of_rows(table, rows, form)
    # The features of texts stay 0 and 1.
    is_number = [not is_text for _, is_text in names]
    return Source(
        "csv",
        len(labels.names),
        form,
        1.0,
        tuple(value if kept else 0.0 for value, kept in zip(mean, is_number, strict=True)),
        tuple(value if kept else 1.0 for value, kept in zip(std, is_number, strict=True)),
        train=table,
        test=ArrayTable(labels.test, features[1]) if labels.test is not None else None,
        domains=natural,
        class_names=labels.class_names,
        details=_details(columns, names, data, train_file.path),
    )


def as_number(cell: str) -> float | None:
    """Return the number of a cell; None if it is none. Python's `1_000` and `infinity` are none."""
    if cell[-1:].isalpha() or "_" in cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _find_kinds(file: TableFile, columns: list[Column]) -> None:
    """Find which columns have numbers, which texts, and which empty cells."""
    for line, cells in file.rows([column.name for column in columns]):
        for column, raw in zip(columns, cells, strict=True):
            cell = raw.strip()
            if cell.lower() in MISSING:
                column.missing += 1
                column.first_missing = column.first_missing or line
            elif as_number(cell) is not None:
                column.numbers += 1
            else:
                column.texts += 1
                column.first_text = column.first_text if column.texts > 1 else (line, cell)
                if len(column.values) <= MOST_VALUES_OF_A_COLUMN:
                    column.values.setdefault(cell, len(column.values))
    for column in columns:
        line, cell = column.first_text
        where = f"{file.path}: column {column.name}"
        if column.is_text and column.numbers > column.texts:
            raise UserError(
                f"{where}: line {line} has {shown(cell)}, but {column.numbers} cells are numbers. Fix: correct it, or "
                "name the column in data.drop."
            )
        if len(column.values) > MOST_VALUES_OF_A_COLUMN:
            raise UserError(
                f"{where} has more than {MOST_VALUES_OF_A_COLUMN:,} different texts, such as {shown(cell)} in line "
                f"{line}. Fix: name it in data.drop."
            )


def _cells(file: TableFile, columns: list[Column], data: Csv) -> Cells:
    """Read the cells of a file whose columns have known kinds."""
    extra = [data.label] if data.domain is None else [data.label, data.domain]
    labels: list[str] = []
    domains: list[str] = []
    lines: list[int] = []

    def read() -> Iterator[float]:
        for line, (label, *others) in file.rows([*extra, *(column.name for column in columns)]):
            labels.append(_named(file, line, data.label, label))
            if data.domain is not None:
                domains.append(_named(file, line, data.domain, others.pop(0)))
            lines.append(line)
            for column, raw in zip(columns, others, strict=True):
                yield _value(file, line, column, raw.strip(), data.missing)

    values = np.fromiter(read(), dtype=np.float64)
    if not labels:
        raise UserError(f"{file.path}: has a header, but no row.")
    return Cells(labels, domains, lines, values.reshape(len(labels), len(columns)))


def _named(file: TableFile, line: int, column: str, cell: str) -> str:
    if cell.strip().lower() in MISSING[:1]:
        raise UserError(f"{file.path}: line {line}: column {column} is empty. Every row needs it.")
    return cell.strip()


def _value(file: TableFile, line: int, column: Column, cell: str, missing: str) -> float:
    if cell.lower() in MISSING:
        if missing == "refuse":
            count = f"{column.missing} empty cells" if column.missing > 1 else "an empty cell"
            raise UserError(
                f"{file.path}: line {line}: column {column.name} has {count}. Fix: set data.missing to mean or zero, "
                "or name the column in data.drop."
            )
        return np.nan
    if column.is_text:
        return column.values.setdefault(cell, len(column.values))
    number = as_number(cell)
    if number is None or not abs(number) <= float(np.finfo(np.float32).max):
        raise UserError(
            f"{file.path}: line {line}: column {column.name} has {shown(cell)}. It must be a number of 32 bits."
        )
    return number


def _features(
    columns: list[Column], train: Cells, test: Cells | None, rows: NDArray[np.int64], data: Csv, path: Path
) -> tuple[list[NDArray[np.float32]], list[tuple[str, bool]]]:
    """Return the features of both parts, float32 (N, F), and the name of each with True if it is of a text."""
    parts = [train] if test is None else [train, test]
    blocks: list[list[NDArray[np.float32]]] = [[] for _ in parts]
    names: list[tuple[str, bool]] = []
    width = 0
    for place, column in enumerate(columns):
        cells = [part.values[:, place] for part in parts]
        seen = cells[0][rows]
        seen = seen[~np.isnan(seen)]
        if len(seen) == 0:
            continue
        if column.is_text:
            texts = list(column.values)
            kept = sorted({int(number) for number in np.unique(seen)}, key=lambda number: texts[number])
            names += [(f"{column.name}={texts[number]}", True) for number in kept]
            made = [(one[:, None] == np.array(kept, dtype=np.float64)) for one in cells]
        else:
            filled = float(seen.mean()) if data.missing == "mean" else 0.0
            names.append((column.name, False))
            made = [np.where(np.isnan(one), filled, one)[:, None] for one in cells]
        width += made[0].shape[1]
        if width * sum(len(part.labels) for part in parts) > MOST_NUMBERS:
            raise UserError(
                f"{path}: the features of all rows are more than {MOST_NUMBERS:,} numbers. Fix: use data.drop, or an "
                "npz file, which is read by row."
            )
        for block, one in zip(blocks, made, strict=True):
            block.append(one.astype(np.float32))
    if not names:
        raise UserError(f"{path}: every column of features is empty.")
    return [np.concatenate(block, axis=1) for block in blocks], names


def _details(
    columns: list[Column], names: list[tuple[str, bool]], data: Csv, path: Path
) -> tuple[tuple[str, str], ...]:
    """Return which columns are used, and how."""
    numbers = [name for name, is_text in names if not is_text]
    texts = [column for column in columns if column.is_text]
    used = [f"numbers: {_listed(numbers)}"] if numbers else []
    used += [
        f"{column.name}: one feature for each of {sum(name.startswith(f'{column.name}=') for name, _ in names)} values"
        for column in texts[:20]
    ]
    empty = [column.name for column in columns if column.numbers + column.texts == 0]
    dropped = [*(f"{name} (data.drop)" for name in data.drop), *(f"{name} (empty)" for name in empty)]
    missing = sum(column.missing for column in columns if column.name not in empty)
    rows = [("file", str(path)), ("columns used", "; ".join(used))]
    rows += [("not used", _listed(dropped))] if dropped else []
    rows += [("empty cells", f"{missing}, data.missing: {data.missing}")] if missing else []
    return tuple(rows)


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
