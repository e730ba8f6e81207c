"""Read metrics files: `read` loads a sound file completely, `look` opens any file and reports its problems.

Shape letters: R rounds, P participants, D domains.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.metrics.schema import ADDED, CONFIDENCE_BINS, DIMENSIONS, FIELDS, FORMAT, SCALES, SCHEMA_VERSION

if TYPE_CHECKING:
    import h5py

# Errors that h5py raises on a damaged file, depending on the place of the damage.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)
GROWING = tuple(name for name, dims in DIMENSIONS.items() if dims[0] == "round")
Key = tuple[int | slice | NDArray[np.int64], ...]
# Larger arrays are not cached: they are read again on every access.
KEPT_BYTES = 2**24
# The writer may be in the middle of a flush, so a failed read of a growing file is repeated a moment later.
TRIES, RETRY_S, WRITTEN_S = 10, 0.05, 10.0


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
    """

    attributes: Mapping[str, str | int]
    arrays: Mapping[str, NDArray[Any]]
    closed: bool
    problems: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

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
        if isinstance(self.arrays, _FileArrays):
            return self.arrays.part(name, key)
        return _outer(self.arrays[name], key)

    def is_whole(self, name: str) -> bool:
        """Return True if an array was recorded and no damage has been found in it so far."""
        return not isinstance(self.arrays, _FileArrays) or self.arrays.is_whole(name)

    def is_unknown(self, name: str) -> bool:
        """Return True if the file is of an earlier version, which did not record this array."""
        return isinstance(self.arrays, _FileArrays) and name in self.arrays.unknown

    def texts(self, name: str) -> list[str]:
        """Return a text array as strings."""
        return [value.decode(errors="replace") for value in self.arrays[name]]

    def close(self) -> None:
        """Close a file opened by `look`. Arrays that were not read before cannot be read any more."""
        if isinstance(self.arrays, _FileArrays):
            self.arrays.close()


def read(path: Path) -> RunMetrics:
    """Load a whole metrics file, even if it is being written or its writer was killed.

    Raises
    ------
    UserError
        If the file is not a metrics file, has a newer schema, or is damaged.
    """
    run = look(path)
    try:
        arrays = dict(run.arrays)
    finally:
        run.close()
    if run.problems:
        raise UserError(f"{path}: {run.problems[0]}")
    return RunMetrics(run.attributes, arrays, run.closed)


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
        written_by = file.attrs.get("format")
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as HDF5: {reason(error)}") from None
    if written_by != FORMAT.encode():
        file.close()
        raise UserError(f"{path}: not a metrics file of fedh2l_mpi")
    problems: list[str] = []
    attributes = _attributes(file, problems)
    schema = attributes.get("schema_version")
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        problems.append(
            f"has schema {schema}, but this version reads schema {SCHEMA_VERSION}. It shows the arrays that it knows; "
            "use a newer fedh2l_mpi to read all"
        )
    again = path if _is_being_written(path, closed) else None
    return RunMetrics(attributes, _FileArrays(file, problems, again), closed, problems)


