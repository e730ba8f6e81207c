"""Specification of a published array: name, shape, codec, and the conditions that its numbers must meet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.config.execution import TopKExchange
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import codecs
from fedh2l_mpi.exchange.codecs import Codec
from fedh2l_mpi.exchange.wire_format import message_bytes

# Rows of posteriors must sum to 1 up to the rounding of a float32 softmax over 1,000 classes.
ROW_SUM_TOLERANCE = 1e-3
# Names of arrays with a row for each seed sample of a round and a column for each class.
OF_SEED_SAMPLES = ("posteriors", "logits")


@dataclass(frozen=True)
class ArraySpec:
    """Specification of the array that every participant publishes in a round: float32, with one name and one shape.

    Attributes
    ----------
    name : str
        Such as `posteriors`, 16 bytes at most. Sender and receiver must use the same name.
    rows, columns : int
        Its shape, the same for every participant and round.
    sums_to_one : bool
        Whether every row is a probability distribution. Sender and receiver check that.
    codec : Codec
        Its encoding in a message. A method leaves this to the config (`coded`).
    skip_below : float or None
        A row is sent only if a number of it, as decoded, differs by more than this from the neighbours' copy of the
        row. None: every row is always sent.
    """

    name: str
    rows: int
    columns: int
    sums_to_one: bool = False
    codec: Codec = codecs.FLOAT32
    skip_below: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 16:
            raise ValueError(f"name: got {self.name!r}. Allowed: 1 to 16 bytes.")
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"shape of {self.name}: got {self.rows} x {self.columns}. Allowed: 1 x 1 or more.")

    def coded(self, config: ExchangeConfig) -> "ArraySpec":
        """Return the same specification with the codec and the row skipping of the config.

        Raises
        ------
        UserError
            If the config's codec does not fit the array, or the array is to be kept but not of seed samples.
        """
        if config.keep_posteriors is not None and self.name not in OF_SEED_SAMPLES:
            raise UserError(
                f"exchange.keep_posteriors: got {config.keep_posteriors}, but the method exchanges {self.name}. "
                f"Allowed: null, or a method that exchanges {' or '.join(OF_SEED_SAMPLES)} on the seed samples."
            )
        codec = codecs.build(config)
        if codec.distributions_only and not self.sums_to_one:
            fitting = ", ".join(name for name, kind in codecs.KINDS.items() if not kind.distributions_only)
            raise UserError(
                f"exchange.codec: got {codec.name!r}, which encodes posteriors, but the method exchanges {self.name}, "
                f"whose rows do not sum to 1. Allowed: {fitting}."
            )
        if isinstance(config, TopKExchange) and config.top_k > self.columns:
            raise UserError(
                f"exchange.top_k: got {config.top_k}, but there are {self.columns} classes. "
                f"Allowed: 1 to {self.columns}."
            )
        return replace(self, codec=codec, skip_below=config.skip_below)

    @property
    def is_exact(self) -> bool:
        """True if neighbours get every published number, unchanged."""
        return isinstance(self.codec, codecs.Float32) and self.skip_below is None

    @property
    def memory_bytes(self) -> int:
        """Size of one participant's array in memory, float32 [bytes]."""
        return 4 * self.rows * self.columns

    @property
    def mask_bytes(self) -> int:
        """Size of the bits that mark the rows that are sent [bytes]."""
        return 0 if self.skip_below is None else math.ceil(self.rows / 8)

    def message_bytes(self, senders: int = 1) -> int:
        """Return the size of a message with the arrays of `senders` participants, if no row is skipped [bytes]."""
        whole = self.mask_bytes + self.codec.encoded_bytes(self.rows, self.columns)
        return message_bytes([whole] * senders)

    def part_bytes(self, part: NDArray[np.uint8]) -> int:
        """Return the size of one participant's part of a message [bytes].

        Parameters
        ----------
        part : uint8 (at least mask_bytes,)
            The beginning of the part. If rows may be skipped, it contains the bits that mark the rows that follow.
        """
        rows = self.rows if self.skip_below is None else int(self.is_sent_R(part).sum())
        return self.mask_bytes + self.codec.encoded_bytes(rows, self.columns)

    def is_sent_R(self, part: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return the mask at the beginning of a part, bool (rows,): True for each row that follows."""
        return np.unpackbits(part[: self.mask_bytes], count=self.rows).view(np.bool_)

    def encode(self, values: NDArray[np.float32], participant: int) -> NDArray[np.uint8]:
        """Encode a participant's array (rows, columns), which has passed `check`, as bytes.

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
                    f"exchange.codec: got {self.codec.name!r}, which encodes numbers up to {self.codec.largest:.6g}, "
                    f"but {self.name} of participant {participant}, row {row}, contain {values[row, column]:.6g}. "
                    f"Fix: use {' or '.join(name for name in wider if not codecs.KINDS[name].distributions_only)}."
                )
        return self.codec.encode(values)

    def decode(self, encoded: NDArray[np.uint8], rows: int | None = None) -> NDArray[np.float32]:
        """Decode the bytes into an array (rows, columns), or into n rows. It is a view if the codec is exact.

        Raises
        ------
        ValueError
            If the bytes encode no such array.
        """
        values = self.codec.decode(encoded, self.rows if rows is None else rows, self.columns)
        return values if self.codec.exact or not self.sums_to_one else codecs.as_distributions(values)

    def check_published(self, array: Tensor, participant: int) -> None:
        """Check an array that a participant publishes: type, device, shape and numbers.

        Raises
        ------
        RuntimeError
            Names what differs from this specification, or the first wrong row.
        """
        got = f"{array.dtype} {tuple(array.shape)} on {array.device}{', with gradients' if array.requires_grad else ''}"
        expected = f"torch.float32 {(self.rows, self.columns)} on cpu"
        if got != expected:
            raise RuntimeError(f"{self.name} of participant {participant}: got {got}, expected {expected}.")
        self.check(array.numpy()[None], [participant])

    def check(self, payload: NDArray[np.float32], senders: Sequence[int]) -> None:
        """Check that all numbers are finite and, if the array requires it, that every row is a distribution.

        Parameters
        ----------
        payload : float32 (senders, rows, columns)

        Raises
        ------
        RuntimeError
            Names the first wrong row and its participant.
        """
        if self.sums_to_one:
            # The sum is enough, because a NaN or an infinity anywhere in a row makes its sum NaN or infinite.
            wrong = ~(np.abs(payload.sum(axis=-1) - 1.0) <= ROW_SUM_TOLERANCE) | (payload.min(axis=-1) < 0)
            fault = "is not finite, is negative somewhere, or does not sum to 1"
        else:
            # The sum is enough: finite float32 terms cannot overflow float64, so it is finite only if every term is.
            wrong = ~np.isfinite(payload.sum(axis=-1, dtype=np.float64))
            fault = "is not finite"
        if wrong.any():
            which, row = np.argwhere(wrong)[0]
            shown = np.array2string(payload[which, row], threshold=20, separator=", ")
            raise RuntimeError(f"{self.name} of participant {senders[which]}, row {row}: {shown} {fault}.")
