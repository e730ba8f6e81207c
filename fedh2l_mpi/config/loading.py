"""Load a Config from a YAML file and dotted overrides.

The message about a mistake has its dotted key, the value that was given, and the allowed values.
"""

import copy
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedh2l_mpi.config import Config, Section, recipes, yaml_text
from fedh2l_mpi.config.keys import describe_keys
from fedh2l_mpi.config.section import KindSection, all_fields, is_section, section_at, with_kind
from fedh2l_mpi.config.text_files import read_text
from fedh2l_mpi.errors import LONGEST_VALUE, UserError, did_you_mean, shorten, shown

S = typing.TypeVar("S", bound=Section)


# A config is short; the bound keeps a file that is no config from being read for minutes.
MOST_BYTES = yaml_text.MOST_CHARACTERS
# Mistakes that one message lists.
MOST_MISTAKES = 20


def load(
    source: str | Path | Mapping[str, Any] | Config | None,
    overrides: Sequence[str] = (),
    resumes: Path | None = None,
) -> Config:
    """Return a checked config: a file, a dict or a config, with dotted overrides put over it.

    Parameters
    ----------
    source : path, mapping, Config or None
        A YAML file, sections and keys as such a file has them, a config, or None for the built-in default.
    overrides : sequence of str
        Items such as `"topology.degree=3"`; the value is read as YAML.
    resumes : path or None
        The config.yaml of the run that is resumed. A config that names no recipe has that run's defaults.

    Raises
    ------
    UserError
        If the file cannot be read or parsed, or a value is wrong. The message has one line per mistake.
    """
    where = ""
    # Before the file, because a shell that splits an item makes the rest of it the name of the file.
    settings = [(item, *parse_override(item)) for item in overrides]
    if source is None:
        raw: dict[str, Any] = {}
    elif isinstance(source, Config):
        raw = yaml_text.read(source.to_yaml())
    elif isinstance(source, Mapping):
        raw = copy.deepcopy(dict(source))
    elif isinstance(source, str | Path):
        raw, where = read_run_yaml(Path(source)), f"{source}: "
    else:
        raise UserError(f"config: got {shown(source)}. Allowed: a dict, the path of a YAML file, a Config, or None.")
    for item, key, value in settings:
        put(raw, key, value, said=f"--set {shown(item)}")
    if resumes is not None:
        raw = recipes.as_before(Config, raw, read_yaml(resumes))
    return validate(Config, raw, where)


