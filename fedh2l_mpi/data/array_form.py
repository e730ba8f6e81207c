"""Form of the samples in an array, from its shape and type, and the samples as tables give them.

Shape letters: N rows, X the axes of one sample, K channels, H height, W width, L length, F features.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.sample_form import AXES, PLURAL, SampleForm, SampleKind

# Numbers of channels by which the axis of the channels is recognised.
CHANNELS = (1, 3, 4)
# Kinds of NumPy types that are numbers: signed and unsigned integers, and floats.
NUMBERS = "iuf"


@dataclass(frozen=True)
class ArrayForm:
    """Form of the samples of an array, and how its axes become those of the form.

    Attributes
    ----------
    has_channels : bool
        False if the array has no axis for the one channel of its images or series.
    channels_last : bool
        True if the last axis is that of the channels.
    """

    form: SampleForm
    has_channels: bool = True
    channels_last: bool = False

    def samples(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return samples (N, ...) as the form has them, (N, X), C order: uint8 images, int64 token ids, or float32."""
        if not self.has_channels:
            values = values[:, None]
        elif self.channels_last:
            values = np.moveaxis(values, -1, 1)
        kept = values.dtype == np.uint8 and self.form.kind == "image"
        kind = np.uint8 if kept else np.int64 if self.form.kind == "tokens" else np.float32
        return np.ascontiguousarray(values, dtype=kind)

    def first_wrong(self, samples: NDArray[Any]) -> tuple[int, str] | None:
        """Return the first of some samples with a value that is not allowed, and the reason; None if there is none."""
        if self.form.kind == "tokens":
            wrong = (samples < 0) | (samples >= self.form.vocabulary)
        elif samples.dtype == np.uint8:
            return None
        else:
            wrong = ~np.isfinite(samples)
        rows = np.flatnonzero(wrong.reshape(len(samples), -1).any(axis=1))
        if len(rows) == 0:
            return None
        value = samples[rows[0]][wrong[rows[0]]].flat[0]
        allowed = f"0 to {self.form.vocabulary - 1}" if self.form.kind == "tokens" else "finite numbers of 32 bits"
        return int(rows[0]), f"has the value {value}. Allowed: {allowed}"


def form_of(
    what: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    kind: str | None = None,
    vocabulary: int | None = None,
    channels: str | None = None,
) -> ArrayForm:
    """Return the form of samples of `shape` and `dtype`.

    Parameters
    ----------
    what : str
        Name of the array, for messages.
    shape : tuple of int
        Axes of one sample.
    kind : str or None
        A kind of `sample_form`. None: tokens if there is a vocabulary; else vectors for one axis, images of one channel
        for two axes of uint8, series for two axes of other numbers, and images for three axes. An image's channels are
        its first axis, unless only its last one has 1, 3 or 4 entries. A series of two axes has its channels first.
    vocabulary : int or None
        Number of token ids.
    channels : {"first", "last"} or None
        Axis of the channels of images and series; None: as above.

    Raises
    ------
    UserError
        If no form has these axes, or the type is no number.
    """
    of_numbers, axes = np.dtype(dtype).kind in NUMBERS, len(shape)
    if not of_numbers:
        raise UserError(f"{what} is of type {np.dtype(dtype)}. Allowed: integers and floats.")
    if kind is not None and kind not in AXES:
        raise UserError(f"{what}: its kind is {kind!r}{did_you_mean(kind, list(AXES))}. Known: {', '.join(AXES)}.")
    if kind is None:
        of_axes = {1: "vector", 2: "image" if np.dtype(dtype) == np.uint8 else "series", 3: "image"}
        kind = "tokens" if vocabulary is not None else of_axes.get(axes, "")
    if min(shape, default=0) < 1 or axes not in _axes(kind):
        words = (
            f"{PLURAL[cast(SampleKind, kind)]} have {' or '.join(map(str, _axes(kind)))} axes"
            if kind
            else ("they have 1 axis (vectors), 2 (series, grey images) or 3 (images)")
        )
        raise UserError(f"{what} has samples of shape {shape}, but {words}, each of 1 or more.")
    if kind == "tokens":
        if vocabulary is None or vocabulary < 1:
            raise UserError(f"{what}: sequences of token ids need `vocabulary`, the number of ids, got {vocabulary}.")
        if np.dtype(dtype).kind == "f":
            raise UserError(f"{what} is of type {np.dtype(dtype)}, but token ids are integers.")
        return ArrayForm(SampleForm("tokens", shape, vocabulary))
    if vocabulary is not None:
        raise UserError(f"{what}: {PLURAL[cast(SampleKind, kind)]} have no `vocabulary`, got {vocabulary}.")
    if kind == "vector":
        return ArrayForm(SampleForm("vector", shape))
    if axes == len(AXES[kind]) - 1:
        return ArrayForm(SampleForm(cast(SampleKind, kind), (1, *shape)), has_channels=False)
    by_size = kind == "image" and shape[-1] in CHANNELS and shape[0] not in CHANNELS
    last = by_size if channels is None else channels == "last"
    ordered = (shape[-1], *shape[:-1]) if last else shape
    return ArrayForm(SampleForm(cast(SampleKind, kind), ordered), channels_last=last)


def _axes(kind: str) -> tuple[int, ...]:
    """Return the numbers of axes that samples of a kind may have; one channel needs no axis."""
    return {"": (), "vector": (1,), "tokens": (1,), "series": (1, 2), "image": (2, 3)}[kind]