class _FileArrays(Mapping[str, NDArray[Any]]):
    """Arrays of an open file in the shapes of the schema, even if the file's own shapes are wrong.

    Parameters
    ----------
    again : Path or None
        Path from which to open the file again if an array cannot be read. None: the file is not being written.
    """

    def __init__(self, file: "h5py.File", problems: list[str], again: Path | None = None) -> None:
        self._file, self._problems, self._again = file, problems, again
        self._kept: dict[str, NDArray[Any]] = {}
        # Damaged arrays over rounds: the number of rounds that can be read before the damage.
        self._good: dict[str, int] = {}
        self._datasets: dict[str, h5py.Dataset] = {}
        # Arrays that an earlier version, which wrote the file, did not record.
        self.unknown: set[str] = set()
        for name in (*(scale.name for scale in SCALES), *DIMENSIONS):
            self._find(name)
        found = self._datasets
        self._sizes = {scale.name: self._size(scale.name) for scale in SCALES}
        self._sizes["endpoint"] = 2
        # A kill inside a flush may leave the arrays a round apart, so only rounds that all of them have count.
        lengths = [found[name].shape[0] for name in ("round", *GROWING) if name in found]
        edges = [found[name].shape[0] for name in ("graph_edges", "graph_since_round") if name in found]
        self._sizes |= {"round": min(lengths, default=0), "edge": min(edges, default=0)}
        self._check_shapes()
        self._present, rounds_R = self._rounds()
        self._sizes["round"] = len(rounds_R)
        self._kept |= {scale.name: np.arange(self._sizes[scale.name]) for scale in SCALES}
        self._kept["round"] = rounds_R

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in self._kept:
            return self._kept[name]
        if name not in DIMENSIONS:
            raise KeyError(name)
        values = self.part(name, ())
        if values.nbytes <= KEPT_BYTES:
            self._kept[name] = values
        return values

    def __iter__(self) -> Iterator[str]:
        yield from (scale.name for scale in SCALES)
        yield from DIMENSIONS

    def __len__(self) -> int:
        return len(SCALES) + len(DIMENSIONS)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def part(self, name: str, key: Key) -> NDArray[Any]:
        """Return `self[name][key]`, as described in `RunMetrics.part`."""
        if name in self._kept:
            return _outer(self._kept[name], key)
        dims, kind = DIMENSIONS[name], FIELDS[name].dtype[0]
        shape = tuple(self._sizes[dim] for dim in dims)
        key = tuple(_within(part, size) for part, size in zip((*key, *[slice(None)] * len(shape)), shape, strict=False))
        if name in self._datasets and not self._file:
            raise RuntimeError(f"array {name!r} cannot be read: the run's file has been closed. Open it again.")
        if name in self._datasets and name not in self._good:
            try:
                return self._read_patiently(self._again, name, key) if self._again else self._read(name, key)
            except DAMAGE as error:
                if dims[0] == "round":
                    self._find_damage(name, shape[0])
                else:
                    self._problems.append(f"array {name!r} is damaged: {reason(error)}")
                    del self._datasets[name]
        unknown = np.broadcast_to(_unknown(name, kind), shape)
        rows = np.arange(shape[0])[key[0]]
        readable = rows < self._good.get(name, shape[0] if name in self._datasets else 0)
        if not readable.any():
            return np.array(_outer(unknown, key))
        if rows.ndim == 0:
            return self._read(name, key)
        # Rows ascend, so those that can be read come first.
        return np.concatenate(
            [self._read(name, (rows[readable], *key[1:])), _outer(unknown, (rows[~readable], *key[1:]))]
        )

    def is_whole(self, name: str) -> bool:
        """Return True if an array is present and undamaged so far, as described in `RunMetrics.is_whole`."""
        return name in self._datasets and name not in self._good

    def _find(self, name: str) -> None:
        try:
            dataset = self._file[name]
            # Each of these fails if the name is a group or a scalar, or if its type or layout is damaged.
            _ = dataset.shape[0], dataset.dtype.kind, dataset.chunks
        except DAMAGE as error:
            if name in ADDED and is_absent(self._file, name):
                self.unknown.add(name)
            else:
                self._problems.append(f"array {name!r} is missing or damaged: {reason(error)}")
        else:
            self._datasets[name] = dataset

    def _size(self, scale: str) -> int:
        """Return the length of a dimension: that of its scale or, if the scale is damaged, that of most arrays."""
        if scale in self._datasets:
            return int(self._datasets[scale].shape[0])
        if scale == "bin":
            return CONFIDENCE_BINS
        lengths = [
            self._datasets[name].shape[dims.index(scale)]
            for name, dims in DIMENSIONS.items()
            if scale in dims and name in self._datasets and len(self._datasets[name].shape) == len(dims)
        ]
        return max(set(lengths), key=lengths.count) if lengths else 0

    def _check_shapes(self) -> None:
        for name, dims in DIMENSIONS.items():
            if name not in self._datasets:
                continue
            dataset = self._datasets[name]
            wanted = tuple(self._sizes[dim] for dim in dims)
            # After a kill, growing arrays may be longer than the others, so their first axis is not compared.
            fixed = 1 if dims[0] in ("round", "edge") else 0
            if dataset.dtype.kind != FIELDS[name].dtype[0] or dataset.shape[fixed:] != wanted[fixed:]:
                self._problems.append(
                    f"array {name!r} is {dataset.dtype} {dataset.shape}, but must be {FIELDS[name].dtype} {wanted}"
                )
                del self._datasets[name]

    def _rounds(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Return the rows of the rounds that are present (None: all), and the numbers of these rounds."""
        expected = np.arange(self._sizes["round"])
        if "round" not in self._datasets:
            return None, expected
        try:
            numbers = np.asarray(self._datasets["round"][: len(expected)], dtype=np.int64)
        except DAMAGE as error:
            self._problems.append(f"array 'round' is damaged: {reason(error)}")
            return None, expected
        present = np.flatnonzero(numbers == expected)
        if len(present) == len(expected):
            return None, expected
        missing = np.flatnonzero(numbers != expected)
        self._problems.append(f"missing rounds: {_ranges(missing)}")
        return present, present

    def _read(self, name: str, key: Key) -> NDArray[Any]:
        """Read from the file, and let the errors of h5py through."""
        dataset, rows = self._datasets[name], key[0]
        if DIMENSIONS[name][0] == "round" and self._present is not None:
            rows = self._present[rows]
        arrays = sum(isinstance(part, np.ndarray) and part.ndim > 0 for part in (rows, *key[1:]))
        if not isinstance(rows, np.ndarray) or rows.ndim == 0 or (arrays == 1 and len(rows)):
            return np.asarray(dataset[(rows, *key[1:])])
        # h5py allows one array among the indices, and another axis has it, so read the whole span of the rows.
        first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
        return np.asarray(dataset[(slice(first, last + 1), *key[1:])])[rows - first]

    def _read_patiently(self, path: Path, name: str, key: Key) -> NDArray[Any]:
        """Read from a file that is being written; after a failure, open the file again and repeat."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(*DAMAGE):
                return self._read(name, key)
            time.sleep(RETRY_S)
            with contextlib.suppress(*DAMAGE):
                self._open_again(path)
        # The writer was killed in the middle of a flush, so waiting for other arrays is useless.
        self._again = None
        return self._read(name, key)

    def _open_again(self, path: Path) -> None:
        """Open the file again because HDF5 caches what it failed to read. Sizes stay those of the first time."""
        file, _ = open_for_reading(path)
        datasets = {name: file[name] for name in self._datasets}
        self._file.close()
        self._file, self._datasets = file, datasets

    def _find_damage(self, name: str, rounds: int) -> None:
        step = (self._datasets[name].chunks or (rounds,))[0]
        for first in range(0, rounds, step):
            try:
                self._read(name, (slice(first, min(first + step, rounds)),))
            except DAMAGE:
                since = self._kept["round"][first]
                self._problems.append(f"array {name!r} is damaged: rounds from {since} on cannot be read")
                self._good[name] = first
                return


def reason(error: BaseException) -> str:
    """Return the first line of an error's text from the operating system or h5py."""
    # An error of the system has its number as first argument, so prefer `strerror`.
    text = getattr(error, "strerror", None) or (str(error.args[0]) if error.args else "")
    return (text.splitlines() or [type(error).__name__])[0]


def is_absent(file: "h5py.File", name: str) -> bool:
    """Return True if the file has nothing of this name. If that cannot be read, the name counts as present."""
    try:
        return name not in file
    except DAMAGE:
        return False


def _unknown(name: str, kind: str) -> bytes | int | float:
    if kind == "S":
        return b"?"
    return -1 if name in ("own_domain", "rank") else math.nan


def _within(part: int | slice | NDArray[np.int64], size: int) -> int | slice | NDArray[np.int64]:
    """Turn an index for an axis of this length into one that is valid on a longer axis, too.

    Raises
    ------
    IndexError
        If a whole number is outside the axis.
    """
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        return slice(start, max(start, stop), step)
    return range(size)[int(part)] if np.ndim(part) == 0 else np.asarray(part)


def _outer(values: NDArray[Any], key: Key) -> NDArray[Any]:
    """Apply each index to its own axis alone, like h5py does."""
    # Start with the last axis because a whole number removes its axis.
    for axis in reversed(range(len(key))):
        values = values[(slice(None),) * axis + (key[axis],)]
    return values


def _attributes(file: "h5py.File", problems: list[str]) -> dict[str, str | int]:
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
    return value.decode() if isinstance(value, bytes) else int(value)


def _ranges(numbers: NDArray[np.int64]) -> str:
    """Format numbers as ranges, such as `3, 7 to 9`; at most five of them."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [str(piece[0]) if len(piece) == 1 else f"{piece[0]} to {piece[-1]}" for piece in pieces[:5]]
    return ", ".join(texts) + (" and more" if len(pieces) > 5 else "")
