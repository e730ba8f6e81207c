"""Runs as xarray datasets: labelled arrays, read when they are asked for.

Shape letters: N runs, P participants, D domains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run, find, look_at, unique_names
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import DIMENSIONS, FIELDS, PARTICIPANT_FIELDS, SCALES
from fedh2l_mpi.runtime.libraries import require

if TYPE_CHECKING:
    import xarray

# What describes participants and domains, rather than being measured.
LABELS = (*(field.name for field in PARTICIPANT_FIELDS), "domain_name")
SCALE_FIELDS = {field.name: field for field in SCALES}
UNKNOWN_TEXT = "?"


def open_run(path: str | Path) -> "xarray.Dataset":
    """A run as a dataset, of which nothing but coordinates has been read; also one that goes on, or is damaged.

    Coordinates are `round`, `participant`, `domain`, `class`, `bin`, `edge`, `endpoint`, each participant's
    `architecture`, `own_domain`, `rank`, `host` and so on, and `domain_name`. Attributes are those of the file, with
    what became of the run as `state` (a word) and `state_text`, and what is wrong with the file as `problems`. What is
    missing or damaged is NaN; an array of whole numbers whose damage shows when it is read turns into floats then.

    Parameters
    ----------
    path : path
        A run directory or a metrics file. The dataset keeps the file open: `close` it, or use `with`.

    Raises
    ------
    UserError
        If there is nothing to show, or xarray is missing.
    """
    require("xarray", "open_run")
    run = look_at(Path(path))
    opened = of_run(run)
    opened.set_close(run.close)
    return opened


def open_runs(patterns: str | Path | Sequence[str | Path], only: Sequence[str] | None = None) -> "xarray.Dataset":
    """Runs as one dataset, stacked along the dimension `run`; whole in memory.

    Rounds, participants and so on are those of any run; what one run lacks is NaN. Coordinates along `run`: its name,
    `state`, `seed`, and under its dotted name every key of the config in which the runs differ. Labels such as
    `architecture` have the dimension `run` where runs differ in them. Graphs are left out: their edges are numbered in
    each run anew (`open_run` has them); attribute `left_out` names what is.

    Parameters
    ----------
    patterns : str, path, or sequence of them
        Run directories, metrics files, folders that hold runs at any depth, or globs.
    only : sequence of str or None
        Arrays to read; None: all.

    Raises
    ------
    UserError
        If a pattern leads to no run, a file cannot be read, an array is unknown, or xarray is missing.
    """
    xarray = require("xarray", "open_runs")
    names = [name for name in DIMENSIONS if name not in LABELS and "edge" not in DIMENSIONS[name]]
    chosen = names if only is None else only
    left_out = [name for name in DIMENSIONS if name not in LABELS and name not in chosen]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise UserError(f"open_runs: no array {unknown[0]!r} to stack; known: {', '.join(names)}")
    given = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    runs: list[Run] = []
    try:
        for path in find([str(pattern) for pattern in given]):
            runs.append(look_at(path))
        places = {scale: _Places.of(scale, runs) for scale in SCALE_FIELDS if scale not in ("edge", "endpoint")}
        arrays = {name: _stacked(name, runs, places) for name in chosen}
        labels = {name: _stacked_label(name, runs, places) for name in LABELS}
        by_run = _by_run(runs)
        attributes = _common_attributes(runs) | {"left_out": ", ".join(left_out)}
    finally:
        for run in runs:
            run.close()
    scales = {name: (name, place.numbers, _described(name)) for name, place in places.items()}
    by_run["run"] = ("run", np.array(unique_names([run.file for run in runs])), {"long_name": "name of the run"})
    return xarray.Dataset(arrays, {**scales, **labels, **by_run}, attributes)


def of_run(run: Run) -> "xarray.Dataset":
    """A run that is open already, as `open_run` gives it; closing the dataset leaves it open."""
    xarray = require("xarray", "dataset")
    from xarray.core.indexing import LazilyIndexedArray

    lazy = _lazy_array_type()
    coordinates: dict[str, Any] = {name: (name, run.metrics[name], _described(name)) for name in SCALE_FIELDS}
    coordinates |= {name: (DIMENSIONS[name], _label(run, name), _described(name)) for name in LABELS}
    arrays = {
        name: xarray.Variable(dims, LazilyIndexedArray(lazy(run, name)), _described(name))
        for name, dims in DIMENSIONS.items()
        if name not in LABELS
    }
    return xarray.Dataset(arrays, coordinates, attributes_of(run))


def attributes_of(run: Run) -> dict[str, str | int]:
    """The file's attributes, and what became of the run and is wrong with the file."""
    told: dict[str, str | int] = {"state": run.state, "state_text": str(run.condition)}
    return {**run.metrics.attributes, **told, "problems": "\n".join(run.problems)}


