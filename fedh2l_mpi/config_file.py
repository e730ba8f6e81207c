"""A YAML file and dotted overrides to a Config; every mistake told by its dotted key, what was got, what is allowed."""

import difflib
import typing
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedh2l_mpi.config import Config, Section
from fedh2l_mpi.config_keys import describe_keys
from fedh2l_mpi.errors import UserError

S = typing.TypeVar("S", bound=Section)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error instead of a silent last-one-wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with dotted overrides put over it; without a file, the built-in default.

    Parameters
    ----------
    path : path or None
        A YAML file.
    overrides : sequence of str
        Items like `"topology.degree=3"`; the value is read as YAML.

    Raises
    ------
    UserError
        If the file cannot be read or parsed, or a value is wrong; the message has one line for each mistake.
    """
    raw = read_yaml(Path(path)) if path is not None else {}
    for item in overrides:
        put(raw, *parse_override(item), said=f"--set {item!r}")
    return validate(Config, raw, f"{path}: " if path is not None else "")


def validate(section: type[S], raw: object, where: str = "") -> S:
    """What was read, as a section of which every value has been checked.

    Parameters
    ----------
    section : type
        `Config`, or the section that another file holds.
    where : str
        Put before the message, such as the file's name and a colon.

    Raises
    ------
    UserError
        If a value is wrong; the message has one line for each mistake.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(detail, section) for detail in error.errors()))
        raise UserError(where + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, nothing checked but that it is one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        beside = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f" (did you mean {path.with_name(near[0])}?)" if near else ""
        raise UserError(f"{path}: cannot read the config: {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the config is not UTF-8 text") from None
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: got a {type(raw).__name__}, must be a mapping of keys to values")
    return raw


def parse_override(item: str) -> tuple[str, Any]:
    """An item like `"topology.degree=3"` as its dotted key and its value."""
    key, equals, text = item.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {item!r}: must look like section.key=value")
    try:
        return key, yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"--set {item!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def put(raw: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Put a value under its dotted key into what was read from a file; `said` names the request in the message."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = {} if raw.get(parent) is None else raw[parent]
        if not isinstance(inner, dict):
            raise UserError(f"{said}: {parent} is a value, not a section")
        # A copy: by YAML's anchors, two sections of a file may be one object.
        raw[parent] = dict(inner)
        raw = raw[parent]
    raw[last] = value


def _known_keys(location: Sequence[int | str], section: type[Section]) -> list[str]:
    for part in location:
        field = section.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return []
        section = field.annotation
    return list(section.model_fields)


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """A hint at the nearest of the known words, to be put at the end of a message; empty if none is near."""
    near = difflib.get_close_matches(str(word), known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else ""


_BOUNDS = {
    "greater_than": ("gt", "must be > {}"),
    "greater_than_equal": ("ge", "must be >= {}"),
    "less_than": ("lt", "must be < {}"),
    "less_than_equal": ("le", "must be <= {}"),
}


def _explain(detail: ErrorDetails, root: type[Section]) -> str:
    """One pydantic error as `dotted.key: got value, what is allowed`."""
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    # Names that pydantic adds for the branches of a union are no keys of the file.
    parts = [str(part) for part in detail["loc"] if "[" not in str(part)]
    where = ".".join(parts)
    if kind == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1], root)
        keys = describe_keys() if root is Config else ()
        everywhere = [key.name for key in keys if key.name.split(".")[-1] == parts[-1]]
        hint = did_you_mean(parts[-1], known) or (f" (did you mean {everywhere[0]!r}?)" if everywhere else "")
        return f"{where}: unknown key; known here: {', '.join(known)}{hint}"
    if kind == "literal_error":
        known = list(typing.get_args(_annotation(detail["loc"], root)))
        return f"{where}: got {got!r}; known: {', '.join(sorted(known))}{did_you_mean(got, known)}"
    if kind in _BOUNDS:
        key, text = _BOUNDS[kind]
        return f"{where}: got {got!r}, {text.format(context[key])}"
    if kind in ("unused_key", "needed_key", "rotation_range"):
        return f"{where}.{detail['msg']}" if where else detail["msg"]
    if kind == "unknown_name":
        return f"{where}: {detail['msg']}"
    if kind == "model_type":
        return f"{where}: got {got!r}, must be a section of keys and values"
    return f"{where}: got {got!r}; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _annotation(location: Sequence[int | str], section: Any) -> Any:
    for part in location:
        section = section.model_fields[str(part)].annotation
    return section
