"""Codecs of published arrays: float32 without loss, or fewer bytes for nearly the same numbers.

Each codec encodes an array as bytes and decodes the bytes. It computes their number from rows and columns alone.
Decoded posteriors are scaled to sum to 1 again (`as_distributions`).

The error of a codec is the total variation distance: half the sum of absolute differences. It compares a row that sums
to 1 with the row that is decoded from it.

Shape letters: R rows, C columns (classes), K columns that are kept.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.config.execution import TopKExchange

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Codec(ABC):
    """Encoder and decoder of float32 arrays. The same bytes always become the same numbers.

    Attributes
    ----------
    name, number : str, int
        Its name in the config, and its number in a message's header.
    exact : bool
        Whether decoding returns the same bits.
    distributions_only : bool
        Whether it accepts only rows that sum to 1.
    largest : float
        The largest magnitude that it can encode.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    exact: ClassVar[bool] = False
    distributions_only: ClassVar[bool] = False
    largest: ClassVar[float] = math.inf

    @abstractmethod
    def encoded_bytes(self, rows: int, columns: int) -> int:
        """Return the size of an encoded array [bytes]."""

    @abstractmethod
    def encode(self, values_RC: Floats) -> Bytes:
        """Encode an array of finite numbers up to `largest` as contiguous bytes (encoded_bytes,)."""

    @abstractmethod
    def decode(self, encoded: Bytes, rows: int, columns: int) -> Floats:
        """Decode the bytes into an array, float32 (rows, columns), without scaling it.

        Raises
        ------
        ValueError
            If the bytes encode no array.
        """

    def tv_bound(self, columns: int) -> float:
        """Return the upper bound of the total variation distance between a row of n columns and its decoded copy."""
        return 1.0


@dataclass(frozen=True)
class Float32(Codec):
    """Codec without loss: 4 bytes per number. It copies nothing."""

    name = "float32"
    number = 0
    exact = True

    def encoded_bytes(self, rows: int, columns: int) -> int:
        return 4 * rows * columns

    def encode(self, values_RC: Floats) -> Bytes:
        return np.ascontiguousarray(values_RC).reshape(-1).view(np.uint8)

    def decode(self, encoded: Bytes, rows: int, columns: int) -> Floats:
        return encoded.view(np.float32).reshape(rows, columns)

    def tv_bound(self, columns: int) -> float:
        return 0.0


@dataclass(frozen=True)
class Float16(Codec):
    """IEEE half precision: 2 bytes per number, rounded to the nearest, ties to even.

    The error is at most 2^-11 of a number. Below 6e-5 it is at most 2^-25 instead, and numbers below 3e-8 become 0. The
    total variation distance of posteriors is at most 2^-11 + C 2^-25 (C = 10: 0.0005). Numbers over 65,504 cannot be
    sent.
    """

    name = "float16"
    number = 1
    largest = 65504.0

    def encoded_bytes(self, rows: int, columns: int) -> int:
        return 2 * rows * columns

    def encode(self, values_RC: Floats) -> Bytes:
        return np.ascontiguousarray(values_RC, dtype=np.float16).reshape(-1).view(np.uint8)

    def decode(self, encoded: Bytes, rows: int, columns: int) -> Floats:
        return encoded.view(np.float16).astype(np.float32).reshape(rows, columns)

    def tv_bound(self, columns: int) -> float:
        return 2.0**-11 + columns * 2.0**-25


