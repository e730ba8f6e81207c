"""Arrays that a run records in addition to those of the schema: notes of its method, and metrics of its config.

They are declared before round 0 and stored in an attribute of the metrics file, so that every reader knows them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedh2l_mpi.metrics.schema import AT_END, DIMENSIONS, FIELDS, NOTED, PREDICTED, RESERVED, SCALES, Field

# Attribute of the file; files of runs without such arrays do not have it.
ATTRIBUTE = "columns"
# HDF5 stores an attribute of at most 64 KiB.
ATTRIBUTE_BYTES = 60_000
NAME = re.compile("[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Columns:
    """Additional arrays of a run.

    Attributes
    ----------
    by_participant : tuple of Field
        Arrays (round, participant).
    by_domain : tuple of Field
        Arrays (round, participant, domain).
    at_end : tuple of str
        The arrays of AT_END that the file has.

    Raises
    ------
    ValueError
        If a name is not allowed, occurs twice, or all descriptions together are too long for the file.
    """

    by_participant: tuple[Field, ...] = ()
    by_domain: tuple[Field, ...] = ()
    at_end: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken: set[str] = set()
        for field in (*self.by_participant, *self.by_domain):
            if why := name_problem(field.name, taken):
                raise ValueError(f"{field.name!r} {why}")
            taken.add(field.name)
        if len(self.to_text().encode()) > ATTRIBUTE_BYTES:
            raise ValueError(f"{len(taken)} arrays are too many, or their descriptions are too long")

    def __bool__(self) -> bool:
        return bool(self.by_participant or self.by_domain or self.at_end)

    @property
    def scales(self) -> tuple[Field, ...]:
        """Scales of the file."""
        return (*SCALES, PREDICTED) if "confusion" in self.at_end else SCALES

    def undeclared(self, noted: Iterable[str]) -> list[str]:
        """Return the names among those that a method noted of which the run has no array."""
        known = {*NOTED, *(field.name for field in self.by_participant)}
        return [name for name in noted if name not in known]

    @property
    def names(self) -> list[str]:
        """Names of the arrays by round."""
        return [field.name for field in (*self.by_participant, *self.by_domain)]

    @cached_property
    def dimensions(self) -> dict[str, tuple[str, ...]]:
        """Dimensions of every array of the file except the scales, those of the schema first."""
        own: dict[str, tuple[str, ...]] = {field.name: ("round", "participant") for field in self.by_participant}
        own |= {field.name: ("round", "participant", "domain") for field in self.by_domain}
        return {**DIMENSIONS, **own, **{name: AT_END[name][1] for name in self.at_end}}

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Every array of the file by name, except the scales."""
        own = {field.name: field for field in (*self.by_participant, *self.by_domain)}
        return {**FIELDS, **own, **{name: AT_END[name][0] for name in self.at_end}}

    def to_text(self) -> str:
        """Return the text of the file's attribute, which `from_text` reads."""
        listed = {
            "by_participant": [[field.name, field.units, field.long_name] for field in self.by_participant],
            "by_domain": [[field.name, field.units, field.long_name] for field in self.by_domain],
            "at_end": list(self.at_end),
        }
        return json.dumps(listed, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> "Columns":
        """Return the arrays that an attribute describes.

        Raises
        ------
        ValueError
            If the text is not one that `to_text` returned.
        """
        try:
            listed = json.loads(text)
            by_participant, by_domain = (listed.get(key, []) for key in ("by_participant", "by_domain"))
            # A later version may know more of them.
            at_end = tuple(name for name in AT_END if name in listed.get("at_end", []))
            return cls(_fields(by_participant), _fields(by_domain), at_end)
        except (AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"not a description of arrays: {error}") from None

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, Any]) -> "Columns":
        """Return the arrays that a file's attributes describe; none if the attribute is absent. Raises ValueError."""
        text = attributes.get(ATTRIBUTE)
        return NO_COLUMNS if text is None else cls.from_text(str(text))


def _fields(listed: Iterable[Iterable[str]]) -> tuple[Field, ...]:
    fields = []
    for name, units, long_name in listed:
        if not all(isinstance(part, str) for part in (name, units, long_name)):
            raise TypeError(f"got {name!r}")
        fields.append(Field(name, "f8", units, long_name))
    return tuple(fields)


def name_problem(name: str, taken: Iterable[str] = ()) -> str:
    """Return why an additional array cannot have this name, as the end of a sentence; an empty text if it can."""
    if not NAME.fullmatch(name):
        return "is not a name of an array. Allowed: lower-case letters, digits and _, beginning with a letter."
    if name in FIELDS or name in AT_END or name in RESERVED or any(name == scale.name for scale in SCALES):
        return "is the name of an array that every run has. Fix: choose another name."
    if name in taken:
        return "is the name of another array of this run. Fix: choose another name."
    return ""


NO_COLUMNS = Columns()
