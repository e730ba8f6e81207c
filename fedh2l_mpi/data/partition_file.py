"""A partition that the user gives: a file that says which participant holds which training rows, and as which part.

Shape letters: E entries of the file.
"""

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.data import FilePartition
from fedh2l_mpi.config.text_files import fields_of, read_bytes, read_text
from fedh2l_mpi.data.partition import NO_SAMPLES, Draw, Rows, Samples, Share, split_parts
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError, did_you_mean, shown
from fedh2l_mpi.rng import Purpose
from fedh2l_mpi.runtime import paths

ROW, PARTICIPANT, PART = COLUMNS = ("row", "participant", "part")
PARTS = ("private", "seed", "validation", "test")
# About 20 million rows.
MOST_BYTES = 2**28
_FORM = "row,participant or row,participant,part"


@dataclass(frozen=True)
class GivenPartition:
    """Entries of a partition file, in the order of rows: a file is the same in any order of its lines.

    Attributes
    ----------
    file : Path
    rows, participants : int64 (E,)
    parts : int64 (E,) or None
        Place in PARTS; None if the file leaves the parts to the shares of the config.
    """

    file: Path
    rows: Rows
    participants: Rows
    parts: Rows | None

    def of_part(self, name: str) -> Rows | None:
        """Return the rows of a part, of all participants; None if the file gives no parts."""
        return None if self.parts is None else self.rows[self.parts == PARTS.index(name)]


def read(config: Config, source: Source) -> GivenPartition | None:
    """Read and check the partition file of a resolved config; None for other kinds of partitions.

    Raises
    ------
    UserError
        If it cannot be read, or an entry is wrong. The message has the entry's line.
    """
    part = config.data.partition
    if not isinstance(part, FilePartition):
        return None
    path = paths.expand_home("data.partition.path", part.path)
    try:
        if path.suffix == ".npz":
            entries = _npz_entries(path)
        else:
            entries = _text_entries(path, read_text(path, MOST_BYTES).splitlines())
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"data.partition.path: cannot read {path}: {why}.") from None
    given = _checked(path, entries, len(source.train.labels), config)
    if given.parts is not None and config.evaluation.local_test_share is not None:
        raise UserError(
            f"evaluation.local_test_share: got {config.evaluation.local_test_share}, but {path} gives every row's "
            "part. Fix: set it to null, or remove the column part."
        )
    return given


def shares(
    given: GivenPartition, training: Rows, config: Config, source: Source, domains: int, draw: Draw
) -> list[Share]:
    """Return every participant's samples as the file gives them.

    Without parts, they are split by the shares of the config, and rows that are kept for testing are left out. Rows of
    data without domains of their own are used in the domain of their participant, participant i in domain i mod D.

    Parameters
    ----------
    training : int64
        The rows for training, ascending.
    domains : int
        D, number of domains that are made of the data; of no meaning for data with domains of their own.

    Raises
    ------
    UserError
        If a participant has no private sample.
    """
    made = []
    for participant in range(config.size):
        is_own = given.participants == participant
        rows = given.rows[is_own]
        parts = None if given.parts is None else given.parts[is_own]
        if parts is None:
            rows = rows[np.isin(rows, training, assume_unique=True)]
        if len(rows if parts is None else rows[parts == 0]) == 0:
            what = "row that is not kept for testing (data.test_share)" if parts is None else "private row"
            raise UserError(
                f"data.partition.path: {given.file}: participant {participant} has no {what}. Give it some."
            )
        samples = Samples(rows, _domains(rows, participant, source, domains))
        if parts is None:
            drawn = draw.stream(Purpose.SPLIT, participant).permutation(len(rows))
            made.append(split_parts(samples[drawn], participant, config))
        else:
            private, seed, validation, test = (samples[np.flatnonzero(parts == place)] for place in range(len(PARTS)))
            made.append(Share(private, validation, seed, test if len(test) else NO_SAMPLES))
    if given.parts is not None and not any(len(share.seed) for share in made):
        raise UserError(f"data.partition.path: {given.file}: no row has the part seed. Give some rows that part.")
    return made


def _domains(rows: Rows, participant: int, source: Source, domains: int) -> Rows:
    if source.domains is not None:
        return source.domains.of_row[rows]
    return np.full(len(rows), participant % domains, dtype=np.int64)


@dataclass(frozen=True)
class _Entries:
    """Entries of a file, not yet checked; `lines` are their line numbers, or None for the places in an array."""

    rows: Sequence[int]
    participants: Sequence[int]
    parts: Sequence[str] | None
    lines: Sequence[int] | None = None

    def name(self, entry: int) -> str:
        """Return where an entry is, such as `line 3`."""
        return f"entry {entry}" if self.lines is None else f"line {self.lines[entry]}"