@dataclass(frozen=True)
class BFloat16(Codec):
    """Upper half of a float32: 2 bytes per number, rounded to the nearest, ties to even.

    It keeps the range of float32 and 8 bits of the significand. The error is at most 2^-8 of a number. The total
    variation distance of posteriors is at most 2^-8 (0.004).
    """

    name = "bfloat16"
    number = 2
    # The largest finite bfloat16: 8 bits of the significand are set, and the exponent is the largest.
    largest = (2.0 - 2.0**-7) * 2.0**127

    def encoded_bytes(self, rows: int, columns: int) -> int:
        return 2 * rows * columns

    def encode(self, values_RC: Floats) -> Bytes:
        bits = np.ascontiguousarray(values_RC).reshape(-1).view(np.uint32)
        # Add half of the last kept bit, or one less if that bit is 0, so that a tie goes to the even number.
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
        return rounded.astype(np.uint16).view(np.uint8)

    def decode(self, encoded: Bytes, rows: int, columns: int) -> Floats:
        return (encoded.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(rows, columns)

    def tv_bound(self, columns: int) -> float:
        return 2.0**-8


@dataclass(frozen=True)
class QuantisedLog(Codec):
    """Posteriors as -log p in steps of 1/16 nat, one byte each: every probability within 3.2 % before scaling.

    Levels 0 to 255 stand for 1 down to exp(-255/16) = 1.2e-7, which is the floor. Smaller probabilities, also 0,
    become the floor. A decoded probability is therefore never 0, and no divergence is infinite.

    The error is half a step in log p, so e^(1/32) in the ratio. The total variation distance is at most tanh(step / 4)
    plus C times the floor (C = 10: 0.016).
    """

    name = "uint8"
    number = 3
    distributions_only = True

    STEP: ClassVar[float] = 1 / 16
    # exp(-STEP) and exp(-255 STEP).
    RATIO: ClassVar[float] = 0.9394130628134758
    FLOOR: ClassVar[float] = 1.197930699220045e-07

    def encoded_bytes(self, rows: int, columns: int) -> int:
        return rows * columns

    def encode(self, values_RC: Floats) -> Bytes:
        levels = np.log(np.maximum(values_RC, np.float32(self.FLOOR)))
        levels *= np.float32(-1 / self.STEP)
        # A probability may be rounded to more than 1, which would be a level below 0.
        return np.rint(levels, out=levels).clip(0, 255, out=levels).astype(np.uint8).reshape(-1)

    def decode(self, encoded: Bytes, rows: int, columns: int) -> Floats:
        # Multiply, because a product has the same last bit on every machine; exp has not.
        table = np.cumprod(np.concatenate([[1.0], np.full(255, self.RATIO)]))
        return table.astype(np.float32)[encoded].reshape(rows, columns)

    def tv_bound(self, columns: int) -> float:
        return math.tanh(self.STEP / 4) + columns * self.FLOOR


@dataclass(frozen=True)
class TopK(Codec):
    """The k largest posteriors of each row in half precision, with their classes. The others share the rest evenly.

    Each of the k needs 2 bytes, and 1, 2 or 4 bytes for its class, whichever is enough for C classes. Among equal
    posteriors, those of the lower classes are kept.

    The total variation distance is at most the sum of the posteriors that are not kept, which is at most 1 - k / C,
    plus the error of half precision, 2^-11 + k 2^-25. A row whose other posteriors are equal has only the latter.
    """

    k: int

    name = "top_k"
    number = 4
    distributions_only = True

    def encoded_bytes(self, rows: int, columns: int) -> int:
        return rows * self.k * (2 + _index_type(columns).itemsize)

    def encode(self, values_RC: Floats) -> Bytes:
        share_RC = as_distributions(np.array(values_RC))
        kept_RK = np.argsort(-share_RC, axis=1, kind="stable")[:, : self.k]
        value_RK = np.take_along_axis(share_RC, kept_RK, axis=1).astype(np.float16)
        index_RK = kept_RK.astype(_index_type(values_RC.shape[1]))
        return np.concatenate([value_RK.reshape(-1).view(np.uint8), index_RK.reshape(-1).view(np.uint8)])

    def decode(self, encoded: Bytes, rows: int, columns: int) -> Floats:
        values = 2 * rows * self.k
        value_RK = encoded[:values].view(np.float16).astype(np.float32).reshape(rows, self.k)
        index_RK = encoded[values:].view(_index_type(columns)).astype(np.int64).reshape(rows, self.k)
        if index_RK.max() >= columns:
            raise ValueError(f"got class {index_RK.max()}. Allowed: 0 to {columns - 1}.")
        rest_R1 = np.maximum(0.0, 1.0 - value_RK.sum(axis=1, dtype=np.float64, keepdims=True))
        decoded_RC = np.empty((rows, columns), dtype=np.float32)
        decoded_RC[:] = rest_R1 / max(1, columns - self.k)
        np.put_along_axis(decoded_RC, index_RK, value_RK, axis=1)
        return decoded_RC

    def tv_bound(self, columns: int) -> float:
        return 1 - self.k / columns + 2.0**-11 + self.k * 2.0**-25


FLOAT32 = Float32()
KINDS: dict[str, type[Codec]] = {kind.name: kind for kind in (Float32, Float16, BFloat16, QuantisedLog, TopK)}
NAMES: dict[int, str] = {kind.number: kind.name for kind in KINDS.values()}


def build(config: ExchangeConfig) -> Codec:
    """Return the codec that the section `exchange` names."""
    return TopK(config.top_k) if isinstance(config, TopKExchange) else KINDS[config.codec]()


def as_distributions(values_RC: Floats) -> Floats:
    """Scale rows of non-negative numbers in place so that they sum to 1. A row of zeros becomes an even distribution.

    The same bits give the same bits, because each row's sum is taken over that row alone, in float64.
    """
    total_R1 = values_RC.sum(axis=1, dtype=np.float64, keepdims=True)
    # With very many classes, all posteriors of a row may be too small for half precision, so their sum is 0.
    empty_R = total_R1[:, 0] == 0
    if empty_R.any():
        values_RC[empty_R] = 1.0
        total_R1[empty_R] = values_RC.shape[1]
    values_RC /= total_R1
    return values_RC


def _index_type(columns: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned type that can store every index of n columns."""
    return np.dtype(np.uint8 if columns <= 2**8 else np.uint16 if columns <= 2**16 else np.uint32)
