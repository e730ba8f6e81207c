"""Which rows of an array cross in a round, and what they become where they arrive.

Participants that one rank hosts get each other's arrays from the same bytes as those of other ranks: the numbers do not
depend on who is hosted where.

Shape letters: R rows, C columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.exchange.array_spec import ArraySpec


class Rows(ABC):
    """Makes a participant's part of a message of its array, and an array of a part."""

    def __init__(self, array: ArraySpec) -> None:
        self.array = array

    @abstractmethod
    def part(self, participant: int, values_RC: NDArray[np.float32]) -> NDArray[np.uint8]:
        """A hosted participant's part of every message with it, of an array that has passed `ArraySpec.check`.

        Raises
        ------
        UserError
            If a number is too large for the codec.
        """

    @abstractmethod
    def take(self, participant: int, part: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A participant's array, float32 (R, C), from its part; once for each part, in the order of rounds.

        Raises
        ------
        ValueError
            If the bytes stand for no such array.
        """

    @abstractmethod
    def forget(self) -> None:
        """Whatever was sent before, neighbours are new, and hold nothing of it."""


class WholeRows(Rows):
    """Every row, in every round. Of an exact codec, parts and arrays are views."""

    def part(self, participant: int, values_RC: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self.array.encode(values_RC, participant)

    def take(self, participant: int, part: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.array.decode(part)

    def forget(self) -> None:
        return


class HeldRows(Rows):
    """Only rows that are not nearly what neighbours hold already; they go on with those.

    A part is a bit for every row, and the rows whose bit is set. Sender and receivers hold the rows that were last
    sent, as decoded from the same bytes.

    Parameters
    ----------
    hosted : iterable of int
        Participants whose arrays are held from the beginning.
    """

    def __init__(self, array: ArraySpec, hosted: Iterable[int]) -> None:
        super().__init__(array)
        self._held: dict[int, NDArray[np.float32]] = {}
        for participant in hosted:
            self.of(participant)

    def of(self, participant: int) -> NDArray[np.float32]:
        """What is held of a participant, float32 (R, C), NaN before anything was sent; it follows what is taken."""
        if participant not in self._held:
            shape = (self.array.rows, self.array.columns)
            self._held[participant] = np.full(shape, np.nan, dtype=np.float32)
        return self._held[participant]

    def part(self, participant: int, values_RC: NDArray[np.float32]) -> NDArray[np.uint8]:
        arriving = self.array.decode(self.array.encode(values_RC, participant))
        # In float32, a difference just above the bound could be rounded to it.
        gap = np.subtract(arriving, self.of(participant), dtype=np.float64)
        # Not (>): nothing is far from NaN, and what nobody holds must be sent.
        is_sent_R = ~(np.abs(gap, out=gap).max(axis=1) <= self.array.skip_below)
        return np.concatenate([np.packbits(is_sent_R), self.array.codec.encode(values_RC[is_sent_R])])

    def take(self, participant: int, part: NDArray[np.uint8]) -> NDArray[np.float32]:
        held, is_sent_R = self.of(participant), self.array.is_sent_R(part)
        if is_sent_R.any():
            held[is_sent_R] = self.array.decode(part[self.array.mask_bytes :], int(is_sent_R.sum()))
        return held

    def forget(self) -> None:
        for held in self._held.values():
            held.fill(np.nan)

    def go_on_from(self, arrays: Mapping[int, NDArray[np.float32]]) -> None:
        """Hold copies of these arrays (R, C), by participant, from now on."""
        self._held = {participant: values.copy() for participant, values in arrays.items()}


def rows_of(array: ArraySpec, hosted: Iterable[int]) -> Rows:
    """As the array's specification says, for the participants of a rank."""
    return WholeRows(array) if array.skip_below is None else HeldRows(array, hosted)
