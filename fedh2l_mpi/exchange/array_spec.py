"""What participants publish: its name, its shape, what it is on the wire, and what must be true of its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.config.execution import TopKExchange
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import codecs
from fedh2l_mpi.exchange.codecs import Codec
from fedh2l_mpi.exchange.wire_format import message_bytes

# Rows of posteriors must sum to 1 within what float32 softmax and 1,000 classes leave of it.
ROW_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ArraySpec:
    """What every participant publishes in a round: a float32 array of one name and one shape.

    Attributes
    ----------
    name : str
        Such as `posteriors`, 16 bytes at most; sender and receiver must agree on it.
    rows, columns : int
        Its shape, the same for every participant and round.
    sums_to_one : bool
        Whether every row is a probability distribution: checked where it is sent and where it arrives.
    codec : Codec
        What it is on the wire; a method leaves this to the config (`coded`).
    skip_below : float or None
        A row is not sent again if no number of it, as it would arrive, is further than this from the one that the
        neighbours hold; None: every row is always sent.
    """

    name: str
    rows: int
    columns: int
    sums_to_one: bool = False
    codec: Codec = codecs.FLOAT32
    skip_below: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 16:
            raise ValueError(f"name: got {self.name!r}, must be 1 to 16 bytes long")
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"shape of {self.name}: got {self.rows} x {self.columns}, must be at least 1 x 1")

    def coded(self, config: ExchangeConfig) -> "ArraySpec":
        """The same array, on the wire as the config says.

        Raises
        ------
        UserError
            If the config's codec is not for such an array.
        """
        codec = codecs.build(config)
        if codec.distributions_only and not self.sums_to_one:
            fitting = ", ".join(name for name, kind in codecs.KINDS.items() if not kind.distributions_only)
            raise UserError(
                f"exchange.codec: got {codec.name!r}, which is for posteriors, but the method exchanges {self.name}, "
                f"whose rows do not sum to 1; use one of {fitting}"
            )
        if isinstance(config, TopKExchange) and config.top_k > self.columns:
            raise UserError(f"exchange.top_k: got {config.top_k}, must be <= {self.columns}, the number of classes")
        return replace(self, codec=codec, skip_below=config.skip_below)

    @property
    def held_bytes(self) -> int:
        """Size of one participant's array in memory, float32 [bytes]."""
        return 4 * self.rows * self.columns

    @property
    def mask_bytes(self) -> int:
        """Size of the bits that say which of an array's rows are sent [bytes]."""
        return 0 if self.skip_below is None else math.ceil(self.rows / 8)

    def message_bytes(self, senders: int = 1) -> int:
        """Size of a message with the arrays of `senders` participants, the largest if rows may be skipped [bytes]."""
        whole = self.mask_bytes + self.codec.encoded_bytes(self.rows, self.columns)
        return message_bytes([whole] * senders)

    def part_bytes(self, part: NDArray[np.uint8]) -> int:
        """Size of one participant's part of a message [bytes].

        Parameters
        ----------
        part : uint8 (at least mask_bytes,)
            Where rows may be skipped, the part's beginning: bits that say which rows follow.
        """
        rows = self.rows if self.skip_below is None else int(self.is_sent_R(part).sum())
        return self.mask_bytes + self.codec.encoded_bytes(rows, self.columns)

    def is_sent_R(self, part: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which rows a part has, bool (rows,), by the bits that it begins with where rows may be skipped."""
        return np.unpackbits(part[: self.mask_bytes], count=self.rows).view(np.bool_)

    def encode(self, values: NDArray[np.float32], participant: int) -> NDArray[np.uint8]:
        """A participant's array (rows, columns), which has passed `check`, as bytes.

        Raises
        ------
        UserError
            If a number is too large for the codec.
        """
        if not self.codec.exact and not self.sums_to_one:
            row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
            if abs(values[row, column]) > self.codec.largest:
                wider = [kind.name for kind in codecs.KINDS.values() if kind.largest > self.codec.largest]
                raise UserError(
                    f"exchange.codec: got {self.codec.name!r}, which holds numbers up to {self.codec.largest:.6g}, but "
                    f"{self.name} of participant {participant}, row {row}, have {values[row, column]:.6g}; "
                    f"use {' or '.join(name for name in wider if not codecs.KINDS[name].distributions_only)}"
                )
        return self.codec.encode(values)

    def decode(self, encoded: NDArray[np.uint8], rows: int | None = None) -> NDArray[np.float32]:
        """The array (rows, columns), or so many rows of it, that the bytes stand for; a view if the codec is exact.

        Raises
        ------
        ValueError
            If they stand for none.
        """
        values = self.codec.decode(encoded, self.rows if rows is None else rows, self.columns)
        return values if self.codec.exact or not self.sums_to_one else codecs.as_distributions(values)

    def check(self, payload: NDArray[np.float32], senders: Sequence[int]) -> None:
        """Refuse what is not finite, or not a distribution where it must be.

        Parameters
        ----------
        payload : float32 (senders, rows, columns)

        Raises
        ------
        RuntimeError
            With the first such row, and whose it is.
        """
        if self.sums_to_one:
            # A NaN or an infinity anywhere in a row makes its sum NaN or infinite.
            wrong = ~(np.abs(payload.sum(axis=-1) - 1.0) <= ROW_SUM_TOLERANCE) | (payload.min(axis=-1) < 0)
            fault = "is not finite, is negative somewhere, or does not sum to 1"
        else:
            # Finite terms of float32 cannot overflow a sum of float64, so it is finite exactly where every term is.
            wrong = ~np.isfinite(payload.sum(axis=-1, dtype=np.float64))
            fault = "is not finite"
        if wrong.any():
            which, row = np.argwhere(wrong)[0]
            shown = np.array2string(payload[which, row], threshold=20, separator=", ")
            raise RuntimeError(f"{self.name} of participant {senders[which]}, row {row}: {shown} {fault}")
