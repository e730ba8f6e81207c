"""What a message begins with, and how long it is."""

import struct
from collections.abc import Iterable

MAGIC = b"FH2L"
VERSION = 2
# magic, version, codec, name of the array, number of senders, round, rows, columns, CRC-32 of senders and payload
HEADER = struct.Struct("<4sHH16sIqIII")
# A participant's number.
SENDER_BYTES = 4
# Added to the codec's number in the header of a message without unchanged rows: these are laid out in another way.
SKIPPING = 2**8


def message_bytes(parts: Iterable[int]) -> int:
    """Size of a message with parts of these sizes, one for each sender [bytes]."""
    return HEADER.size + sum(SENDER_BYTES + part for part in parts)
