"""A table of the samples that a user brings: an array, or an object that is read row by row.

Shape letters: N rows, X the axes of one sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedh2l_mpi import rng
from fedh2l_mpi.data.array_form import ArrayForm, form_of
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import plugins

# Rows that `verify` reads at a time.
PIECE = 256


@dataclass(frozen=True)
class Rows:
    """Samples as the user gives them, (N, ...): an array, or a reader of rows.

    Attributes
    ----------
    what : str
        Start of messages, such as `data.name: 'my_data:load': x_train`.
    plugin : Plugin
        The function that made them; reading may run code of its module.
    values : array (N, ...), or an object with `__len__` and `__getitem__`
    gives_pairs : bool
        True if an item of the reader is a pair of sample and label.
    """

    what: str
    plugin: plugins.Plugin
    values: Any
    gives_pairs: bool = False

    @staticmethod
    def of(what: str, plugin: plugins.Plugin, given: Any, gives_pairs: bool = False) -> "Rows":
        """Check what the user gives: an array, what becomes one, or a reader.

        Raises
        ------
        UserError
            If it is none of them, is empty, or has rows of several shapes.
        """
        if hasattr(given, "detach"):
            given = given.detach().cpu()
        if hasattr(given, "to_numpy"):
            given = given.to_numpy()
        # Arrays in chunks, as those of h5py, stay in their file, and are read by row.
        elif hasattr(given, "__array__") and not hasattr(given, "chunks"):
            given = np.asarray(given)
        if isinstance(given, np.ndarray) and given.dtype == object:
            given = list(given)
        if isinstance(given, list | tuple) and not gives_pairs:
            given = _stacked(what, given)
        has_rows = hasattr(given, "__len__") and hasattr(given, "__getitem__")
        if not has_rows or isinstance(given, str | bytes | dict) or getattr(given, "shape", None) == ():
            raise UserError(
                f"{what} is {type(given).__name__}. Allowed: an array, or an object with len() and [row] that gives a "
                "sample."
            )
        with plugins.reporting(f"the length of {what.rpartition(' ')[2]} cannot be read", plugin):
            count = len(given)
        if count == 0:
            raise UserError(f"{what} is empty. Give it samples.")
        return Rows(what, plugin, given, gives_pairs)

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: NDArray[np.int64], first: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return `rows`, (len(rows), ...), each with the shape and type of the sample `first`."""
        if isinstance(self.values, np.ndarray):
            return np.asarray(self.values[rows])
        with rng.restored_global_generators():
            samples = [self._sample(int(row)) for row in rows]
        first = samples[0] if first is None and samples else first
        for row, sample in zip(rows, samples, strict=True):
            if first is not None and (sample.shape, sample.dtype) != (first.shape, first.dtype):
                raise UserError(
                    f"{self.what}: row {row} is {sample.dtype} of shape {sample.shape}, but row 0 is {first.dtype} of "
                    f"shape {first.shape}. All samples need one shape and type: resize, cut or convert them."
                )
        return np.stack(samples)

    def labels(self) -> list[Any]:
        """Return the label of every row of a reader of pairs; each row is read once."""
        with rng.restored_global_generators():
            return [self._item(row)[1] for row in range(len(self))]

    def _sample(self, row: int) -> NDArray[Any]:
        item = self._item(row)
        sample = item[0] if self.gives_pairs else item
        try:
            array = np.asarray(sample.detach().cpu() if hasattr(sample, "detach") else sample)
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.what}: row {row} is no array: {' '.join(str(error).split())}.") from None
        if array.dtype.kind not in "iufb":
            hint = " Convert texts to token ids." if isinstance(sample, str) else ""
            raise UserError(f"{self.what}: row {row} is {type(sample).__name__}. Allowed: an array of numbers.{hint}")
        return array

    def _item(self, row: int) -> Any:
        # Random numbers that the user's code draws for a row must be the same on every rank.
        torch.manual_seed(row)
        rng.seed_global_generators(row)
        with plugins.reporting(f"row {row} of {self.what.rpartition(' ')[2]} cannot be read", self.plugin):
            item = self.values[row]
        if self.gives_pairs and not (isinstance(item, tuple | list) and len(item) >= 2):
            raise UserError(
                f"{self.what}: row {row} is {type(item).__name__}. Without labels in an array, every row must be a "
                "pair of sample and label."
            )
        return item


@dataclass(frozen=True)
class RowTable:
    """A table of what a user brings; every row is checked when it is read."""

    given: Rows
    labels: NDArray[np.int64]
    form: ArrayForm
    first: NDArray[Any]
    reads_pieces = True

    @staticmethod
    def of(given: Rows, labels: NDArray[np.int64], kind: str | None, vocabulary: int | None) -> "RowTable":
        """Return the table of some rows; its form is that of row 0."""
        first = given.read(np.array([0]))[0]
        return RowTable(given, labels, form_of(given.what, first.shape, first.dtype, kind, vocabulary), first)

    @property
    def gives_bytes(self) -> bool:
        """True if its samples are uint8 images."""
        return self.form.form.kind == "image" and self.first.dtype == np.uint8

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the samples of `rows`, (len(rows), X): uint8 images, float32 values or int64 token ids.

        Raises
        ------
        UserError
            If a row is of another shape or type than row 0, or has a value that is not allowed.
        """
        if len(rows) == 0:
            return self.form.samples(self.first[None])[:0]
        with np.errstate(over="ignore", invalid="ignore"):
            samples = self.form.samples(self.given.read(rows, self.first))
        if wrong := self.form.first_wrong(samples):
            raise UserError(f"{self.given.what}: row {rows[wrong[0]]} {wrong[1]}.")
        return samples

    def verify(self) -> None:
        """Read and check every row."""
        for piece in np.split(np.arange(len(self.labels)), range(PIECE, len(self.labels), PIECE)):
            self.samples(piece)


def _stacked(what: str, samples: "list[Any] | tuple[Any, ...]") -> NDArray[Any]:
    """Return a list of samples as one array.

    Raises
    ------
    UserError
        If they differ in shape, or are no numbers.
    """
    arrays = [np.asarray(one.detach().cpu() if hasattr(one, "detach") else one) for one in samples]
    for row, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise UserError(
                f"{what}: row {row} has the shape {array.shape}, but row 0 has {arrays[0].shape}. All samples need one "
                "shape: resize or cut them."
            )
    return np.stack(arrays) if arrays else np.empty(0)