def load_stored(source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Return the checked config of a run from its config.yaml, or from what such a file contains.

    A key that the file lacks is younger than the run, so it has its classic value.

    Raises
    ------
    UserError
        As `load`.
    """
    found = read_yaml(source) if isinstance(source, Path) else copy.deepcopy(dict(source))
    raw, where = recipes.of_stored(Config, found), f"{source}: " if isinstance(source, Path) else ""
    for item in overrides:
        put(raw, *parse_override(item), said=f"--set {shown(item)}")
    return validate(Config, raw, where)


def validate(section: type[S], raw: object, where: str = "") -> S:
    """Return a section made of what was read, with every value checked.

    Parameters
    ----------
    section : type
        `Config`, or the section that another file contains.
    where : str
        Start of the message, such as the file's name and a colon.

    Raises
    ------
    UserError
        If a value is wrong. The message has one line per mistake.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        details = error.errors()
        lines = list(dict.fromkeys(_explain(detail, section) for detail in details[:MOST_MISTAKES]))
        if len(details) > MOST_MISTAKES:
            lines.append(f"and {len(details) - MOST_MISTAKES} mistakes more")
        raise UserError(where + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, without any check of its keys and values.

    Raises
    ------
    UserError
        If the file cannot be read or parsed, gives a key twice, or does not contain a mapping.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except OSError as error:
        # By their stems, because the common suffix would make any two names alike.
        siblings = {other.stem: other for other in path.parent.glob("*.yaml")} if path.parent.is_dir() else {}
        near = difflib.get_close_matches(path.stem, siblings, n=1)
        hint = f" (did you mean {siblings[near[0]]}?)" if near else ""
        if "=" in path.name:
            hint = f". Fix: put --set before each setting, as in --set {path}"
        raise UserError(f"{path}: cannot read the config: {error.strerror}{hint}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot read the config: {error}") from None
    try:
        raw = yaml_text.read(text)
    except yaml_text.YamlError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        hint = ", one `key: value` in a line, with a blank after the colon" if isinstance(raw, str) else ""
        raise UserError(f"{path}: got a {type(raw).__name__}, must be a mapping of keys to values{hint}")
    return raw


def read_run_yaml(path: Path) -> dict[str, Any]:
    """Return the same as `read_yaml` for a file that must be a run's.

    Raises
    ------
    UserError
        As `read_yaml`, or if it is the file of a sweep.
    """
    raw = read_yaml(path)
    if "axes" in raw or "elements" in raw:
        raise UserError(
            f"{path}: this is the file of a sweep, not the config of a run. Fix: use the command `sweep`, or the "
            "option --sweep of `slurm`."
        )
    return raw


def parse_override(item: str) -> tuple[str, Any]:
    """Split an item such as `"topology.degree=3"` into its dotted key and its value.

    Raises
    ------
    UserError
        If the item has another form, or the value is not YAML.
    """
    key, equals, text = item.partition("=")
    key, item = key.strip(), shorten(item, LONGEST_VALUE)
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {item!r}: must look like section.key=value: --set takes KEY=VALUE, such as rounds=5")
    try:
        return key, yaml_text.read(text)
    except yaml_text.YamlError as error:
        raise UserError(f"--set {item!r}: the value is not valid YAML: {error}") from None


def put(raw: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Set a value by its dotted key in what was read from a file; `said` names the request in messages.

    A text for a section, such as `topology=ring`, sets its kind; the section's other keys stay.

    Raises
    ------
    UserError
        If a part of the key before the last is a value, not a section.
    """
    of_kind = section_at(Config, key)
    if of_kind is not None and issubclass(of_kind, KindSection) and isinstance(value, str):
        key = f"{key}.{of_kind.kind_key}"
    *parents, last = key.split(".")
    for number, parent in enumerate(parents, 1):
        section = section_at(Config, ".".join(parents[:number]))
        inner = {} if raw.get(parent) is None else raw[parent]
        inner = inner if section is None else with_kind(section, inner)
        if not isinstance(inner, dict):
            raise UserError(f"{said}: {parent} is a value, not a section")
        # Copy, because two sections of a file may be one object by YAML's anchors.
        raw[parent] = dict(inner)
        raw = raw[parent]
    raw[last] = value


_COLLECTIONS = {
    "list_type": "a list, such as [1, 2]",
    "tuple_type": "a list, such as [1, 2]",
    "dict_type": "a map, such as {name: value}",
}
_BOUNDS = {
    "greater_than": ("gt", "must be > {}"),
    "greater_than_equal": ("ge", "must be >= {}"),
    "less_than": ("lt", "must be < {}"),
    "less_than_equal": ("le", "must be <= {}"),
}


def _explain(detail: ErrorDetails, root: type[Section]) -> str:
    """Return one pydantic error as `dotted.key: got value, allowed values`."""
    kind, got, context = detail["type"], detail["input"], detail.get("ctx", {})
    parts, section = _place(detail["loc"], root)
    where = ".".join(parts)
    if kind == "problem":
        return f"{where}: {detail['msg']}"
    if kind == "extra_forbidden":
        known = list(all_fields(section))
        keys = describe_keys() if root is Config else ()
        if "." in parts[-1] and where in [key.name for key in keys]:
            *sections, last = parts[-1].split(".")
            nested = f"{': {'.join([*sections, last])}: ...{'}' * len(sections)}"
            return f"{where}: a file has sections instead of dotted keys. Fix: write {nested}"
        everywhere = [key.name for key in keys if key.name.split(".")[-1] == parts[-1]]
        hint = did_you_mean(parts[-1], known) or (f" (did you mean {everywhere[0]!r}?)" if everywhere else "")
        return f"{where}: unknown key; known here: {', '.join(known)}{hint}"
    if kind == "literal_error":
        known = re.findall("'([^']*)'", context["expected"])
        return f"{where}: got {shown(got)}; known: {', '.join(sorted(known))}{_switch_or_word(got, known)}"
    if kind in _BOUNDS:
        key, text = _BOUNDS[kind]
        return f"{where}: got {shown(got)}, {text.format(context[key])}"
    if kind == "model_type":
        return f"{where}: got {shown(got)}, must be a section of keys and values"
    if kind == "missing":
        return f"{where}: must be given"
    if kind in _COLLECTIONS:
        return f"{where}: got {shown(got)}, must be {_COLLECTIONS[kind]}"
    return f"{where}: got {shown(got)}; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _switch_or_word(got: object, known: Sequence[str]) -> str:
    """Return a hint at the known word that is near to what was got; YAML reads `off` and `no` as false."""
    return " (did you mean 'none'?)" if got is False and "none" in known else did_you_mean(got, known)


def _inner_section(annotation: Any) -> Any:
    """Return the section that the values of a map are; None for any other annotation."""
    inner = typing.get_args(annotation)[-1] if typing.get_origin(annotation) is dict else None
    return inner if is_section(inner) else None


def _place(location: Sequence[int | str], root: type[Section]) -> tuple[list[str], type[Section]]:
    """Return the place of a mistake as keys of the file, and the innermost section around it.

    Pydantic adds names of its own, which are left out: the branch of a union, and `[key]` for the key of a map.
    """
    keys, rest, section = [], list(location), root
    annotation: Any = root
    while rest and (is_section(annotation) or _inner_section(annotation)):
        if not is_section(annotation):
            # The key of a map of sections.
            keys.append(str(rest.pop(0)))
            annotation = _inner_section(annotation)
            continue
        section = annotation
        keys.append(str(rest.pop(0)))
        field = all_fields(section).get(keys[-1])
        annotation = None if field is None else field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        named = [branch for branch in typing.get_args(annotation) if branch is not types.NoneType]
        rest = rest[1:] if len(named) > 1 else rest
    return keys + [str(part) for part in rest if part != "[key]"], section
