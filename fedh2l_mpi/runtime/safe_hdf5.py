"""Open HDF5 files from anybody: only plain arrays and attributes that lie in the file itself can be read.

An HDF5 file may name other files: by external and soft links, raw external storage, virtual data sets, and references.
Reading such an array shows the reader's own files, or waits forever for a named pipe. A file may also declare arrays
that are far larger than the file. Every module of this package that reads HDF5 uses `SafeFile`.

HDF5 itself is a C library, and this module does not protect against its faults. `dims[axis].values()` follows
references through the global heap, where a damaged file makes HDF5 loop forever; use it only in a process of its own.
"""

import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py

# An array may be this much larger than its file: rows that were never written and compression take little room.
FREE_BYTES, COMPRESSION = 2**26, 64
# Longest text in an array, and largest attribute [bytes]. A config is an attribute.
TEXT_BYTES, ATTRIBUTE_BYTES = 2**16, 2**24
# Filters that HDF5 and h5py contain: deflate, shuffle, checksum, szip, nbit, scaleoffset, lzf. HDF5 would load others
# from a folder of plugins.
FILTERS = (1, 2, 3, 4, 5, 6, 32000)


class RefusedError(ValueError):
    """Error of an array or attribute that is not read, because it is not plain data inside its file."""


class SafeFile(Mapping[str, "h5py.Dataset"]):
    """An open HDF5 file, as a mapping from names to the arrays of its root group.

    Parameters
    ----------
    file : h5py.File
        Open for reading. This object closes it.
    file_bytes : int
        Size of the file on the disk, which bounds the sizes of the arrays.
    """

    def __init__(self, file: "h5py.File", file_bytes: int) -> None:
        self._file, self._bytes = file, file_bytes

    def __getitem__(self, name: str) -> "h5py.Dataset":
        """Return an array.

        Raises
        ------
        KeyError
            If there is nothing of this name.
        RefusedError
            If it is a link, a group, stored outside the file, larger than the file can hold, or of a type that is
            neither a number nor a text of fixed length.
        """
        import h5py

        place = _encoded(name)
        if name not in self:
            raise KeyError("the file has nothing of this name")
        if self._file.id.links.get_info(place).type != h5py.h5l.TYPE_HARD:
            raise RefusedError("it is a link to another place, which is not followed")
        found = h5py.h5o.open(self._file.id, place)
        if not isinstance(found, h5py.h5d.DatasetID):
            raise RefusedError("it is no array")
        _check_storage(found)
        dataset = h5py.Dataset(found)
        _check_size(dataset, self.largest_bytes)
        return dataset

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        # h5py's own test opens what a link points to.
        return isinstance(name, str) and bool(self._file.id.links.exists(_encoded(name)))

    def __bool__(self) -> bool:
        """Return True until the file is closed."""
        return bool(self._file)

    def __enter__(self) -> "SafeFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def attrs(self) -> "SafeAttributes":
        """Attributes of the file."""
        return SafeAttributes(self._file)

    @property
    def largest_bytes(self) -> int:
        """Largest size that this file's arrays may have together [bytes]."""
        return FREE_BYTES + COMPRESSION * self._bytes

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SafeAttributes(Mapping[str, Any]):
    """Attributes of a file or an array: numbers and texts of fixed length, as h5py returns them."""

    def __init__(self, owner: "h5py.File | h5py.Dataset") -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        """Return the value of an attribute.

        Raises
        ------
        KeyError
            If there is no such attribute.
        RefusedError
            If it is neither a number nor a text of fixed length, or larger than ATTRIBUTE_BYTES.
        """
        import h5py

        attribute = h5py.h5a.open(self._owner.id, _encoded(name))
        _check_type(attribute.get_type())
        if attribute.get_storage_size() > ATTRIBUTE_BYTES:
            raise RefusedError(f"it has more than {ATTRIBUTE_BYTES:,} bytes")
        return self._owner.attrs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner.attrs)

    def __len__(self) -> int:
        return len(self._owner.attrs)


def open_file(path: Path) -> SafeFile:
    """Open a closed HDF5 file for reading, without a lock, which some file systems lack.

    Raises
    ------
    OSError
        If it is not a regular file, or cannot be opened as HDF5.
    """
    import h5py

    file_bytes = regular_bytes(path)
    return SafeFile(h5py.File(path, "r", locking=False), file_bytes)


def regular_bytes(path: Path) -> int:
    """Return the size of a regular file [bytes].

    Raises
    ------
    OSError
        If it is a device, a pipe or a folder. Opening a pipe would wait forever.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status.st_size


def _check_storage(dataset: "h5py.h5d.DatasetID") -> None:
    """Raise RefusedError if HDF5 would open another file, or load a program, to read an array."""
    import h5py

    layout = dataset.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        raise RefusedError("it is a virtual array, made of other files")
    if layout.get_external_count():
        raise RefusedError("its values are stored outside the file")
    unknown = [code for code in (layout.get_filter(i)[0] for i in range(layout.get_nfilters())) if code not in FILTERS]
    if unknown:
        raise RefusedError(f"it is compressed by the unknown filter {unknown[0]}")
    _check_type(dataset.get_type())


def _check_type(kind: "h5py.h5t.TypeID") -> None:
    """Raise RefusedError for references, texts of variable length, compounds and the like."""
    import h5py

    is_text = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
    if not is_text and kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        raise RefusedError("it is neither a number nor a text of fixed length")


def _check_size(dataset: "h5py.Dataset", largest_bytes: int) -> None:
    """Raise RefusedError if an array, or one of its chunks, which HDF5 reads whole, is larger than allowed."""
    if dataset.shape is None:
        raise RefusedError("it has no shape")
    item_bytes = dataset.dtype.itemsize
    if dataset.dtype.kind == "S" and item_bytes > TEXT_BYTES:
        raise RefusedError(f"its texts have {item_bytes:,} bytes, but at most {TEXT_BYTES:,} are allowed")
    declared = item_bytes * max(math.prod(dataset.shape), math.prod(dataset.chunks or (0,)))
    if declared > largest_bytes:
        raise RefusedError(f"it declares {declared:,} bytes, which is far more than the file has")


def _encoded(name: str) -> bytes:
    """Return a name as HDF5 stores it; a name in the file need not be UTF-8."""
    return name.encode(errors="surrogateescape")
