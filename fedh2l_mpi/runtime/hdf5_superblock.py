"""Superblock of an HDF5 file: its first 48 bytes, with the consistency flags and the end of the file.

The flags say that a writer has the file open. A file whose flags are set opens in no ordinary mode.

Source: HDF5 File Format Specification 3.0, section II.A (superblock versions 2 and 3).
"""

import struct

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_BYTES = 48
VERSION_AT, FLAGS_AT, END_AT = 8, 11, 28
# The first version that has flags.
VERSION_WITH_FLAGS = 3


def end_of_file(superblock: bytes) -> int:
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
