"""Data sets in files of common kinds, and small ones that need no file: one class of options for each."""

from typing import Literal

from pydantic import Field

from fedh2l_mpi.config.data_sets import BroughtData


class Npz(BroughtData, kind="npz"):
    """Arrays of one NumPy file: x_train, y_train, x_test, y_test, or x, y; domains as domain_train, domain_test."""

    samples: Literal["image", "series", "vector", "tokens"] | None = Field(
        None,
        description="what the samples of an npz file are; null: vectors for one axis, grey images for two axes of "
        "uint8, series for two axes of other numbers, images for three axes",
    )
    channels: Literal["first", "last"] | None = Field(
        None,
        description="which axis of an npz file's images or series has the channels; null: the first, unless only "
        "an image's last axis has 1, 3 or 4 entries",
    )
