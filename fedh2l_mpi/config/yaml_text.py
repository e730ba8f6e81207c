"""Read and write YAML: the only place of the package where YAML text becomes values.

Numbers are those of YAML 1.2: 010 is ten, 0o10 is eight, and 1:30 is text. Words such as `yes` and `off` are switches,
as in YAML 1.1. The result does not depend on the version of PyYAML. A document is bounded before it takes time or
memory, because a few hundred bytes with aliases can stand for any number of values.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

# A map with the architecture of each of 10,000 participants has 20,002 values.
MOST_VALUES = 50_000
MOST_LEVELS = 50
MOST_CHARACTERS = 1_000_000
LONGEST_NUMBER = 100

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
# Source: YAML 1.2.2, section 10.3.2, "Tag Resolution" of the core schema.
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULL = re.compile(r"~|null|Null|NULL|")
# Source: YAML 1.1, "Boolean Language-Independent Type", as PyYAML reads it.
_BOOL = re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")


class YamlError(ValueError):
    """A text is not YAML, or more of it than is read. The message is one line."""


def read(text: str) -> Any:
    """Return the value of a YAML document; None if it is empty.

    Raises
    ------
    YamlError
        If the text is not YAML, gives a key twice, contains itself, or has more values, levels or characters than the
        bounds of this module.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"it has {len(text)} characters. At most {MOST_CHARACTERS} are read.")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise YamlError(" ".join(str(error).split())) from None


def write(value: object, **options: Any) -> str:
    """Return a value as YAML text, which YAML 1.1 and 1.2 read alike; `options` are those of `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2, with bounds, and without keys that are given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._levels = 0
        # Number of values of every anchor; None while the anchor's own value is being read.
        self._sizes: dict[str, int | None] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line, anchor = event.start_mark.line + 1, event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor in self._sizes and self._sizes[anchor] is None:
                raise YamlError(f"*{anchor} in line {line} stands for a value that contains it")
            self._count(self._sizes.get(anchor) or 0, line)
            return super().compose_node(parent, index)
        before = self._values
        self._count(1, line)
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise YamlError(f"line {line} is nested deeper than {MOST_LEVELS} levels")
        if anchor is not None:
            self._sizes[anchor] = None
        node = super().compose_node(parent, index)
        self._levels -= 1
        if anchor is not None:
            self._sizes[anchor] = self._values - before
        return node

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise YamlError(f"up to line {line}, it has more than {MOST_VALUES} values, aliases expanded")

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Check here, because a merge may add another mapping's keys before the mapping is constructed.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            key = "<<" if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise YamlError(f"line {line} has a {type(key).__name__} as a key")
            if key in seen:
                raise YamlError(f"key {key!r} is given twice, again in line {line}")
            seen.add(key)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError):
            # PyYAML assumes that a value fits the tag that the file puts before it, and fails without a line number.
            raise _misfit(node) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace each `<<` by the keys of its mappings. Own keys win, then the mapping that comes first in a list.

        PyYAML does the same, except that from 6.0.4 on the last mapping of a list wins, for some keys.
        """
        merged, own = [], []
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                own.append((key_node, value_node))
                continue
            # In a dictionary the last value stays.
            for mapping in reversed(value_node.value) if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(mapping, yaml.MappingNode):
                    raise YamlError(f"<< in line {key_node.start_mark.line + 1} must name mappings")
                self.flatten_mapping(mapping)
                merged += mapping.value
        node.value = merged + own

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self._number(node, _INT)
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        text = self._number(node, _FLOAT)
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def _number(self, node: yaml.ScalarNode, form: re.Pattern[str]) -> str:
        text = str(self.construct_scalar(node))
        if len(text) > LONGEST_NUMBER:
            line = node.start_mark.line + 1
            raise YamlError(f"the number in line {line} has {len(text)} characters. At most {LONGEST_NUMBER} are read.")
        if not form.fullmatch(text):
            raise _misfit(node)
        return text.lower()


def _misfit(node: yaml.Node) -> YamlError:
    tag, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
    return YamlError(f"got {node.value!r} in line {line}, must be a value of !!{tag}")


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also puts quotes around text that YAML 1.2 reads as a number."""


# Without those of YAML 1.1; the dumper has both.
_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_float)
for _name, _form in {"bool": _BOOL, "int": _INT, "float": _FLOAT, "null": _NULL, "merge": re.compile("<<")}.items():
    for _reader in (_Loader, _Dumper):
        _reader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_form.pattern})\Z"), None)