def _text_entries(path: Path, lines: Iterable[str]) -> _Entries:
    """Return the entries of a table in text, whose first line names its columns."""
    header: list[str] = []
    numbers: list[int] = []
    columns: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        fields = fields_of(line)
        if not fields:
            continue
        where = f"data.partition.path: {path}, line {number}"
        if not header:
            header = fields
            _check_columns(where, [name for place, name in enumerate(header) if name or place])
            columns = {name: [] for name in header}
            continue
        if len(fields) != len(header):
            raise UserError(f"{where}: got {shown(line.strip())}, must have {len(header)} fields as the first line.")
        numbers.append(number)
        for name, field in zip(header, fields, strict=True):
            columns[name].append(field)
    if not header:
        raise UserError(f"data.partition.path: {path}: the file is empty; its first line must be {_FORM}.")
    whole = {name: _whole(path, name, columns[name], numbers) for name in (ROW, PARTICIPANT)}
    return _Entries(whole[ROW], whole[PARTICIPANT], columns.get(PART), numbers)


def _whole(path: Path, name: str, fields: Sequence[str], lines: Sequence[int]) -> list[int]:
    values = []
    for field, line in zip(fields, lines, strict=True):
        try:
            values.append(int(field))
        except ValueError:
            raise UserError(
                f"data.partition.path: {path}, line {line}: got {shown(field)} as {name}, must be a whole number."
            ) from None
    return values


def _npz_entries(path: Path) -> _Entries:
    """Return the entries of arrays `row`, `participant` and `part`."""
    content = io.BytesIO(read_bytes(path, MOST_BYTES))
    with zipfile.ZipFile(content) as archive:
        if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
    content.seek(0)
    with np.load(content, allow_pickle=False) as arrays:
        _check_columns(f"data.partition.path: {path}", list(arrays))
        found: dict[str, NDArray[np.generic]] = {name: arrays[name] for name in arrays}
    for name, values in found.items():
        kinds, wanted = ("US", "texts") if name == PART else ("iu", "whole numbers")
        if values.ndim != 1 or values.dtype.kind not in kinds:
            raise UserError(
                f"data.partition.path: {path}: the array {name} is {values.dtype} {values.shape}, must be {wanted} "
                "with one axis."
            )
        if len(values) != len(found[ROW]):
            raise UserError(
                f"data.partition.path: {path}: the array {name} has {len(values)} entries, but row has "
                f"{len(found[ROW])}."
            )
    parts = found[PART].astype(str).tolist() if PART in found else None
    return _Entries(found[ROW].tolist(), found[PARTICIPANT].tolist(), parts)


def _check_columns(where: str, names: Sequence[str]) -> None:
    strange = next((name for name in names if name not in COLUMNS), "")
    if strange or not {ROW, PARTICIPANT} <= set(names) or len(set(names)) < len(names):
        hint = did_you_mean(strange, COLUMNS) if strange else ""
        raise UserError(f"{where}: got the columns {shown(','.join(names))}, must be {_FORM}{hint}.")


def _checked(path: Path, entries: _Entries, rows: int, config: Config) -> GivenPartition:
    """Return the entries in the order of rows; `rows` is the number of rows of the table."""
    for name, values, count, which in (
        (ROW, entries.rows, rows, f"training rows of {config.data.name}"),
        (PARTICIPANT, entries.participants, config.size, "participants"),
    ):
        for entry, value in enumerate(values):
            if not 0 <= value < count:
                raise UserError(
                    f"data.partition.path: {path}, {entries.name(entry)}: got {name} {shown(value)}, must be one of "
                    f"the {count} {which}, 0 to {count - 1}."
                )
    for entry, word in enumerate(entries.parts or ()):
        if word not in PARTS:
            raise UserError(
                f"data.partition.path: {path}, {entries.name(entry)}: got part {shown(word)}; known: "
                f"{', '.join(PARTS)}{did_you_mean(word, PARTS)}"
            )
    order = np.argsort(np.array(entries.rows, dtype=np.int64), kind="stable")
    of_row = np.array(entries.rows, dtype=np.int64)[order]
    again = np.flatnonzero(of_row[1:] == of_row[:-1])
    if len(again):
        # The first in the order of lines.
        place = again[np.argmin(order[again + 1])]
        first, second = entries.name(int(order[place])), entries.name(int(order[place + 1]))
        raise UserError(
            f"data.partition.path: {path}, {second}: row {of_row[place]} is in {first} already. Remove one."
        )
    of_participant = np.array(entries.participants, dtype=np.int64)[order]
    absent = np.flatnonzero(np.bincount(of_participant, minlength=config.size) == 0)
    if len(absent):
        raise UserError(
            f"data.partition.path: {path}: participant {absent[0]} has no row. Give it some, or use fewer participants."
        )
    parts = None if entries.parts is None else np.array([PARTS.index(word) for word in entries.parts])[order]
    return GivenPartition(path, of_row, of_participant, parts)
