"""Open an HDF5 file for reading even if its writer is active or was killed. It takes no lock and never waits.

HDF5's own mode for reading a growing file, `swmr=True`, repeats every failed read with growing pauses. On a damaged
file it therefore hangs for minutes, and a file whose writer was killed opens in no other mode. Both effects come from
one byte of the superblock, the consistency flags. This module reads the file through a view in which that byte is
cleared, like `h5clear -s` clears it in the file. If the writer is in the middle of a flush, the reader gets an error
at once and may try again.
"""

import io
import os
from pathlib import Path

from fedh2l_mpi.runtime.hdf5_superblock import (
    FLAGS_AT,
    SIGNATURE,
    SUPERBLOCK_BYTES,
    VERSION_AT,
    VERSION_WITH_FLAGS,
    clear_flags,
    end_of_file,
)
from fedh2l_mpi.runtime.safe_hdf5 import SafeFile, regular_bytes

ROOM_BYTES = 2**40


def open_for_reading(path: Path) -> tuple[SafeFile, bool]:
    """Return the open file, and True if its writer closed it.

    Raises
    ------
    OSError
        If the path is no regular file, or cannot be opened as HDF5.
    """
    import h5py

    file_bytes = regular_bytes(path)
    with path.open("rb") as file:
        superblock = file.read(SUPERBLOCK_BYTES)
    if not superblock.startswith(SIGNATURE):
        raise OSError("it does not begin as an HDF5 file does")
    if len(superblock) < SUPERBLOCK_BYTES or superblock[VERSION_AT] < VERSION_WITH_FLAGS:
        return SafeFile(h5py.File(path, "r", locking=False), file_bytes), True
    closed, whole = superblock[FLAGS_AT] == 0, file_bytes >= end_of_file(superblock)
    if closed and whole:
        return SafeFile(h5py.File(path, "r", locking=False), file_bytes), True
    return SafeFile(h5py.File(_View(path), "r"), file_bytes), closed


class _View(io.RawIOBase):
    """View of an HDF5 file as if its writer had closed it. Reading past the truncated end raises OSError."""

    def __init__(self, path: Path) -> None:
        self._descriptor, self._at = os.open(path, os.O_RDONLY), 0
        superblock = os.pread(self._descriptor, SUPERBLOCK_BYTES, 0)
        self._size = max(os.fstat(self._descriptor).st_size, end_of_file(superblock))
        if superblock[FLAGS_AT]:
            # The file may grow while it is read, and HDF5 refuses to read behind the end that it knows.
            self._size += ROOM_BYTES
        self._superblock = clear_flags(superblock, self._size if superblock[FLAGS_AT] else None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        count = os.preadv(self._descriptor, [view], self._at)
        if count < len(view):
            raise OSError(f"the file ends before byte {self._at + len(view)}")
        if self._at < SUPERBLOCK_BYTES:
            head = self._superblock[self._at : self._at + len(view)]
            view[: len(head)] = head
        self._at += len(view)
        return len(view)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
