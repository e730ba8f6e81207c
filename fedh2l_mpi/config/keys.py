"""Every key of the config file in words: what it is called, what it may be, what it means."""

import typing
from collections.abc import Iterator, Mapping
from typing import Any

from fedh2l_mpi.config import Config, Section


class Key(typing.NamedTuple):
    """One key of the config file."""

    name: str
    default: Any
    allowed: str
    meaning: str


def describe_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[Key]:
    """Every key of the config file in its order: dotted name, default, allowed values, meaning with unit."""
    schema = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from describe_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield Key(f"{prefix}{name}", field.default, _allowed(schema[name]), field.description or "")


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_allowed(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
    kinds = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    kinds |= {"array": "list", "object": "map", "null": "null"}
    return f"{kinds[schema['type']]} {bounds}".strip()
