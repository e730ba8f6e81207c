"""Encode the rows of an array that are sent in a round, and decode them at the receiver.

Participants on one rank decode each other's arrays from the same bytes as participants on other ranks do. The numbers
therefore do not depend on the hosting.

Shape letters: R rows, C columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.exchange.array_spec import ArraySpec


class Rows(ABC):
    """Encoder of an array as a participant's part of a message, and decoder of such a part."""

    def __init__(self, array: ArraySpec) -> None:
        self.array = array

    @abstractmethod
    def encode(self, participant: int, values_RC: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encode a hosted participant's array, which has passed `ArraySpec.check`, as its part of every message.

        Raises
        ------
        UserError
            If a number is too large for the codec.
        """

    @abstractmethod
    def decode(self, participant: int, part: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Decode one participant's part into a float32 (R, C) array. Call once per part, in round order.

        Raises
        ------
        ValueError
            If the bytes encode no such array.
        """

    @abstractmethod
    def forget(self) -> None:
        """Forget what was sent: the graph changed, so the neighbours have no cached rows."""


class WholeRows(Rows):
    """Sender of every row in every round. If the codec is exact, parts and arrays are views."""

    def encode(self, participant: int, values_RC: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self.array.encode(values_RC, participant)

    def decode(self, participant: int, part: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.array.decode(part)

    def forget(self) -> None:
        return


class CachedRows(Rows):
    """Sender of only those rows that differ from the copies that the neighbours have cached.

    A part has one bit per row, followed by the rows whose bit is set. Sender and receivers cache the rows that were
    last sent, decoded from the same bytes.

    Parameters
    ----------
    hosted : iterable of int
        Participants whose arrays are cached from the beginning.
    """

    def __init__(self, array: ArraySpec, hosted: Iterable[int]) -> None:
        super().__init__(array)
        self._cached: dict[int, NDArray[np.float32]] = {}
        for participant in hosted:
            self.cached(participant)

    def cached(self, participant: int) -> NDArray[np.float32]:
        """Return the cached array of a participant, float32 (R, C). `decode` updates it; unsent rows are NaN."""
        if participant not in self._cached:
            shape = (self.array.rows, self.array.columns)
            self._cached[participant] = np.full(shape, np.nan, dtype=np.float32)
        return self._cached[participant]

    def encode(self, participant: int, values_RC: NDArray[np.float32]) -> NDArray[np.uint8]:
        arriving = self.array.decode(self.array.encode(values_RC, participant))
        # Subtract in float64, because float32 could round a difference just above the bound to the bound.
        gap = np.subtract(arriving, self.cached(participant), dtype=np.float64)
        # Negate <= instead of writing >, because a row that nobody has cached is NaN and must be sent.
        is_sent_R = ~(np.abs(gap, out=gap).max(axis=1) <= self.array.skip_below)
        return np.concatenate([np.packbits(is_sent_R), self.array.codec.encode(values_RC[is_sent_R])])

    def decode(self, participant: int, part: NDArray[np.uint8]) -> NDArray[np.float32]:
        cached, is_sent_R = self.cached(participant), self.array.is_sent_R(part)
        if is_sent_R.any():
            cached[is_sent_R] = self.array.decode(part[self.array.mask_bytes :], int(is_sent_R.sum()))
        return cached

    def forget(self) -> None:
        for cached in self._cached.values():
            cached.fill(np.nan)

    def resume_from(self, arrays: Mapping[int, NDArray[np.float32]]) -> None:
        """Replace the cache by copies of these arrays (R, C), by participant."""
        self._cached = {participant: values.copy() for participant, values in arrays.items()}


def build_rows(array: ArraySpec, hosted: Iterable[int]) -> Rows:
    """Return the encoder and decoder that the specification asks for, for the participants of a rank."""
    return WholeRows(array) if array.skip_below is None else CachedRows(array, hosted)
