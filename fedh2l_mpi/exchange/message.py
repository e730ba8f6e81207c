"""Message between two ranks: a header, the list of senders, and their parts in one buffer, without pickling."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.exchange import codecs
from fedh2l_mpi.exchange.array_spec import ArraySpec
from fedh2l_mpi.exchange.row_skipping import Rows
from fedh2l_mpi.exchange.wire_format import HEADER, MAGIC, SENDER_BYTES, SKIPPING, VERSION


class Message:
    """Message with its buffer, which is used again in every round.

    Attributes
    ----------
    buffer : uint8 (message_bytes,)
        Memory for the largest possible message.
    nbytes : int
        Size of the message since it was last filled [bytes].
    part_bytes : list of int
        Size of each sender's part since the message was last filled or opened [bytes].
    """

    def __init__(self, senders: Sequence[int], array: ArraySpec) -> None:
        self.senders, self.array = list(senders), array
        self.shape = (len(self.senders), array.rows, array.columns)
        self.buffer = np.zeros(array.message_bytes(len(self.senders)), dtype=np.uint8)
        self._begin = HEADER.size + SENDER_BYTES * len(self.senders)
        self._listed: NDArray[np.int32] = self.buffer[HEADER.size : self._begin].view(np.int32)
        self.nbytes = self.buffer.nbytes
        self.part_bytes: list[int] = []
        self._number = array.codec.number + (0 if array.skip_below is None else SKIPPING)

    @property
    def wire(self) -> NDArray[np.uint8]:
        """The part of the buffer that is sent."""
        return self.buffer[: self.nbytes]

    def fill(self, encoded: Mapping[int, NDArray[np.uint8]]) -> None:
        """Write each sender's part, one after the other."""
        self.part_bytes = [len(encoded[participant]) for participant in self.senders]
        self.nbytes = self._begin
        for participant in self.senders:
            part = encoded[participant]
            self.buffer[self.nbytes : self.nbytes + len(part)] = part
            self.nbytes += len(part)

    def seal(self, round_index: int) -> None:
        """Write the header and the senders of the current payload."""
        self._listed[:] = self.senders
        name, checksum = self.array.name.encode(), self._checksum(self.nbytes)
        header = HEADER.pack(MAGIC, VERSION, self._number, name, self.shape[0], round_index, *self.shape[1:], checksum)
        self.buffer[: HEADER.size] = np.frombuffer(header, dtype=np.uint8)

    def open(self, round_index: int, received_bytes: int, rows_of_senders: Rows) -> list[NDArray[np.float32]]:
        """Check a received message and return each sender's array (rows, columns).

        Parameters
        ----------
        received_bytes : int
            Size of what was received in the buffer [bytes].
        rows_of_senders : Rows
            Decoder of the parts.

        Raises
        ------
        RuntimeError
            Names what differs: codec, size, magic, version, name, round, shape, senders, checksum, finiteness, row
            sums.
        """
        magic, version, number, name, count, got_round, rows, columns, checksum = HEADER.unpack_from(self.buffer.data)
        # Check the codec first, because another codec also changes the size.
        if received_bytes >= HEADER.size and (magic, version) == (MAGIC, VERSION) and number != self._number:
            raise RuntimeError(f"codec: got {_codec_name(number)!r}, expected {_codec_name(self._number)!r}.")
        parts = self._parts()
        expected_bytes = self._begin + sum(map(len, parts))
        if received_bytes != expected_bytes:
            raise RuntimeError(f"size: got {received_bytes} bytes, expected {expected_bytes}.")
        got = {
            "magic": (magic, MAGIC),
            "version": (version, VERSION),
            "array": (name.rstrip(b"\0"), self.array.name.encode()),
            "round": (got_round, round_index),
            "shape": ((count, rows, columns), self.shape),
            "senders": (self._listed.tolist(), self.senders),
            "checksum": (checksum, self._checksum(received_bytes)),
        }
        for what, (value, expected) in got.items():
            if value != expected:
                raise RuntimeError(f"{what}: got {value!r}, expected {expected!r}.")
        self.part_bytes = [len(part) for part in parts]
        arrays = []
        for participant, part in zip(self.senders, parts, strict=True):
            try:
                arrays.append(rows_of_senders.decode(participant, part))
            except ValueError as error:
                raise RuntimeError(f"{self.array.name} of participant {participant}: {error}") from None
            self.array.check(arrays[-1][None], [participant])
        return arrays

    def _parts(self) -> list[NDArray[np.uint8]]:
        """Return each sender's part. It has the size that its mask states, but never extends beyond the buffer."""
        parts, begin = [], self._begin
        for _ in self.senders:
            end = begin + self.array.part_bytes(self.buffer[begin:])
            parts.append(self.buffer[begin:end])
            begin = end
        return parts

    def _checksum(self, nbytes: int) -> int:
        return zlib.crc32(self.buffer[HEADER.size : nbytes].data)


def _codec_name(number: int) -> object:
    """Return the codec's name for an error message, from its number in a header."""
    name = codecs.NAMES.get(number % SKIPPING)
    return number if name is None else f"{name}, skipping rows" if number >= SKIPPING else name
