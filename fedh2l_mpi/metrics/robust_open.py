"""Open an HDF5 file for reading even if its writer is active or was killed. It takes no lock and never waits.

HDF5's own mode for reading a growing file, `swmr=True`, repeats every failed read with growing pauses. On a damaged
file it therefore hangs for minutes, and a file whose writer was killed opens in no other mode. Both effects come from
one byte of the superblock, the consistency flags. This module reads the file through a view in which that byte is
cleared, like `h5clear -s` clears it in the file. If the writer is in the middle of a flush, the reader gets an error
at once and may try again.

Source: HDF5 File Format Specification 3.0, section II.A (superblock versions 2 and 3).
"""

import io
import os
import struct
from pathlib import Path

from fedh2l_mpi.runtime.safe_hdf5 import SafeFile, regular_bytes

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_BYTES = 48
FLAGS_AT, END_AT = 11, 28
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
    if len(superblock) < SUPERBLOCK_BYTES or superblock[8] < 3:
        return SafeFile(h5py.File(path, "r", locking=False), file_bytes), True
    closed, whole = superblock[FLAGS_AT] == 0, file_bytes >= _end(superblock)
    if closed and whole:
        return SafeFile(h5py.File(path, "r", locking=False), file_bytes), True
    return SafeFile(h5py.File(_View(path), "r"), file_bytes), closed


class _View(io.RawIOBase):
    """View of an HDF5 file as if its writer had closed it. Reading past the truncated end raises OSError."""

    def __init__(self, path: Path) -> None:
        self._descriptor, self._at = os.open(path, os.O_RDONLY), 0
        superblock = os.pread(self._descriptor, SUPERBLOCK_BYTES, 0)
        self._size = max(os.fstat(self._descriptor).st_size, _end(superblock))
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


def _end(superblock: bytes) -> int:
    """Return the end of the file as the superblock records it [bytes]; 0 if the superblock is damaged."""
    if struct.unpack("<I", superblock[-4:])[0] != lookup3(superblock[:-4]):
        return 0
    return int(struct.unpack("<Q", superblock[END_AT : END_AT + 8])[0])


def clear_flags(superblock: bytes, end: int | None = None) -> bytes:
    """Return a superblock of version 3 (48 bytes) with its flags cleared. A damaged one is returned unchanged.

    Parameters
    ----------
    end : int or None
        New end of the file [bytes]. None: keep the recorded one.
    """
    body, checksum = superblock[:-4], superblock[-4:]
    if struct.unpack("<I", checksum)[0] != lookup3(body):
        return superblock
    body = body[:FLAGS_AT] + b"\0" + body[FLAGS_AT + 1 :]
    if end is not None:
        body = body[:END_AT] + struct.pack("<Q", end) + body[END_AT + 8 :]
    return body + struct.pack("<I", lookup3(body))


def lookup3(data: bytes) -> int:
    """Return Jenkins' hash `hashlittle`, started from 0, 32 bits: the checksum of HDF5's metadata.

    Source: R. Jenkins, lookup3.c, 2006.
    """
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    rest = data
    while len(rest) > 12:
        a, b, c = (x + y for x, y in zip((a, b, c), struct.unpack("<3I", rest[:12]), strict=True))
        for shift in (4, 6, 8, 16, 19, 4):
            # One line of Jenkins' mix: x -= z; x ^= rot(z, shift); z += y. Then the variables swap their roles.
            a = ((a - c) & 0xFFFFFFFF) ^ _rotated(c & 0xFFFFFFFF, shift)
            c = (c + b) & 0xFFFFFFFF
            a, b, c = b & 0xFFFFFFFF, c, a
        rest = rest[12:]
    if rest:
        a, b, c = (x + y for x, y in zip((a, b, c), struct.unpack("<3I", rest.ljust(12, b"\0")), strict=True))
        a, b, c = a & 0xFFFFFFFF, b & 0xFFFFFFFF, c & 0xFFFFFFFF
        for shift in (14, 11, 25, 16, 4, 14, 24):
            # One line of his final mix: x ^= y; x -= rot(y, shift), on c, a, b in turn.
            c = ((c ^ b) - _rotated(b, shift)) & 0xFFFFFFFF
            a, b, c = b, c, a
        # After seven swaps of three roles, the value of c is in b.
        c = b
    return c


def _rotated(value: int, shift: int) -> int:
    return (value << shift | value >> (32 - shift)) & 0xFFFFFFFF
