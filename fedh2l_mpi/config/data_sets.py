"""Data that users bring: one class of options per kind of file, and that of a user's own function."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from fedh2l_mpi.config.data import ROTATION, TEST_SHARE, DataConfig
from fedh2l_mpi.config.section import Number, Switch, problem, refuse


class BroughtData(DataConfig):
    """Group of the data sets that may have a test part and domains of their own, which is known when they are opened.

    The two keys of the rotation are null unless the config gives them: then the domains are those of the data.
    """

    root_is_content: ClassVar[bool] = True
    # True if the samples are images whatever the files contain.
    are_images: ClassVar[bool] = False

    test_share: Number | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="share of every class that is kept for testing, the same for every seed; "
        "null: 0.2, or the data's own test part",
    )

    @property
    def share_for_testing(self) -> float:
        """Share of the samples that is kept for testing if the data have no test part."""
        return TEST_SHARE if self.test_share is None else self.test_share

    @model_validator(mode="after")
    def _domains_are_those_of_the_data(self) -> "BroughtData":
        given = self.partition.model_fields_set
        partition = self.partition.model_copy(update={key: None for key in ROTATION if key not in given})
        # A copy, because the section may be the default that all configs share.
        object.__setattr__(self, "partition", partition)
        return self


def _as_height_and_width(size: object) -> object:
    """Return the size of square images, which YAML reads as a number, as a text."""
    return f"{size}x{size}" if type(size) is int else size


Size = Annotated[
    str, Field(pattern=r"^[1-9]\d{0,3}x[1-9]\d{0,3}$", examples=["32x48"]), BeforeValidator(_as_height_and_width)
]


class ImageFolder(BroughtData, kind="image_folder"):
    """Pictures in folders of classes, which are decoded when they are read."""

    are_images: ClassVar[bool] = True

    size: Size | None = Field(
        None,
        description="height and width to which the middle of every picture is resized, such as 32x48, or the side of "
        "squares [pixels]; null: all pictures have one size",
    )
    grey: Switch = Field(False, description="one channel, the luminance, instead of red, green and blue")


class OwnData(BroughtData):
    """Data of a function of the user's own, which returns a `fedh2l_mpi.DataSet`."""

    kind_name = "package.module:function"
    root_is_content: ClassVar[bool] = False

    options: dict[str, Any] = Field({}, description="keyword arguments of your own function or method")

    @model_validator(mode="after")
    def _gets_its_arguments_by_options(self) -> "OwnData":
        if self.root is not None:
            text = (
                f"got {self.root!r}, but {self.name!r} gets its arguments from data.options. Fix: set data.root to "
                "null, and give the place there."
            )
            refuse(problem("root", self.root, text))
        return self
