"""Every key of the config file: its default, allowed values and meaning, as text and as JSON Schema for editors."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedh2l_mpi.config import Config, Section, classic, recipes
from fedh2l_mpi.config.section import LARGEST, KindSection, all_fields, allows_null, is_section, users
from fedh2l_mpi.errors import UserError, did_you_mean

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Whole numbers are bounded so that products fit in 64 bits; nobody comes near, so texts do not mention it.
UNBOUNDED = LARGEST


class Key(NamedTuple):
    """One key of the config file.

    Attributes
    ----------
    name : str
        Dotted name.
    default : object
        Default value of the standard recipe, or a text such as `0.5; quantity: 1.0` if kinds or other keys decide it.
    allowed : str
        Allowed values.
    meaning : str
        Meaning, with the unit in brackets.
    used_by : tuple of str
        Kinds of the section that have the key; empty if all have it.
    classic : str
        Default of the classic recipe as text; empty if it is the same.
    """

    name: str
    default: Any
    allowed: str
    meaning: str
    used_by: tuple[str, ...] = ()
    classic: str = ""

    def __str__(self) -> str:
        kinds = f"\n    used by: {', '.join(self.used_by)}" if self.used_by else ""
        default = f"{self.default_text} (classic: {self.classic})" if self.classic else self.default_text
        return f"{self.name}: {default}\n    {self.allowed}\n    {self.meaning}{kinds}"

    @property
    def default_text(self) -> str:
        """Default as it stands in a file, or the defaults of the kinds."""
        return self.default if isinstance(self.default, Defaults) else json.dumps(self.default)


class Defaults(str):
    """Text of defaults that differ from kind to kind."""


def describe_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[Key]:
    """Yield every key of the config file, in the order of the file."""
    for name, field in all_fields(section).items():
        if is_section(field.annotation):
            yield from describe_keys(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        kinds = users(section, name) or _users_own(section, name)
        allowed = _allowed(_value_schema(section, name, field))
        default, classically = _defaults(f"{prefix}{name}", field, kinds)
        yield Key(f"{prefix}{name}", default, allowed, field.description or "", tuple(kinds), classically)


def select_keys(wanted: str | None = None) -> list[Key]:
    """Return the keys of a section, a single key, or all keys with a word in their name, allowed values or meaning.

    Raises
    ------
    UserError
        If no key matches.
    """
    keys = list(describe_keys())
    if wanted is None:
        return keys
    text = wanted.strip().lower().rstrip(".")
    found = [key for key in keys if key.name == text or key.name.startswith(f"{text}.")]
    found = found or [key for key in keys if text in str(key).lower()]
    if not found:
        sections = dict.fromkeys(key.name.rpartition(".")[0] for key in keys if "." in key.name)
        known = [*sections, *(key.name for key in keys)]
        raise UserError(
            f"--keys: no key contains {wanted!r}{did_you_mean(text, known)}. Sections: {', '.join(sections)}. "
            "Fix: name a section, a key or a word of its meaning."
        )
    return found


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the config file, with which editors complete and check a YAML file."""
    return {"$schema": DIALECT, "title": "Configuration of fedh2l_mpi", **_section_schema(Config)}


