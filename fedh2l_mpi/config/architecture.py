"""Architectures with arguments: one text stands for a class and its arguments, in configs, metrics files and tables.

An entry of `models` is a name, or a map with the name and the arguments of its constructor. The label of such a map is
`name(key=value,...)`, with the keys in alphabetical order and JSON values, such as `my_models:Net(width=64)`. Equal
entries have equal labels, and a label reads back to its entry. The label of a name alone is the name.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedh2l_mpi.errors import shown

NAME = "name"
# Deeper values would end in a RecursionError.
MOST_LEVELS = 20
_KEY = re.compile(r"\s*([^\W\d]\w*)\s*=\s*")
_NEXT = re.compile(r"\s*(,|\)$)")
_DECODER = json.JSONDecoder()


class Architecture(NamedTuple):
    """Name of a model, and the arguments of its constructor apart from those that the data decide."""

    name: str
    arguments: dict[str, Any]

    @property
    def label(self) -> str:
        """The text that stands for both."""
        if not self.arguments:
            return self.name
        values = (f"{key}={_json(value)}" for key, value in sorted(self.arguments.items()))
        return f"{self.name}({','.join(values)})"


def read(entry: object) -> Architecture:
    """Return the architecture of an entry of `models`: a name, a label, or a map with `name` and arguments.

    Raises
    ------
    ValueError
        If it is none of these. The message follows `got ENTRY, `.
    """
    if isinstance(entry, str):
        return parse(entry)
    if not isinstance(entry, Mapping):
        raise ValueError("must be the name of an architecture, or a map with name and arguments")
    if not isinstance(entry.get(NAME), str):
        raise ValueError("must have the architecture as its key `name`, such as {name: my_models:Net, width: 64}")
    named = parse(entry[NAME])
    own = {key: _checked(key, value) for key, value in entry.items() if key != NAME}
    twice = sorted(named.arguments.keys() & own.keys())
    if twice:
        raise ValueError(f"gives the argument {twice[0]!r} twice")
    return Architecture(named.name, {**named.arguments, **own})


def parse(label: str) -> Architecture:
    """Return the architecture of a label; blanks in it and the order of its keys do not matter.

    Raises
    ------
    ValueError
        If the text after a bracket is no list of arguments.
    """
    name, bracket, rest = label.strip().partition("(")
    if not bracket:
        return Architecture(name, {})
    arguments: dict[str, Any] = {}
    at, end = 0, len(rest) - 1
    if not rest.endswith(")"):
        raise ValueError(f"must end with a bracket, such as {name}(width=64)")
    while rest[at:end].strip():
        key = _KEY.match(rest, at)
        if key is None:
            raise ValueError(f"must have arguments such as {name}(width=64), each with a key")
        try:
            value, at = _DECODER.raw_decode(rest, key.end())
        except (ValueError, RecursionError):
            raise ValueError(f'must have a JSON value for {key[1]!r}, such as 64, true or "text"') from None
        if key[1] in arguments:
            raise ValueError(f"gives the argument {key[1]!r} twice")
        arguments[key[1]] = _checked(key[1], value)
        comma = _NEXT.match(rest, at)
        if comma is None:
            raise ValueError(f"must have a comma or the last bracket after the value of {key[1]!r}")
        at = comma.end()
    return Architecture(name, arguments)


def canonical(label: str) -> str:
    """Return the label with its keys in order and without blanks; a text that is no label is returned as it is."""
    try:
        return parse(label).label
    except ValueError:
        return label


def by_label(values: object) -> object:
    """Return a map with the canonical labels of its keys; anything else is returned as it is."""
    if not isinstance(values, Mapping):
        return values
    return {canonical(key) if isinstance(key, str) else key: value for key, value in values.items()}


def name_of(label: str) -> str:
    """Return the name in a label, without arguments."""
    return label.partition("(")[0].strip()


def _checked(key: object, value: object, level: int = 0) -> Any:
    """Return an argument's value as JSON gives it back.

    Raises
    ------
    ValueError
        If the key is no name of an argument, or the value is not made of numbers, texts, switches, lists and maps.
    """
    if level == 0 and not (isinstance(key, str) and key.isidentifier()):
        raise ValueError(f"has {shown(key)}, which cannot be the name of an argument")
    if level > MOST_LEVELS:
        raise ValueError(f"has a value of {key!r} that is nested too deep")
    if isinstance(value, list | tuple):
        return [_checked(key, one, level + 1) for one in value]
    if isinstance(value, Mapping) and all(isinstance(inner, str) for inner in value):
        return {inner: _checked(key, one, level + 1) for inner, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"has the value {value} of {key!r}, which is no finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"has a {type(value).__name__} as a value of {key!r}. Allowed: numbers, texts, true, false, "
        "null, and lists and maps of them"
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
