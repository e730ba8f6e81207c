"""Keys of a sweep file's section `table`: the contents of the table at the end of a sweep."""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from fedh2l_mpi.config import Section
from fedh2l_mpi.config.section import Number
from fedh2l_mpi.errors import did_you_mean
from fedh2l_mpi.metrics import ROW_FIELDS, SIMULATED_SECONDS


class GapConfig(Section):
    """Two controls, each a row or a value on one axis; rows close a share of the gap between them.

    Both controls should have the rows' ingredients, so that the share is due to the exchange alone.
    """

    low: str
    high: str
    measure: Literal["accuracy_own", "accuracy_all", "accuracy_worst"] = "accuracy_all"


class TableConfig(Section):
    """Contents of the table at the end of a sweep."""

    columns: tuple[str, ...] = ("accuracy_own", "accuracy_all", "accuracy_worst", "bytes_sent")
    reach: tuple[Annotated[Number, Field(gt=0.0, le=1.0)], ...] = ()
    costs: tuple[Literal["sent", "rounds", "seconds", "simulated"], ...] = ("sent",)
    compare_to: str | None = None
    gap: GapConfig | None = None
    confidence: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = None
    title: str | None = None

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        known = [*(field.name for field in ROW_FIELDS), SIMULATED_SECONDS.name]
        for name in columns:
            if name not in known:
                raise PydanticCustomError(
                    "problem",
                    "got {name}; known: {known}{hint}",
                    {"name": repr(name), "known": ", ".join(known), "hint": did_you_mean(name, known)},
                )
        return columns
