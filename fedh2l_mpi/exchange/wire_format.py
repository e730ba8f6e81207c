"""Format of a message: its header and its size."""

import struct
from collections.abc import Iterable

MAGIC = b"FH2L"
VERSION = 2
# The fields: magic, version, codec, array name, number of senders, round, rows, columns, CRC-32 of senders and payload.
HEADER = struct.Struct("<4sHH16sIqIII")
# Each sender is listed by its participant number.
SENDER_BYTES = 4
# The header adds this to the codec's number if unchanged rows are skipped, because such a message has another layout.
SKIPPING = 2**8


def message_bytes(parts: Iterable[int]) -> int:
    """Return the size of a message with parts of these sizes, one for each sender [bytes]."""
    return HEADER.size + sum(SENDER_BYTES + part for part in parts)
