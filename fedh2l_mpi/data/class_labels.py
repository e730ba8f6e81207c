"""Numbers of classes and of domains, from the values by which a file names them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError, shown

# More values than this are no classes: a measurement or an identifier was named as the label.
MOST_NAMES = 10_000
LONGEST_NAME = 200
_WHOLE = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class Numbering:
    """Names of classes or domains in their order, and the number of each row's.

    Attributes
    ----------
    train : int64 (N,)
    test : int64 (M,) or None
        None without a test part.
    """

    names: tuple[str, ...]
    train: NDArray[np.int64]
    test: NDArray[np.int64] | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names; empty if they are the numbers from 0 on anyway."""
        return () if self.names == tuple(map(str, range(len(self.names)))) else self.names


def numbered(
    what: tuple[str, str], train: Sequence[Any] | NDArray[Any], test: Sequence[Any] | NDArray[Any] | None, least: int
) -> Numbering:
    """Number the values of the training part in their order: whole numbers by size, other texts by alphabet.

    Parameters
    ----------
    what : tuple of str
        Names of the training and the test values, for messages.
    train, test : array or sequence of texts
        Integers, whole floats, truth values or texts; None: there is no test part.
    least : int
        Smallest number of different values.

    Raises
    ------
    UserError
        If a value is no whole number or text, a test value does not occur in the training part, or there are too few
        or too many different ones.
    """
    parts = [_texts(name, values) for name, values in zip(what, (train, test), strict=True) if values is not None]
    found = np.unique(parts[0])
    if not least <= len(found) <= MOST_NAMES:
        raise UserError(f"{what[0]} has {len(found)} different values. Allowed: {least} to {MOST_NAMES:,}.")
    names = found.tolist()
    if all(_WHOLE.fullmatch(name) for name in names):
        names.sort(key=int)
    number = {name: index for index, name in enumerate(names)}
    if len(parts) > 1:
        unknown = next((name for name in np.unique(parts[1]).tolist() if name not in number), None)
        if unknown is not None:
            row = int(np.flatnonzero(parts[1] == unknown)[0])
            raise UserError(
                f"{what[1]}: row {row} (from 0) has {shown(unknown)}, which does not occur in {what[0]}. "
                f"It has {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}."
            )
    numbers = [np.array([number[name] for name in part.tolist()], dtype=np.int64) for part in parts]
    return Numbering(tuple(names), numbers[0], numbers[1] if len(numbers) > 1 else None)


def _texts(what: str, values: Sequence[Any] | NDArray[Any]) -> NDArray[np.str_]:
    """Return values as texts, whole numbers without a point."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{what} has the shape {array.shape}. It must have one value for each sample.")
    if array.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(array) | (array != np.round(array)) | (np.abs(array) >= 2**53))
        if len(wrong):
            raise UserError(f"{what}: row {wrong[0]} (from 0) has {array[wrong[0]]}. Allowed: whole numbers and texts.")
        array = array.astype(np.int64)
    if array.dtype.kind in "biu":
        return array.astype(np.int64 if array.dtype.kind == "b" else array.dtype).astype(np.str_)
    if array.dtype.kind not in "SU":
        raise UserError(f"{what} is of type {array.dtype}. It must be of whole numbers or texts.")
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{what}: its bytes are no UTF-8 text.") from None
    if len(array) and int(np.char.str_len(array).max()) > LONGEST_NAME:
        raise UserError(f"{what} has a text of more than {LONGEST_NAME} characters, which is too long for a name.")
    return array
