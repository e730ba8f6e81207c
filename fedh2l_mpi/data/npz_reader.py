"""Reader of data in one NumPy file (.npz), read by row, without executing anything in it.

The arrays are `x_train`, `y_train`, `x_test`, `y_test`, or `x`, `y` without a test part, and with domains of their own
`domain_train`, `domain_test`, or `domain`. Members that `numpy.savez` wrote are sought; those of
`numpy.savez_compressed` are streamed, and a table remembers its place in the stream.

Shape letters: N rows, X the axes of one sample.
"""

import ast
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config.data_files import Npz
from fedh2l_mpi.data import statistics
from fedh2l_mpi.data.array_form import ArrayForm, form_of
from fedh2l_mpi.data.class_labels import numbered
from fedh2l_mpi.data.sources import PIECE_BYTES, NaturalDomains, Source, located
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.runtime import paths

NAMES = ("x_train", "y_train", "x_test", "y_test", "domain_train", "domain_test", "x", "y", "domain")
WANTED = "a .npz file with x_train, y_train, x_test, y_test, or x, y (numpy.savez writes it)"
LONGEST_HEADER = 10_000
# Deflate makes at most about 1,032 bytes of one: a member that claims more is no member.
MOST_INFLATED = 1100
# A text of a label or domain is short, and its type says how much every row takes.
LONGEST_ITEM_BYTES = 1024