def _lazy_array_type() -> Callable[[Run, str], Any]:
    """A class, made here because its base is xarray's."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class ArrayOfRun(BackendArray):
        """An array of a run's file; its dtype is what the schema says, or float where it is known to be missing."""

        def __init__(self, run: Run, name: str) -> None:
            self.metrics, self.name = run.metrics, name
            self.shape = tuple(len(run.metrics[dim]) for dim in DIMENSIONS[name])
            self.dtype = np.dtype(FIELDS[name].dtype if run.metrics.is_whole(name) else "f8")

        def __getitem__(self, key: Any) -> NDArray[Any]:
            one_vector = indexing.IndexingSupport.OUTER_1VECTOR
            return indexing.explicit_indexing_adapter(key, self.shape, one_vector, self._read)

        def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
            return self.metrics.part(self.name, key)

    return ArrayOfRun


def _described(name: str) -> dict[str, str]:
    field = SCALE_FIELDS.get(name) or FIELDS[name]
    return {"units": field.units, "long_name": field.long_name}


def _label(run: Run, name: str) -> NDArray[Any]:
    return np.array(run.metrics.texts(name), dtype=str) if FIELDS[name].dtype == "S" else run.metrics[name]


@dataclass(frozen=True)
class _Places:
    """One axis of the stack: the numbers on it, ascending, and where those of each run are among them."""

    numbers: NDArray[np.int64]
    of_runs: Sequence[NDArray[np.int64]]

    @classmethod
    def of(cls, scale: str, runs: Sequence[Run]) -> "_Places":
        each = [run.metrics[scale] for run in runs]
        numbers = np.unique(np.concatenate(each))
        return cls(numbers, [np.searchsorted(numbers, own) for own in each])


def _stacked(name: str, runs: Sequence[Run], places: Mapping[str, _Places]) -> tuple[Any, ...]:
    """An array's dimensions, values and attributes."""
    parts = _filled(name, runs, places, [run.metrics[name] for run in runs])
    return ("run", *DIMENSIONS[name]), parts, _described(name)


def _stacked_label(name: str, runs: Sequence[Run], places: Mapping[str, _Places]) -> tuple[Any, ...]:
    values_N = _filled(name, runs, places, [_label(run, name) for run in runs])
    if (values_N == values_N[0]).all():
        return DIMENSIONS[name], values_N[0], _described(name)
    return ("run", *DIMENSIONS[name]), values_N, _described(name)


def _filled(
    name: str, runs: Sequence[Run], places: Mapping[str, _Places], each: Sequence[NDArray[Any]]
) -> NDArray[Any]:
    """The runs' own arrays in one; NaN (`?` for a text) where a run has nothing."""
    dims = DIMENSIONS[name]
    shape = (len(runs), *(len(places[dim].numbers) for dim in dims))
    kind = np.result_type(*each)
    is_complete = all(own.shape == shape[1:] for own in each)
    if kind.kind != "U" and not is_complete:
        kind = np.result_type(kind, np.float64)
    stacked = np.full(shape, UNKNOWN_TEXT if kind.kind == "U" else 0 if is_complete else np.nan, kind)
    for i, own in enumerate(each):
        stacked[i][np.ix_(*(places[dim].of_runs[i] for dim in dims))] = own
    return stacked


def _by_run(runs: Sequence[Run]) -> dict[str, Any]:
    """What differs between the runs, as coordinates along `run`."""
    flat = [run.flat_config() for run in runs]
    taken = {"run", "state", *SCALE_FIELDS, *FIELDS}
    differing = [
        key
        for key in dict.fromkeys(key for config in flat for key in config)
        if key not in taken
        and any(config.get(key) != flat[0].get(key) or (key in config) != (key in flat[0]) for config in flat)
    ]
    coordinates: dict[str, Any] = {
        key: ("run", _plain_values([config.get(key) for config in flat]), {"long_name": f"config key {key}"})
        for key in differing
    }
    seeds = [run.metrics.attributes.get("seed") for run in runs]
    coordinates["seed"] = ("run", _plain_values(seeds), {"long_name": "seed of every random stream"})
    coordinates["state"] = ("run", np.array([run.state for run in runs]), {"long_name": "what became of the run"})
    return coordinates


def _plain_values(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers as numbers, with NaN for none; anything else as the text that YAML has for it."""
    if all(isinstance(value, bool) for value in values):
        return np.array(values)
    if any(value is not None for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    ):
        return np.array([np.nan if value is None else value for value in values])
    return np.array([value if isinstance(value, str) else _yaml(value) for value in values], dtype=str)


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n...\n").strip()


def _common_attributes(runs: Sequence[Run]) -> dict[str, str | int]:
    """Attributes that all runs share, and their problems."""
    each = [attributes_of(run) for run in runs]
    shared = {
        name: value
        for name, value in each[0].items()
        if name not in ("state", "state_text", "problems") and all(other.get(name) == value for other in each)
    }
    problems = [f"{run.file}: {problem}" for run in runs for problem in run.problems]
    return {**shared, "problems": "\n".join(problems)}
