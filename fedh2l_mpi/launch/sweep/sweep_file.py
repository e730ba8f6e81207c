"""Expand a sweep file into its elements: a base config with every combination of settings. Nothing runs here.
base: ../rotated_mnist.yaml            # relative to the sweep file; null: the built-in default
set: {rounds: 40}                      # dotted keys, over the base
axes:                                  # every combination, the last axis fastest
  method: [independent, fedh2l]
  seed: [0, 1, 2]
elements:                              # named settings, crossed with the axes
  - {name: small, data.partition.samples_per_participant: 100}
table:
  {columns: [accuracy_all, bytes_sent], reach: [0.85], compare_to: fedh2l, gap: {low: independent, high: pooled}}

Several lists of named settings are crossed with each other: `elements: {size: [...], method: [...]}`. In `compare_to`
and `gap`, a name is a row, or the value that several rows have on one axis; each row is then compared to the one that
has its values on the other axes.
"""

import contextlib
import copy
import functools
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from fedh2l_mpi.analysis.controls import Control, Gap, find_control, find_gap
from fedh2l_mpi.config import Config, Section
from fedh2l_mpi.config.keys import describe_keys
from fedh2l_mpi.config.loading import parse_override, put, read_run_yaml, read_yaml, validate
from fedh2l_mpi.config.section import section_at, with_kind
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.launch.sweep.table_config import TableConfig

# Each method has its own keys, so naming another method drops the base's; all methods have the numbers of steps.
KEPT_BY_METHODS = ("local_steps", "mutual_steps")
# File names have at most 255 bytes on most file systems, and suffixes are added to the label.
LONGEST_LABEL = 180
# Each run is a process, and its config is checked in 2 ms before the first one starts.
MOST_ELEMENTS = 10_000
SEED = "seed"
# Axis of the named elements of a sweep that has one list of them.
ELEMENT = "element"


class SweepFile(Section):
    """Keys of a sweep file."""

    base: str | None = None
    set: dict[str, Any] = Field({})
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})
    elements: dict[str, list[dict[str, Any]]] = Field({})
    table: TableConfig = TableConfig()

    @field_validator("elements", mode="before")
    @classmethod
    def _by_axis(cls, elements: object) -> object:
        """Return lists of named settings by the name of their axis; a single list has no name of its own."""
        return ({ELEMENT: elements} if elements else {}) if isinstance(elements, list) else elements


@dataclass(frozen=True)
class Element:
    """One run of a sweep.

    Attributes
    ----------
    label : str
        Name of its run directory: safe in a file system, and unique in the sweep.
    row : str
        Name of its row in the table. Elements that differ only in the seed share a row.
    settings : mapping
        Its value on every axis except the seed's, as text.
    config : Config
        Resolved config.
    """

    label: str
    row: str
    settings: Mapping[str, str]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """All elements in their order, and the contents of the table."""

    path: Path
    elements: tuple[Element, ...]
    table: TableConfig

    @property
    def rows(self) -> list[str]:
        """The table's rows in the order of the elements."""
        return list(dict.fromkeys(element.row for element in self.elements))

    @property
    def compare_to(self) -> Control | None:
        """The control that the table compares its rows to."""
        name = self.table.compare_to
        return None if name is None else self._control("table.compare_to", name)

    @property
    def gap(self) -> Gap | None:
        """The controls of the gap that the table shows shares of."""
        asked = self.table.gap
        if asked is None:
            return None
        low, high = self._control("table.gap.low", asked.low), self._control("table.gap.high", asked.high)
        return find_gap(f"{self.path}: table.gap", low, high, asked.measure)

    def _control(self, key: str, name: str) -> Control:
        return find_control(f"{self.path}: {key}", name, {element.row: element.settings for element in self.elements})


