"""Data that users bring: what the options of all their kinds have in common."""

from typing import ClassVar

from pydantic import Field, model_validator

from fedh2l_mpi.config.data import ROTATION, TEST_SHARE, DataConfig
from fedh2l_mpi.config.section import Number


class BroughtData(DataConfig):
    """Group of the data sets that may have a test part and domains of their own, which is known when they are opened.

    The two keys of the rotation are null unless the config gives them: then the domains are those of the data.
    """

    root_is_content: ClassVar[bool] = True

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
