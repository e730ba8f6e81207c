"""Every key of the config file in words: what it is called, what it may be, what it means."""

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from fedh2l_mpi.config import Config, Section
from fedh2l_mpi.errors import UserError, did_you_mean


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


def select_keys(wanted: str | None = None) -> list[Key]:
    """Keys of a section, a single key, or every key whose name, meaning or words contain a text; None: all keys.

    Raises
    ------
    UserError
        If nothing contains the text.
    """
    keys = list(describe_keys())
    if wanted is None:
        return keys
    text = wanted.strip().lower().rstrip(".")
    inside = [key for key in keys if key.name == text or key.name.startswith(f"{text}.")]
    found = inside or [key for key in keys if text in f"{key.name}\n{key.allowed}\n{key.meaning}".lower()]
    if not found:
        sections = dict.fromkeys(key.name.rpartition(".")[0] for key in keys if "." in key.name)
        known = [*sections, *(key.name for key in keys)]
        raise UserError(
            f"--keys: no key contains {wanted!r}{did_you_mean(text, known)}. Sections: {', '.join(sections)}. "
            "Fix: name a section, a key or a word of its meaning."
        )
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the config file: editors complete and check a YAML file with it."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "fedh2l_mpi config"}


PAGE_HEAD = """\
# Configuration

A config is a YAML file; every key has a default, so a file holds only what differs.
On the command line, `--set section.key=value` overrides a key.
An unknown key is an error that names similar keys.

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
            default = f"`{json.dumps(key.default)}`"
            cells = (f"`{key.name}`", default, key.allowed, key.meaning)
            page.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(page)


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


if __name__ == "__main__":
    print(as_page(), end="")