def load(path: Path, overrides: Sequence[str] = (), ranks: int | None = None) -> Sweep:
    """Read a sweep from a YAML file and validate every element.

    Parameters
    ----------
    overrides : sequence of str
        Items like `"data.root=/data"`, which override the base of every element.
    ranks : int or None
        MPI processes of each run; None: a single process without MPI. The configs do not depend on it. If the base
        does not set the number of participants, there are 4.

    Raises
    ------
    UserError
        One line for each mistake in the file or, if the file is correct, for each mistake in the elements.
    """
    found = read_yaml(path)
    if found and not found.keys() & SweepFile.model_fields.keys() and found.keys() <= Config.model_fields.keys():
        raise UserError(
            f"{path}: this is the config of a run, not the file of a sweep. Fix: write a file with `base: {path.name}` "
            "and `axes`, or leave out `sweep`."
        )
    file = validate(SweepFile, found, f"{path}: ")
    given = dict(parse_override(item) for item in overrides)
    _raise(path, _mistakes(file, given))

    raw = read_run_yaml(path.parent / file.base) if file.base is not None else {}
    raw = _over(_over(raw, file.set), given)
    elements: list[Element] = []
    mistakes = Mistakes()
    for point in _points(file):
        label, row = _label(point), _row(point) or path.stem
        with mistakes.noting(label):
            config = validate(Config, _over(raw, _settings(point))).resolved(1, launched=False)
            # `resolved` does not get the ranks, because a sweep's results must not depend on their number.
            if ranks is not None and ranks > config.size:
                raise UserError(f"--ranks: got {ranks}, but there are {config.size} participants. Use at most that.")
            settings = {key: ", ".join(_parts({key: value}, bare=True)) for key, value in point.items()}
            settings.pop(SEED, None)
            elements.append(Element(label, row, settings, config))
    mistakes.raise_all(path)

    sweep = Sweep(path, tuple(elements), file.table)
    # The table comes last, so an unknown name in it is reported before anything runs.
    _ = sweep.compare_to, sweep.gap
    return sweep


class Mistakes:
    """Collect the mistakes of a sweep's elements, to report all of them together and each of them once."""

    def __init__(self) -> None:
        self._labels: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def noting(self, label: str) -> Iterator[None]:
        """Record a UserError that is raised inside the block, as a mistake of the element `label`."""
        try:
            yield
        except UserError as error:
            for line in filter(None, str(error).split("\n  ")):
                self._labels.setdefault(line, []).append(label)

    def raise_all(self, path: Path) -> None:
        """Raise one UserError for all recorded mistakes, if there are any."""
        stops = {line: "." if line.endswith(".") else "" for line in self._labels}
        _raise(
            path,
            [f"{line.removesuffix('.')} (in {_listed(labels)}){stops[line]}" for line, labels in self._labels.items()],
        )


def _raise(path: Path, lines: Sequence[str]) -> None:
    if lines:
        raise UserError(f"{path}: " + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines))


@dataclass(frozen=True)
class Named:
    """A named element: its name and its settings, by dotted key."""

    name: str
    settings: Mapping[str, Any]


# A point of the grid: the value of each axis by its key, or the named element by the name of its axis.
Point = Mapping[str, Any]


