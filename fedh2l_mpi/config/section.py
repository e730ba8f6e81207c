"""What every section of the configuration is: keys that are known, values that are checked once and never change."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError, PydanticKnownError


def _refuse_switch(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


# Strict: `rounds: true` is no number, and `seed: "7"` no whole one. The bound keeps every product of two within int64.
Count = Annotated[int, Field(strict=True, ge=1, le=2**31)]
Natural = Annotated[int, Field(strict=True, ge=0, le=2**31)]
Switch = Annotated[bool, Field(strict=True)]
# Not strict: YAML takes `1e-4` for text.
Number = Annotated[float, BeforeValidator(_refuse_switch)]
Share = Annotated[Number, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def fill(section: Section, **defaults: object) -> None:
    """Put a default where a key is null. A frozen section's own validators may still do so."""
    for key, value in defaults.items():
        if getattr(section, key) is None:
            object.__setattr__(section, key, value)


def check_kind_keys(section: Section, uses: Mapping[str, Mapping[str, object]], kind_key: str = "kind") -> Section:
    """Refuse a key that the section's kind does not use, and fill in the defaults of the keys that it does.

    Parameters
    ----------
    uses : mapping
        From each kind to its own keys and their defaults; `...` as a default means the key must be given.
    kind_key : str
        The key that holds the kind.
    """
    kind: str = getattr(section, kind_key)
    what = "method" if kind_key == "name" else kind_key
    own = uses.get(kind, {})
    for key in sorted({key for keys in uses.values() for key in keys}):
        value = getattr(section, key)
        if key not in own and value is not None:
            users = ", ".join(sorted(k for k, keys in uses.items() if key in keys))
            raise PydanticCustomError(
                "unused_key",
                "{key}: got {value}, but {what} {kind} does not use it (used by: {users}); remove it or set it to null",
                {"key": key, "value": repr(value), "what": what, "kind": repr(kind), "users": users},
            )
        if key in own and value is None:
            if own[key] is ...:
                raise PydanticCustomError(
                    "needed_key",
                    "{key}: must be given for {what} {kind}",
                    {"key": key, "what": what, "kind": repr(kind)},
                )
            fill(section, **{key: own[key]})
    return section
