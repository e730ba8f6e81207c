"""Data sets in files of common kinds, and small ones that need no file: one class of options for each."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedh2l_mpi.config.data_sets import BroughtData
from fedh2l_mpi.config.section import Count, problem, refuse

Column = Annotated[str, Field(min_length=1)]


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


class Columns(BroughtData):
    """Group of the data sets in files with named columns."""

    label: Column = Field("label", description="column of the classes")
    domain: Column | None = Field(None, description="column of the domains; null: the data have none of their own")


class Csv(Columns, kind="csv"):
    """A table: one CSV file with a header, or a folder with train.csv and test.csv."""

    missing: Literal["refuse", "mean", "zero"] = Field(
        "refuse",
        description="empty cells of features: refuse them, or fill numbers with the mean of the training rows or with "
        "0; an empty category is then none of the known ones",
    )
    drop: tuple[Column, ...] = Field((), description="columns of a table that are not used, such as an identifier")


class Text(Columns, kind="text"):
    """Texts: one CSV or JSON Lines file, or a folder with train and test files."""

    text: Column = Field("text", description="column of the texts")
    vocabulary: Count = Field(
        5000, description="number of words that have an id: the most frequent ones of the training texts [words]"
    )
    length: Annotated[Count, Field(le=1 << 16)] = Field(
        64, description="tokens of a text; a longer text is cut, a shorter one filled up with id 0 [tokens]"
    )


class Cifar10(BroughtData, kind="cifar10"):
    """CIFAR-10, 32 x 32 pixels, in the files for Python."""

    are_images: ClassVar[bool] = True


class Cifar100(BroughtData, kind="cifar100"):
    """CIFAR-100, 32 x 32 pixels, in the files for Python."""

    are_images: ClassVar[bool] = True


class Bundled(BroughtData):
    """Group of the data sets that need no file of the user."""

    @model_validator(mode="after")
    def _needs_no_files(self) -> "Bundled":
        if self.root is not None:
            text = f"got {self.root!r}, but {self.name} needs no file. Fix: set it to null."
            refuse(problem("root", self.root, text))
        return self


class BreastCancer(Bundled, kind="breast_cancer"):
    """569 vectors of 30 measurements of cell nuclei, in 2 classes; they ship with scikit-learn."""


class Wine(Bundled, kind="wine"):
    """178 vectors of 13 chemical measurements of wines, in 3 classes; they ship with scikit-learn."""


class DigitsSeries(Bundled, kind="digits_series"):
    """The digits of scikit-learn as series: the 8 rows of pixels are 8 channels of length 8."""


class GrammarText(Bundled, kind="grammar_text"):
    """2,400 made sentences on 4 topics in 4 dialects."""
