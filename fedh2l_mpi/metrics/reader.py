"""Read metrics files: `read` loads a sound file completely, `look` opens any file and reports its problems.

Shape letters: R rounds, P participants, D domains.
"""

import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics.columns import ATTRIBUTE, NO_COLUMNS, Columns
from fedh2l_mpi.metrics.file_arrays import DAMAGE, RETRY_S, TRIES, FileArrays, Key, outer, reason
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.metrics.schema import FORMAT, SCHEMA_VERSION, Field
from fedh2l_mpi.runtime.safe_hdf5 import RefusedError, SafeFile
from fedh2l_mpi.runtime.terminal import harmless

# A file that is not closed and changed so recently is being written.
WRITTEN_S = 10.0


@dataclass(frozen=True)
class RunMetrics:
    """Contents of a metrics file.

    Attributes
    ----------
    attributes : mapping
        Text or whole numbers.
    arrays : mapping
        Arrays by name, all with the same number of rounds. Those of `look` are read on access.
    closed : bool
        True if the writer closed the file.
    problems : list of str
        Problems of the file, one line each. The list grows while arrays are read.
    columns : Columns
        The run's own arrays, in addition to those of the schema.
    """

    attributes: Mapping[str, str | int]
    arrays: Mapping[str, NDArray[Any]]
    closed: bool
    problems: list[str] = field(default_factory=list)
    columns: Columns = NO_COLUMNS

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    @property
    def dimensions(self) -> Mapping[str, tuple[str, ...]]:
        """Dimensions of every array of the run except the scales, by name."""
        return self.columns.dimensions

    @property
    def fields(self) -> Mapping[str, Field]:
        """Type, unit and meaning of every array of the run except the scales, by name."""
        return self.columns.fields

    @property
    def rounds(self) -> int:
        """Finished rounds."""
        return len(self.arrays["round"])

    def read_row(self, name: str, row: int) -> NDArray[Any]:
        """Return one row of an array over rounds. Only this row is read from a large array."""
        return self.part(name, (row,))

    def part(self, name: str, key: Key) -> NDArray[Any]:
        """Return `self[name][key]`, and read only that part from the file.

        Parameters
        ----------
        key : tuple
            An index for each of the first axes: a whole number or a slice of positive step. One axis may have an
            ascending integer array. Each index applies to its own axis alone.
        """
        if isinstance(self.arrays, FileArrays):
            return self.arrays.part(name, key)
        return outer(self.arrays[name], key)

    def is_whole(self, name: str) -> bool:
        """Return True if an array was recorded and no damage has been found in it so far."""
        return not isinstance(self.arrays, FileArrays) or self.arrays.is_whole(name)

    def is_unknown(self, name: str) -> bool:
        """Return True if the file is of an earlier version, which did not record this array."""
        return isinstance(self.arrays, FileArrays) and name in self.arrays.unknown

    def texts(self, name: str) -> list[str]:
        """Return a text array as strings, each of one line, in which no character is a code for a terminal."""
        return [harmless(value.decode(errors="replace"), one_line=True) for value in self.arrays[name]]

    def opened(self) -> AbstractContextManager[None]:
        """Keep the file open inside a `with` block, so that reading many arrays opens it once."""
        return self.arrays.opened() if isinstance(self.arrays, FileArrays) else contextlib.nullcontext()

    def close(self) -> None:
        """Forget a file opened by `look`. Arrays that were not read before cannot be read any more."""
        if isinstance(self.arrays, FileArrays):
            self.arrays.close()


def read(path: Path) -> RunMetrics:
    """Load a whole metrics file, even if it is being written or its writer was killed.

    Raises
    ------
    UserError
        If the file is not a metrics file, has a newer schema, or is damaged.
    """
    run = look(path)
    with run.opened():
        arrays = dict(run.arrays)
    if run.problems:
        raise UserError(f"{path}: {run.problems[0]}")
    return RunMetrics(run.attributes, arrays, run.closed, columns=run.columns)


def look(path: Path) -> RunMetrics:
    """Open a metrics file in any condition, and list its problems. Arrays are read on access.

    Values that cannot be read are NaN (`?` for text), and `problems` gets a line. An array that the run did not record
    is NaN, which is no problem.

    Raises
    ------
    UserError
        If the file does not exist, is not HDF5, or is not the metrics file of a run.
    """
    for left in reversed(range(TRIES)):
        run = _look(path)
        if not run.problems or not left or not _is_being_written(path, run.closed):
            break
        run.close()
        time.sleep(RETRY_S)
    return run


def _is_being_written(path: Path, closed: bool) -> bool:
    """Return True if the file changed recently, so that its problems may be gone a moment later."""
    try:
        return not closed and time.time() - path.stat().st_mtime < WRITTEN_S
    except OSError:
        return False


def _look(path: Path) -> RunMetrics:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        file, closed = open_for_reading(path)
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as HDF5: {reason(error)}") from None
    with file:
        try:
            written_by = file.attrs.get("format")
        except DAMAGE as error:
            raise UserError(f"{path}: cannot be read as HDF5: {reason(error)}") from None
        if written_by != FORMAT.encode():
            raise UserError(f"{path}: not a metrics file of fedh2l_mpi")
        problems: list[str] = []
        attributes = _attributes(file, problems)
        schema = attributes.get("schema_version")
        if not isinstance(schema, int) or schema > SCHEMA_VERSION:
            problems.append(
                f"has schema {schema}, but this version reads schema {SCHEMA_VERSION}. It shows the arrays that it "
                "knows; use a newer fedh2l_mpi to read all"
            )
        columns = NO_COLUMNS
        try:
            columns = Columns.of_attributes(attributes)
        except ValueError as error:
            problems.append(f"attribute {ATTRIBUTE!r} is damaged: {error}")
        try:
            arrays = FileArrays(path, file, problems, _is_being_written(path, closed), columns)
        except RefusedError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    return RunMetrics(attributes, arrays, closed, problems, columns)


def _attributes(file: SafeFile, problems: list[str]) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {}
    try:
        names = list(file.attrs)
    except DAMAGE as error:
        problems.append(f"attributes cannot be read: {reason(error)}")
        return attributes
    for name in names:
        try:
            attributes[name] = _plain(file.attrs[name])
        except DAMAGE as error:
            problems.append(f"attribute {name!r} is damaged: {reason(error)}")
    return attributes


def _plain(value: Any) -> str | int:
    if isinstance(value, bytes):
        return harmless(value.decode())
    if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.integer) or abs(int(value)) >= 2**63:
        raise TypeError(f"got {value!r}, must be a text or a whole number")
    return int(value)