def _points(file: SweepFile) -> Iterator[Point]:
    named = {axis: [Named(own["name"], _own(own)) for own in elements] for axis, elements in file.elements.items()}
    axes: dict[str, list[Any]] = {**named, **file.axes}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _own(element: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a named element."""
    return {key: value for key, value in element.items() if key != "name"}


def _settings(point: Point) -> dict[str, Any]:
    """Return dotted keys and values of a point, as they stand in the file."""
    settings: dict[str, Any] = {}
    for key, value in point.items():
        settings |= value.settings if isinstance(value, Named) else {key: value}
    return settings


def _over(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what a config file contains, overridden by settings."""
    config = copy.deepcopy(dict(raw))
    if "method" in settings and isinstance(config.get("method"), dict):
        config["method"] = {key: value for key, value in config["method"].items() if key in KEPT_BY_METHODS}
    for key, value in _leaves_of(settings).items():
        put(config, key, value, said=key)
    return config


def _leaves_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    # `method` must come before `method.temperature`, in whatever order the file has them.
    for key in sorted(settings, key=lambda key: key.count(".")):
        leaves |= _leaves(key, settings[key])
    return leaves


def _leaves(key: str, value: Any) -> dict[str, Any]:
    """Split the setting of a section into settings of its keys: `topology: {kind: ring}` is `topology.kind: ring`."""
    section = section_at(Config, key)
    if section is not None:
        value = with_kind(section, value)
    if isinstance(value, dict) and any(name.startswith(f"{key}.") for name in _known_keys()):
        return {name: leaf for inner in value for name, leaf in _leaves(f"{key}.{inner}", value[inner]).items()}
    return {key: value}


@functools.cache
def _known_keys() -> tuple[str, ...]:
    return tuple(key.name for key in describe_keys())


def _mistakes(file: SweepFile, given: Mapping[str, Any]) -> list[str]:
    """Return one line for each mistake in the file's structure; `given` contains the command line's settings."""
    lines = []
    if not file.axes and not file.elements:
        lines.append("axes, elements: both are empty, so nothing varies. Give at least one of them.")
    lines += _unknown_keys("set", file.set) + _unknown_keys("axes", file.axes) + _unknown_keys("--set", given)
    for axis, elements in file.elements.items():
        lines += _mistaken_elements(file, axis, elements)
    for key, values in file.axes.items():
        texts = Counter(map(_text, values))
        lines += [f"axes.{key}: the value {text} occurs {n} times" for text, n in texts.items() if n > 1]
    leaves_by_axis = Counter(
        leaf for key, values in file.axes.items() for leaf in {leaf for value in values for leaf in _leaves(key, value)}
    )
    lines += [f"axes: {n} axes set the key {leaf}" for leaf, n in leaves_by_axis.items() if n > 1]
    by_elements = Counter(leaf for elements in file.elements.values() for leaf in _element_leaves(elements))
    lines += [f"elements: {n} of its lists set the key {leaf}" for leaf, n in by_elements.items() if n > 1]
    lines += _overruled("set", file.set, file, _axis_leaves(file))
    lines += _overruled("--set", given, file, _axis_leaves(file) | set(by_elements))
    sizes = [*map(len, file.elements.values()), *map(len, file.axes.values())]
    if math.prod(sizes) > MOST_ELEMENTS:
        lines.append(
            f"axes, elements: {' x '.join(map(str, sizes))} are {math.prod(sizes)} runs, more than the {MOST_ELEMENTS} "
            "that a sweep may have. Split it into several files."
        )
    if not lines:
        lines += _same_labels(file)
    return lines


def _mistaken_elements(file: SweepFile, axis: str, elements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each mistake in a list of named elements."""
    place = "elements" if axis == ELEMENT else f"elements.{axis}"
    lines = [] if elements else [f"{place}: the list is empty. Give at least one element."]
    if axis in file.axes or axis == SEED:
        lines.append(f"{place}: the name {axis!r} is that of an axis. Choose another.")
    names = []
    for number, element in enumerate(elements):
        where = f"{place}.{number}"
        if not isinstance(element.get("name"), str) or not element["name"].strip():
            lines.append(f"{where}.name: got {element.get('name')!r}, must be a text that names the element.")
        else:
            names.append(element["name"])
        lines += _unknown_keys(where, _own(element))
        twice = sorted(set(_leaves_of(_own(element))) & _axis_leaves(file))
        lines += [f"{where}.{key}: an axis sets this key, too. Keep one of them." for key in twice]
    return lines + [f"{place}: {n} elements have the name {name!r}" for name, n in Counter(names).items() if n > 1]


def _unknown_keys(where: str, settings: Mapping[str, Any]) -> list[str]:
    known = _known_keys()
    # `models.0` is a key of a map, and a map is no section.
    maps = tuple(f"{key.name}." for key in describe_keys() if "map" in key.allowed.split())
    sections = {name.rsplit(".", levels)[0] for name in known for levels in range(1, name.count(".") + 1)}
    wrong = [key for key in settings if key not in known and key not in sections and not key.startswith(maps)]
    return [f"{where}.{key}: unknown key{did_you_mean(key, [*known, *sections])}" for key in wrong]


def _axis_leaves(file: SweepFile) -> set[str]:
    return {leaf for key, values in file.axes.items() for value in values for leaf in _leaves(key, value)}


def _element_leaves(elements: Sequence[Mapping[str, Any]]) -> set[str]:
    return {leaf for element in elements for leaf in _leaves_of(_own(element))}


def _overruled(where: str, settings: Mapping[str, Any], file: SweepFile, by: set[str]) -> list[str]:
    """Return one line for each setting of all elements that no element would use."""
    lists = [elements for elements in file.elements.values() if elements]
    every = "method" in file.axes or any(all("method" in own for own in elements) for elements in lists)
    lines = []
    for leaf in _leaves_of(settings):
        section, _, key = leaf.partition(".")
        if leaf in by:
            lines.append(f"{where} {leaf}: an axis or an element sets this key, too. Keep one of them.")
        elif every and section == "method" and key not in KEPT_BY_METHODS:
            lines.append(f"{where} {leaf}: every element names its own method, which drops this key. Set it there.")
    return lines


def _same_labels(file: SweepFile) -> list[str]:
    taken: dict[str, str] = {}
    lines = []
    for point in _points(file):
        name, label = ", ".join(_parts(point)), _label(point)
        # On some file systems, two names that differ only in case are the same directory.
        other = taken.setdefault(label.casefold(), name)
        if other != name:
            lines.append(f"{other!r} and {name!r} would share the directory {label}. Rename one of them.")
    return lines


def _label(point: Point) -> str:
    text = re.sub(r"[^\w.,=+@-]+", "_", ",".join(part.replace(", ", ",") for part in _parts(point)), flags=re.ASCII)
    text = re.sub(r"^[.-]+", "_", text)
    if len(text) <= LONGEST_LABEL:
        return text
    return f"{text[:LONGEST_LABEL]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _row(point: Point) -> str:
    return ", ".join(_parts({key: value for key, value in point.items() if key != SEED}))


def _parts(point: Point, bare: bool = False) -> list[str]:
    """Return the parts of a point's name: `fedh2l`, `topology.kind=ring`, `seed=0`; if `bare`, without the axis."""
    parts = []
    for key, value in point.items():
        if isinstance(value, Named):
            parts.append(value.name.strip())
        elif key == "method" and isinstance(value, dict):
            parts.append(str(value.get("name", "")))
            parts += [f"{inner}={_text(value[inner])}" for inner in value if inner != "name"]
        elif key == "method" or bare:
            parts.append(_text(value))
        else:
            parts += [f"{leaf}={_text(inner)}" for leaf, inner in _leaves(key, value).items()]
    return parts


def _text(value: Any) -> str:
    """Return a value as a part of a name."""
    if isinstance(value, dict):
        return "+".join(f"{key}={_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "+".join(map(_item_text, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _item_text(item: Any) -> str:
    """Return an item of a list: `mlp(hidden=16)` for a map with a name, `noise(step=0.1)` for one with a kind."""
    head = item.get("name", item.get("kind")) if isinstance(item, dict) else None
    if not isinstance(head, str):
        return _text(item)
    rest = [f"{key}={_text(inner)}" for key, inner in item.items() if key not in ("name", "kind")]
    return f"{head}({','.join(rest)})" if rest else head


def _listed(labels: Sequence[str], most: int = 3) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return "; ".join(labels[:most]) + more