class Header(NamedTuple):
    """Type and shape of a member, and where its values begin [bytes]: in the file, or in the stream if compressed."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    begin: int
    is_stored: bool

    @property
    def row_bytes(self) -> int:
        """Size of one row [bytes]."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class NpzArray:
    """One array of a .npz file, of which rows are read."""

    path: Path
    name: str
    header: Header
    # Position and open stream of a compressed member: statistics read its rows in order, piece by piece.
    _place: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows in the order asked for, (len(rows), ...) of the array's type."""
        header = self.header
        if header.is_stored:
            order = "F" if header.is_fortran else "C"
            with _reading(self.path, self.name):
                mapped = np.memmap(self.path, header.dtype, "r", header.begin, header.shape, order)  # type: ignore[call-overload]
                return np.asarray(mapped[rows])
        wanted, where = np.unique(rows, return_inverse=True)
        picked = np.empty((len(wanted), *header.shape[1:]), dtype=header.dtype)
        piece = max(1, PIECE_BYTES // max(1, header.row_bytes))
        taken = 0
        with _reading(self.path, self.name):
            while taken < len(wanted):
                first = self._stream_at(int(wanted[taken]))
                count = min(piece, header.shape[0] - first)
                block = np.frombuffer(self._next(count), dtype=header.dtype).reshape(count, *header.shape[1:])
                until = int(np.searchsorted(wanted, first + count))
                picked[taken:until] = block[wanted[taken:until] - first]
                taken = until
        return picked[where]

    def everything(self) -> NDArray[Any]:
        """Return the whole array, which is one of labels or domains."""
        return self.rows(np.arange(self.header.shape[0]))

    def verify(self) -> None:
        """Read the whole member, whose end has its checksum."""
        with (
            _reading(self.path, self.name),
            zipfile.ZipFile(self.path) as file,
            file.open(f"{self.name}.npy") as member,
        ):
            while member.read(PIECE_BYTES):
                pass

    def _stream_at(self, row: int) -> int:
        """Move the stream to a row that is not before its place, else open it again; return the row."""
        if self._place.get("row", row + 1) > row:
            self.close()
            file = zipfile.ZipFile(self.path)
            self._place.update(row=0, file=file, stream=file.open(f"{self.name}.npy"))
            self._place["stream"].read(self.header.begin)
        while (behind := row - self._place["row"]) > 0:
            self._next(min(behind, max(1, PIECE_BYTES // max(1, self.header.row_bytes))))
        return row

    def _next(self, count: int) -> bytes:
        """Read the next rows of the stream."""
        wanted = count * self.header.row_bytes
        content: bytes = self._place["stream"].read(wanted)
        if len(content) != wanted:
            raise EOFError(f"ends {wanted - len(content)} bytes too early")
        self._place["row"] += count
        return content

    def close(self) -> None:
        """Close the stream, if it is open."""
        for name in ("stream", "file"):
            if name in self._place:
                self._place.pop(name).close()
        self._place.clear()


@dataclass(frozen=True)
class NpzTable:
    """The samples of a .npz file."""

    labels: NDArray[np.int64]
    array: NpzArray
    form: ArrayForm

    @property
    def reads_pieces(self) -> bool:
        """True if the member is not compressed."""
        return self.array.header.is_stored

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the samples of `rows`, (len(rows), X): uint8 images, float32 values or int64 token ids."""
        values = self.form.samples(self.array.rows(rows))
        wrong = self.form.first_wrong(values)
        if wrong is not None:
            raise UserError(f"{self.array.path}: {self.array.name}: row {rows[wrong[0]]} (from 0) {wrong[1]}.")
        return values

    def verify(self) -> None:
        """Read everything once, and check it."""
        self.array.verify()
        step = max(1, PIECE_BYTES // max(1, self.array.header.row_bytes))
        everything = np.arange(len(self.labels))
        for piece in np.split(everything, range(step, len(everything), step)):
            self.samples(piece)


def open_npz(data: Npz) -> Source:
    """Open the arrays of `data.root`.

    Raises
    ------
    UserError
        If there is no such file, it is damaged, or its arrays do not fit together.
    """
    where, path = located(data.root, "data.npz", WANTED)
    if not paths.is_file(where, path):
        raise UserError(f"{where}: there is no file {path}. It must be {WANTED}.")
    arrays = _arrays(path)
    with_test = _has_test(path, list(arrays))
    suffixes = ("_train", "_test") if with_test else ("",)
    tables = [f"x{suffix}" for suffix in suffixes]
    for suffix in suffixes:
        _check_rows(arrays, suffix)
    first = arrays[tables[0]]
    vocabulary = _vocabulary([arrays[name] for name in tables]) if data.samples == "tokens" else None
    form, *others = [
        form_of(
            f"{path}: {name}",
            arrays[name].header.shape[1:],
            arrays[name].header.dtype,
            data.samples,
            vocabulary,
            data.channels,
        )
        for name in tables
    ]
    for name, other in zip(tables[1:], others, strict=True):
        both = [array.header for array in (first, arrays[name])]
        if other != form or (both[0].dtype == np.uint8) != (both[1].dtype == np.uint8):
            words = " and ".join(f"{one.dtype} {one.shape[1:]}" for one in both)
            raise UserError(f"{path}: samples of {tables[0]} and {name} differ: {words}. They must be alike.")
    labels = numbered(_pair(path, "y", suffixes), *_values(arrays, "y", suffixes), least=2)
    train = NpzTable(labels.train, first, form)
    test = None if labels.test is None else NpzTable(labels.test, arrays["x_test"], form)
    natural = None
    if f"domain{suffixes[0]}" in arrays:
        domains = numbered(_pair(path, "domain", suffixes), *_values(arrays, "domain", suffixes), least=1)
        natural = NaturalDomains(domains.names, domains.train, domains.test)
    is_compact = form.form.kind == "image" and first.header.dtype == np.uint8
    full_scale = 255.0 if is_compact else 1.0
    rows = statistics.training_rows(labels.train, natural, None if with_test else data.share_for_testing)
    mean, std = statistics.of_rows(train, rows, form.form, full_scale)
    first.close()
    return Source(
        "npz",
        len(labels.names),
        form.form,
        full_scale,
        mean,
        std,
        train=train,
        test=test,
        domains=natural,
        is_compact=is_compact,
        class_names=labels.class_names,
        details=(("file", str(path)),),
    )


def _arrays(path: Path) -> dict[str, NpzArray]:
    """Return the arrays that the reader knows by name, with their headers, before any of their values is read."""
    with _reading(path, ""), zipfile.ZipFile(path) as file:
        members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        return {name: NpzArray(path, name, _header(path, file, members[name])) for name in NAMES if name in members}


def _header(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    """Read the type and shape of a member, and check that it has as many bytes as they need."""
    name = info.filename
    if info.flag_bits & 1:
        raise UserError(f"{path}: {name} is encrypted.")
    with file.open(info) as opened:
        stream = cast(BinaryIO, opened)
        head = stream.read(8)
        if head[:6] != b"\x93NUMPY" or head[6:7] not in (b"\x01", b"\x02", b"\x03"):
            raise UserError(f"{path}: {name} is no NumPy array.")
        width = 2 if head[6] == 1 else 4
        size = int.from_bytes(stream.read(width), "little")
        if size > LONGEST_HEADER:
            raise UserError(f"{path}: {name} is damaged: its header has {size} bytes. Allowed: {LONGEST_HEADER:,}.")
        text = stream.read(size).decode("latin1")
    values = _parsed(text)
    if values is None:
        raise UserError(f"{path}: {name} is damaged: its header is {text.strip()[:80]!r}.")
    descr, is_fortran, shape = values
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError, SyntaxError):
        raise UserError(f"{path}: {name} is damaged: its type is {str(descr)[:80]!r}.") from None
    if dtype.hasobject:
        # Objects are stored as a pickle, which could execute anything.
        raise UserError(
            f"{path}: {name} has Python objects (type {dtype}), which are refused, because reading them can execute "
            "code. Fix: save an array of numbers, with rows of equal length, or of texts (dtype=str)."
        )
    if dtype.itemsize > LONGEST_ITEM_BYTES or dtype.itemsize == 0 or dtype.names:
        raise UserError(f"{path}: {name} is of type {str(dtype)[:80]}. Allowed: numbers and short texts.")
    if not shape or shape[0] == 0:
        raise UserError(f"{path}: {name} has the shape {shape}. It must have at least one row.")
    claimed, begin = math.prod(shape) * dtype.itemsize, 8 + width + size
    if begin + claimed != info.file_size:
        raise UserError(
            f"{path}: {name} is damaged: its header claims {claimed} bytes of {shape} {dtype}, but it has "
            f"{info.file_size - begin}."
        )
    is_stored = info.compress_type == zipfile.ZIP_STORED
    if info.file_size > (1 if is_stored else MOST_INFLATED) * info.compress_size + (0 if is_stored else 1 << 16):
        raise UserError(f"{path}: {name} claims {info.file_size} bytes of {info.compress_size}. The file is damaged.")
    if is_fortran and not is_stored and len(shape) > 1:
        raise UserError(
            f"{path}: {name} is compressed in Fortran order, so its rows cannot be read one by one. Fix: save "
            "numpy.ascontiguousarray of it."
        )
    if is_stored:
        begin += _begin_of_member(path, info)
    return Header(dtype, shape, is_fortran, begin, is_stored)


def _parsed(text: str) -> tuple[Any, bool, tuple[int, ...]] | None:
    """Return the values of a header, which is a Python literal; None if they are no header's."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(values, dict) or set(values) != {"descr", "fortran_order", "shape"}:
        return None
    shape, order = values["shape"], values["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(axis) is int and axis >= 0 for axis in shape):
        return None
    return (values["descr"], order, shape) if isinstance(order, bool) else None


def _begin_of_member(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored member begin in the file: after its local header of 30 bytes and two texts."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30:
            raise EOFError("ends too early")
        name, extra = struct.unpack("<HH", local[26:30])
        begin = info.header_offset + 30 + int(name) + int(extra)
        if begin + info.file_size > file.seek(0, io.SEEK_END):
            raise EOFError("ends too early")
    return begin


def _has_test(path: Path, names: list[str]) -> bool:
    """Return True for x_train and the like, False for x and y; raise UserError if arrays are missing."""
    for needed, answer in ((("x_train", "y_train", "x_test", "y_test"), True), (("x", "y"), False)):
        present = [name for name in needed if name in names]
        if len(present) == len(needed):
            suffixes = ("_train", "_test") if answer else ("",)
            domains = [f"domain{suffix}" for suffix in suffixes]
            given = [name for name in domains if name in names]
            if given and given != domains:
                raise UserError(f"{path}: has {given[0]}, but not {(set(domains) - set(given)).pop()}.")
            return answer
        if present:
            missing = ", ".join(name for name in needed if name not in names)
            way_out = " Without a test part, call them x and y." if answer else ""
            raise UserError(f"{path}: has {', '.join(present)}, but not {missing}.{way_out}")
    with zipfile.ZipFile(path) as file:
        members = [info.filename.removesuffix(".npy") for info in file.infolist()]
    near = did_you_mean(members[0], NAMES) if members else ""
    raise UserError(f"{path}: has {', '.join(members[:6]) or 'no array'}{near}. It must be {WANTED}.")


def _check_rows(arrays: dict[str, NpzArray], suffix: str) -> None:
    x = arrays[f"x{suffix}"]
    for kind in ("y", "domain"):
        other = arrays.get(f"{kind}{suffix}")
        if other is not None and other.header.shape[0] != x.header.shape[0]:
            raise UserError(
                f"{x.path}: {x.name} has {x.header.shape[0]} rows, but {other.name} has {other.header.shape[0]}."
            )
        if other is not None and math.prod(other.header.shape[1:]) != 1:
            raise UserError(
                f"{x.path}: {other.name} has the shape {other.header.shape}. Allowed: one value for each row."
            )


def _vocabulary(arrays: list[NpzArray]) -> int:
    """Return the number of token ids: one more than the largest in the file."""
    largest = 0
    for array in arrays:
        if array.header.dtype.kind not in "iu":
            raise UserError(
                f"{array.path}: {array.name} is of type {array.header.dtype}, but data.samples is tokens. Token ids "
                "must be integers."
            )
        step = max(1, PIECE_BYTES // max(1, array.header.row_bytes))
        for first in range(0, array.header.shape[0], step):
            values = array.rows(np.arange(first, min(first + step, array.header.shape[0])))
            if values.min() < 0:
                row = first + int(np.flatnonzero((values < 0).reshape(len(values), -1).any(axis=1))[0])
                raise UserError(f"{array.path}: {array.name}: row {row} (from 0) has a negative token id.")
            largest = max(largest, int(values.max()))
    return largest + 1


def _pair(path: Path, kind: str, suffixes: tuple[str, ...]) -> tuple[str, str]:
    """Return the names of an array of both parts, for messages."""
    return f"{path}: {kind}{suffixes[0]}", f"{path}: {kind}{suffixes[-1]}"


def _values(
    arrays: dict[str, NpzArray], kind: str, suffixes: tuple[str, ...]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the labels or domains of both parts; None without a test part."""
    train, *test = [arrays[f"{kind}{suffix}"].everything().reshape(-1) for suffix in suffixes]
    return train, test[0] if test else None


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """Raise any error in reading the file as a UserError."""
    what = f"{path}: {name}: " if name else f"{path}: "
    try:
        yield
    except zipfile.BadZipFile as error:
        raise UserError(f"{what}cannot be read as a .npz file: {error}. It must be {WANTED}.") from None
    except (EOFError, zlib.error, ValueError, NotImplementedError, RuntimeError, KeyError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}cannot be read, the file is damaged: {error}.") from None
    except OSError as error:
        raise UserError(f"{what}cannot be read: {error.strerror or error}.") from None