def _section_schema(section: type[Section], prefix: str = "") -> dict[str, Any]:
    properties = {}
    for name, field in all_fields(section).items():
        if is_section(field.annotation):
            properties[name] = _section_schema(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        kinds = users(section, name) or _users_own(section, name)
        schema = _value_schema(section, name, field)
        if kinds and not allows_null(field):
            schema = _or_null(schema)
        (default, classically), meaning = _defaults(f"{prefix}{name}", field, kinds), field.description or ""
        if isinstance(default, Defaults):
            meaning += f" (default {default})"
        elif default is not ...:
            schema["default"] = default
        meaning += f" (classic: {classically})" if classically else ""
        meaning += f" [used by {', '.join(kinds)}]" if kinds else ""
        properties[name] = {**schema, "description": meaning}
    text = (section.__doc__ or "").strip().splitlines()[0]
    allowed = ["object", "null"] if section.may_be_null else "object"
    schema = {"description": text, "type": allowed, "properties": properties, "additionalProperties": False}
    rules = _rules_of_kinds(section)
    if issubclass(section, KindSection):
        # The name of a kind stands for a section of that kind; the other rules are about objects only.
        kind = _value_schema(section, section.kind_key, section.model_fields[section.kind_key])
        schema.pop("type")
        schema |= {"anyOf": [{"type": "object"}, *kind.get("anyOf", [kind])]}
    return {**schema, "allOf": rules} if rules else schema


def _rules_of_kinds(section: type[Section]) -> list[dict[str, Any]]:
    """Rules of a section with kinds: null for other kinds' keys, and the keys that a kind needs."""
    if not issubclass(section, KindSection):
        return []
    every, rules = all_fields(section), []
    for name, kind in section.kinds.items():
        condition: dict[str, Any] = {"properties": {section.kind_key: {"const": name}}}
        if name != section.default_kind():
            condition["required"] = [section.kind_key]
        then: dict[str, Any] = {}
        others = [key for key in every if key not in kind.model_fields]
        needed = [key for key, field in kind.model_fields.items() if field.is_required()]
        if others or needed:
            then["properties"] = {key: {"type": "null"} for key in others}
            then["properties"] |= {key: {"not": {"type": "null"}} for key in needed}
        if needed:
            then["required"] = needed
        if then:
            rules.append({"if": condition, "then": then})
    return rules


def _users_own(section: type[Section], name: str) -> dict[str, FieldInfo]:
    """The key that only a method of the user's own has."""
    if name in section.model_fields or not issubclass(section, KindSection):
        return {}
    return {cls.kind_name: cls.model_fields[name] for cls in section.classes() if name in cls.model_fields}


def _defaults(key: str, field: FieldInfo, kinds: Mapping[str, FieldInfo]) -> tuple[Any, str]:
    """Default of the standard recipe, and the text of the classic one where it differs."""
    rule = recipes.STANDARD.get(key)
    declared = {name: _plain(one.default) for name, one in kinds.items()} or {"": _plain(field.default)}
    default = _of_kinds(declared) if rule is None else Defaults(rule.text)
    before = _of_kinds({name: _plain(classic.value(key, name)) for name in declared})
    text = before if isinstance(before, Defaults) else json.dumps(before)
    return default, "" if before == default or key == "recipe" else text


def _of_kinds(values: Mapping[str, Any]) -> Any:
    """Default value, by kind; a text where kinds differ or the key must be given."""
    shown = {name: "must be given" if value is ... else json.dumps(value) for name, value in values.items()}
    if len(set(shown.values())) == 1:
        only = next(iter(values.values()))
        return Defaults("must be given") if only is ... else only
    most = max(shown.values(), key=list(shown.values()).count)
    others = [f"{name}: {text}" for name, text in shown.items() if text != most]
    return Defaults("; ".join([most, *others]))


def _plain(default: Any) -> Any:
    return ... if default is PydanticUndefined else list(default) if isinstance(default, tuple) else default


def _value_schema(section: type[Section], name: str, field: FieldInfo) -> dict[str, Any]:
    """JSON Schema of a key's value, without default and description."""
    if issubclass(section, KindSection) and name == section.kind_key:
        words: dict[str, Any] = {"enum": list(section.kinds)}
        own = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
        names = [one.kind_name for one in section.classes() if one.kind_name not in section.kinds]
        return {"anyOf": [words, *({**own, "title": f"your own as {name}"} for name in names)]} if names else words
    schema = section_of(section, name).model_json_schema()["properties"][name]
    return {key: value for key, value in schema.items() if key not in ("title", "default", "description")}


def section_of(section: type[Section], name: str) -> type[Section]:
    """Return the section itself, or the first class of a kind that has the key."""
    if name in section.model_fields or not issubclass(section, KindSection):
        return section
    return next(kind for kind in section.classes() if name in kind.model_fields)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


PAGE_HEAD = """\
# Configuration

A config is a YAML file; every key has a default, so a file holds only what differs.

`recipe` chooses the defaults: those below, or with `classic` those of the first revisions.
A default in brackets is the classic one, where the two differ.
A key that is given wins, and a run's `config.yaml` has every key.

The name of a kind stands for its section: `topology: ring` is `topology: {kind: ring}`.

On the command line, `--set section.key=value` overrides a key, and `--set topology=ring` a kind.
An unknown key is an error that names similar keys.

Numbers are those of YAML 1.2: `010` is ten, and `1:30` is text, which only a time may be.
`yes`, `on`, `no` and `off` are switches, as in YAML 1.1.

```sh
python -m fedh2l_mpi --keys topology                 # this list for a section, a key or a word
python -m fedh2l_mpi --check mine.yaml               # check a config without training
python -m fedh2l_mpi --schema > fedh2l_mpi.json      # a JSON Schema, for editors
```

An editor that knows YAML schemas completes and checks a config whose first line is
`# yaml-language-server: $schema=fedh2l_mpi.json`.

This page is generated: `python -m fedh2l_mpi.config.keys > docs/configuration.md`.
"""


def as_page() -> str:
    """Return docs/configuration.md: every key in a table per section."""
    sections: dict[str, list[Key]] = {}
    for key in describe_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    page = [PAGE_HEAD]
    for section, keys in sections.items():
        page.append(
            f"\n## {section or 'The run'}\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n"
        )
        for key in keys:
            kinds = f" (used by: {', '.join(key.used_by)})" if key.used_by else ""
            default = f"`{key.default_text}`" + (f" (classic: `{key.classic}`)" if key.classic else "")
            cells = (f"`{key.name}`", default, key.allowed, key.meaning + kinds)
            page.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(page)


def _allowed(schema: Mapping[str, Any]) -> str:
    """Allowed values in words, from their JSON Schema."""
    if "anyOf" in schema:
        return " or ".join(_allowed(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if "pattern" in schema:
        return str(schema.get("title") or f"text such as {schema['examples'][0]}")
    if schema["type"] == "array":
        return _list(schema)
    kinds = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    kinds |= {"object": "map", "null": "null"}
    return f"{kinds[schema['type']]} {_range(schema)}".strip()


def _list(schema: Mapping[str, Any]) -> str:
    """A list in words: its length, if it is fixed, and its items."""
    if "prefixItems" in schema:
        items = [_allowed(item) for item in schema["prefixItems"]]
        alike = f"each {items[0]}" if len(set(items)) == 1 else ", ".join(items)
        return f"list of {len(items)}, {alike}"
    return f"list of {_allowed(schema['items'])}"


def _range(schema: Mapping[str, Any]) -> str:
    """Range of a number in words: `from 0 to 1`, `>= 1`, `> 0 and < 1`."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and high >= UNBOUNDED and schema["type"] == "integer":
        high = None
    if low is not None and high is not None:
        return f"from {_number(low)} to {_number(high)}"
    bounds = {">=": low, ">": schema.get("exclusiveMinimum"), "<=": high, "<": schema.get("exclusiveMaximum")}
    if schema["type"] == "integer" and (bounds["<"] or 0) >= UNBOUNDED:
        del bounds["<"]
    return " and ".join(f"{sign} {_number(bound)}" for sign, bound in bounds.items() if bound is not None)


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


if __name__ == "__main__":
    print(as_page(), end="")
