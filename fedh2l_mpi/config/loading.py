"""A YAML file and dotted overrides to a Config; every mistake told by its dotted key, what was got, what is allowed."""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedh2l_mpi.config import Config, Section
from fedh2l_mpi.config.keys import describe_keys
from fedh2l_mpi.errors import UserError, did_you_mean

S = typing.TypeVar("S", bound=Section)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error instead of a silent last-one-wins."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, not when it is constructed: by then a merge may have put another mapping's keys in.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice, again in line {line}")
            seen.add(key)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError):
            # PyYAML takes it that a text fits the tag that somebody wrote before it.
            tag, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.MarkedYAMLError(
                problem=f"got {node.value!r} in line {line}, must be a value of !!{tag}"
            ) from None


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
    """The mapping in a YAML file, nothing checked but that it is one.

    Raises
    ------
    UserError
        If the file cannot be read or parsed, gives a key twice, or holds something else.
    """
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
    """An item like `"topology.degree=3"` as its dotted key and its value.

    Raises
    ------
    UserError
        If it does not look like that, or the value is not YAML.
    """
    key, equals, text = item.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {item!r}: must look like section.key=value")
    try:
        return key, yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"--set {item!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def put(raw: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Put a value under its dotted key into what was read from a file; `said` names the request in the message.

    Raises
    ------
    UserError
        If what the key leads through is a value, not a section.
    """
    *parents, last = key.split(".")
    for parent in parents:
        inner = {} if raw.get(parent) is None else raw[parent]
        if not isinstance(inner, dict):
            raise UserError(f"{said}: {parent} is a value, not a section")
        # A copy: by YAML's anchors, two sections of a file may be one object.
        raw[parent] = dict(inner)
        raw = raw[parent]
    raw[last] = value


_BOUNDS = {
    "greater_than": ("gt", "must be > {}"),
    "greater_than_equal": ("ge", "must be >= {}"),
    "less_than": ("lt", "must be < {}"),
    "less_than_equal": ("le", "must be <= {}"),
}


def _explain(detail: ErrorDetails, root: type[Section]) -> str:
    """One pydantic error as `dotted.key: got value, what is allowed`."""
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    parts, annotation = _place(detail["loc"], root)
    where = ".".join(parts)
    if kind == "extra_forbidden":
        known = list(annotation.model_fields)
        keys = describe_keys() if root is Config else ()
        everywhere = [key.name for key in keys if key.name.split(".")[-1] == parts[-1]]
        hint = did_you_mean(parts[-1], known) or (f" (did you mean {everywhere[0]!r}?)" if everywhere else "")
        return f"{where}: unknown key; known here: {', '.join(known)}{hint}"
    if kind == "literal_error":
        known = _words(annotation)
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


def _place(location: Sequence[int | str], root: type[Section]) -> tuple[list[str], Any]:
    """Where pydantic found a mistake, as keys of the file; and what the last of them that is known may hold.

    Pydantic adds names of its own: of the branch of a union, and `[key]` for the key of a map instead of its value.
    """
    keys, rest = [], list(location)
    annotation: Any = root
    while rest and isinstance(annotation, type) and issubclass(annotation, Section):
        keys.append(str(rest.pop(0)))
        field = annotation.model_fields.get(keys[-1])
        if field is None:
            break
        annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        named = [branch for branch in typing.get_args(annotation) if branch is not types.NoneType]
        rest = rest[1:] if len(named) > 1 else rest
    return keys + [str(part) for part in rest if part != "[key]"], annotation


def _words(annotation: Any) -> list[str]:
    """The words of every Literal in an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [word for inner in typing.get_args(annotation) for word in _words(inner)]
