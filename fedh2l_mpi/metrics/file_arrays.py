"""Arrays of a metrics file in the shapes of the schema, read on access, however damaged the file is.

The file is open only while arrays are read, so that a program can hold any number of runs.
"""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics.columns import NO_COLUMNS, Columns
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.metrics.schema import ADDED, CONFIDENCE_BINS
from fedh2l_mpi.runtime.safe_hdf5 import RefusedError, SafeFile
from fedh2l_mpi.runtime.units import size

if TYPE_CHECKING:
    import h5py

# Errors that h5py raises on a damaged file, depending on the place of the damage.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)
Key = tuple[int | slice | NDArray[np.int64], ...]
# Larger arrays are not cached: they are read again on every access.
KEPT_BYTES = 2**24
# The writer may be in the middle of a flush, so a failed read of a growing file is repeated a moment later.
TRIES, RETRY_S = 10, 0.05


@dataclass(frozen=True)
class _Layout:
    """Shape, element type and chunks of an array when the file was first opened."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None

    @classmethod
    def of(cls, dataset: "h5py.Dataset") -> "_Layout":
        return cls(dataset.shape, dataset.dtype, dataset.chunks)


class FileArrays(Mapping[str, NDArray[Any]]):
    """Arrays of an open file in the shapes of the schema, even if the file's own shapes are wrong.

    Parameters
    ----------
    path : Path
        The file is opened from here again when arrays are read.
    file : SafeFile
        The open file; it is used by this call only, and left open.
    problems : list of str
        Gets a line for every damage.
    is_growing : bool
        True: the file is being written, so a read that fails is repeated a moment later.
    columns : Columns
        The run's own arrays, as the file declares them.

    Raises
    ------
    RefusedError
        If the arrays would be far larger than the file.
    """

    def __init__(
        self,
        path: Path,
        file: SafeFile,
        problems: list[str],
        is_growing: bool = False,
        columns: Columns = NO_COLUMNS,
    ) -> None:
        self._path, self._problems, self._is_growing = path, problems, is_growing
        self._dims, self._fields, self._scales = columns.dimensions, columns.fields, columns.scales
        self._lock = threading.RLock()
        self._file: SafeFile | None = file
        # Arrays of the open file that have been read from.
        self._datasets: dict[str, h5py.Dataset] = {}
        self._is_closed = False
        self._kept: dict[str, NDArray[Any]] = {}
        # Damaged arrays over rounds: the number of rounds that can be read before the damage.
        self._good: dict[str, int] = {}
        # Rows of the rounds that are present; None: all.
        self._present: NDArray[np.int64] | None = None
        # Arrays that are present; a damaged one is removed.
        self._found: dict[str, _Layout] = {}
        # Arrays that an earlier version, which wrote the file, did not record.
        self.unknown: set[str] = set()
        for name in (*(scale.name for scale in self._scales), *self._dims):
            self._find(file, name)
        found = self._found
        self._sizes = {scale.name: self._size(scale.name) for scale in self._scales}
        self._sizes["endpoint"] = 2
        growing = [name for name, dims in self._dims.items() if dims[0] == "round"]
        # A kill inside a flush may leave the arrays a round apart, so only rounds that all of them have count.
        lengths = [found[name].shape[0] for name in ("round", *growing) if name in found]
        edges = [found[name].shape[0] for name in ("graph_edges", "graph_since_round") if name in found]
        self._sizes |= {"round": min(lengths, default=0), "edge": min(edges, default=0)}
        self._check_shapes()
        self._check_total(file.largest_bytes)
        self._present, rounds_R = self._rounds()
        self._sizes["round"] = len(rounds_R)
        self._kept |= {scale.name: np.arange(self._sizes[scale.name]) for scale in self._scales}
        self._kept["round"] = rounds_R
        self._forget_file()

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in self._kept:
            return self._kept[name]
        if name not in self._dims:
            raise KeyError(name)
        values = self.part(name, ())
        if values.nbytes <= KEPT_BYTES:
            self._kept[name] = values
        return values

    def __iter__(self) -> Iterator[str]:
        yield from (scale.name for scale in self._scales)
        yield from self._dims

    def __len__(self) -> int:
        return len(self._scales) + len(self._dims)

    def close(self) -> None:
        """Forget the file: arrays that were not read before cannot be read any more."""
        self._is_closed = True

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the file open inside the block, so that reading many arrays opens it once.

        Raises
        ------
        UserError
            If the file cannot be opened any more.
        """
        with self._lock:
            if self._file is not None:
                yield
                return
            try:
                self._file, _ = open_for_reading(self._path)
            except DAMAGE as error:
                raise UserError(f"{self._path}: cannot be read as HDF5: {reason(error)}") from None
            try:
                yield
            finally:
                self._file.close()
                self._forget_file()

    def _forget_file(self) -> None:
        self._file, self._datasets = None, {}

    def part(self, name: str, key: Key) -> NDArray[Any]:
        """Return `self[name][key]`, as described in `RunMetrics.part`."""
        if name in self._kept:
            return outer(self._kept[name], key)
        dims, kind = self._dims[name], self._fields[name].dtype[0]
        shape = tuple(self._sizes[dim] for dim in dims)
        key = tuple(_within(part, size) for part, size in zip((*key, *[slice(None)] * len(shape)), shape, strict=False))
        if name in self._found:
            if self._is_closed:
                raise RuntimeError(f"array {name!r} cannot be read: the run's file has been closed. Open it again.")
            with self.opened():
                return self._readable_part(name, key, shape)
        return np.array(outer(np.broadcast_to(_unknown(name, kind), shape), key))

    def _readable_part(self, name: str, key: Key, shape: tuple[int, ...]) -> NDArray[Any]:
        """Read what can be read of a part of an array that is present; the rest is unknown."""
        dims, kind = self._dims[name], self._fields[name].dtype[0]
        if name not in self._good:
            try:
                return self._read_patiently(name, key) if self._is_growing else self._read(name, key)
            except UserError:
                raise
            except DAMAGE as error:
                if dims[0] == "round":
                    self._find_damage(name, shape[0])
                else:
                    self._problems.append(f"array {name!r} is damaged: {reason(error)}")
                    del self._found[name]
        unknown = np.broadcast_to(_unknown(name, kind), shape)
        rows = np.arange(shape[0])[key[0]]
        readable = rows < self._good.get(name, shape[0] if name in self._found else 0)
        if not readable.any():
            return np.array(outer(unknown, key))
        if rows.ndim == 0:
            return self._read(name, key)
        # Rows ascend, so those that can be read come first.
        return np.concatenate(
            [self._read(name, (rows[readable], *key[1:])), outer(unknown, (rows[~readable], *key[1:]))]
        )

    def is_whole(self, name: str) -> bool:
        """Return True if an array is present and undamaged so far, as described in `RunMetrics.is_whole`."""
        return name in self._found and name not in self._good

    def _find(self, file: SafeFile, name: str) -> None:
        try:
            layout = _Layout.of(file[name])
            # This fails for a scalar.
            _ = layout.shape[0]
        except DAMAGE as error:
            if name in ADDED and is_absent(file, name):
                self.unknown.add(name)
            else:
                self._problems.append(f"array {name!r} is missing or damaged: {reason(error)}")
        else:
            self._found[name] = layout

    def _size(self, scale: str) -> int:
        """Return the length of a dimension: that of its scale or, if the scale is damaged, that of most arrays."""
        lengths = [
            self._found[name].shape[dims.index(scale)]
            for name, dims in self._dims.items()
            if scale in dims and name in self._found and len(self._found[name].shape) == len(dims)
        ]
        if scale in self._found:
            own = self._found[scale].shape[0]
            # A kill may leave a growing scale longer than its arrays.
            if scale in ("round", "edge") or own <= max(lengths, default=own):
                return own
            most = max(lengths)
            self._problems.append(f"array {scale!r} is damaged: it has {own:,} entries, but its arrays have {most:,}")
        if scale == "bin":
            return CONFIDENCE_BINS
        return max(set(lengths), key=lengths.count) if lengths else 0

    def _check_total(self, largest_bytes: int) -> None:
        """Raise RefusedError if all arrays together, with those that are unknown, are far larger than the file."""
        total = sum(
            (self._found[name].dtype.itemsize if name in self._found else 8)
            * math.prod(self._sizes[dim] for dim in dims)
            for name, dims in self._dims.items()
        )
        if total > largest_bytes:
            raise RefusedError(f"it declares arrays of {size(total)}, which is far more than the file has")

    def _check_shapes(self) -> None:
        for name, dims in self._dims.items():
            if name not in self._found:
                continue
            dataset = self._found[name]
            wanted = tuple(self._sizes[dim] for dim in dims)
            # After a kill, growing arrays may be longer than the others, so their first axis is not compared.
            fixed = 1 if dims[0] in ("round", "edge") else 0
            if dataset.dtype.kind != self._fields[name].dtype[0] or dataset.shape[fixed:] != wanted[fixed:]:
                expected = f"{self._fields[name].dtype} {wanted}"
                self._problems.append(f"array {name!r} is {dataset.dtype} {dataset.shape}, but must be {expected}")
                del self._found[name]

    def _rounds(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Return the rows of the rounds that are present (None: all), and the numbers of these rounds."""
        expected = np.arange(self._sizes["round"])
        if "round" not in self._found:
            return None, expected
        try:
            numbers = np.asarray(self._dataset("round")[: len(expected)], dtype=np.int64)
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
        dataset, rows = self._dataset(name), key[0]
        if self._dims[name][0] == "round" and self._present is not None:
            rows = self._present[rows]
        arrays = sum(isinstance(part, np.ndarray) and part.ndim > 0 for part in (rows, *key[1:]))
        if not isinstance(rows, np.ndarray) or rows.ndim == 0 or (arrays == 1 and len(rows)):
            return np.asarray(dataset[(rows, *key[1:])])
        # h5py allows one array among the indices, and another axis has it, so read the whole span of the rows.
        first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
        return np.asarray(dataset[(slice(first, last + 1), *key[1:])])[rows - first]

    def _dataset(self, name: str) -> "h5py.Dataset":
        """Return an array of the open file, which may be another one than before: a job that resumes replaces it."""
        if name in self._datasets:
            return self._datasets[name]
        if self._file is None:
            raise RuntimeError("the file is not open")
        dataset, first = self._file[name], self._found[name]
        if dataset.dtype != first.dtype or dataset.shape[1:] != first.shape[1:] or len(dataset) < self._least(name):
            raise UserError(f"{self._path}: the file has changed since it was opened. Open it again.")
        self._datasets[name] = dataset
        return dataset

    def _least(self, name: str) -> int:
        """Return the length that an array's first axis must have for the rows that were present at first."""
        dim = self._dims.get(name, (name,))[0]
        rows = self._sizes[dim]
        return int(self._present[-1]) + 1 if dim == "round" and self._present is not None and rows else rows

    def _read_patiently(self, name: str, key: Key) -> NDArray[Any]:
        """Read from a file that is being written; after a failure, open the file again and repeat."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(*DAMAGE):
                return self._read(name, key)
            time.sleep(RETRY_S)
            with contextlib.suppress(*DAMAGE):
                # HDF5 caches what it failed to read.
                file, _ = open_for_reading(self._path)
                old, self._file, self._datasets = self._file, file, {}
                if old is not None:
                    old.close()
        # The writer was killed in the middle of a flush, so waiting for other arrays is useless.
        self._is_growing = False
        return self._read(name, key)

    def _find_damage(self, name: str, rounds: int) -> None:
        step = (self._found[name].chunks or (rounds,))[0]
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


def is_absent(file: SafeFile, name: str) -> bool:
    """Return True if the file has nothing of this name. If that cannot be read, the name counts as present."""
    try:
        return name not in file
    except DAMAGE:
        return False


def _unknown(name: str, kind: str) -> bytes | int | float:
    if kind == "S":
        return b"?"
    return -1 if name in ("own_domain", "rank", "confusion") else math.nan


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


def outer(values: NDArray[Any], key: Key) -> NDArray[Any]:
    """Apply each index to its own axis alone, like h5py does."""
    # Start with the last axis because a whole number removes its axis.
    for axis in reversed(range(len(key))):
        values = values[(slice(None),) * axis + (key[axis],)]
    return values


def _ranges(numbers: NDArray[np.int64]) -> str:
    """Format numbers as ranges, such as `3, 7 to 9`; at most five of them."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [str(piece[0]) if len(piece) == 1 else f"{piece[0]} to {piece[-1]}" for piece in pieces[:5]]
    return ", ".join(texts) + (" and more" if len(pieces) > 5 else "")
