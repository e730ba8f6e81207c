"""Show runs as xarray datasets: labelled arrays, read when they are used.

Shape letters: N runs, P participants, D domains.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run, find, load_run, unique_names
from fedh2l_mpi.config import yaml_text
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import DIMENSIONS, FIELDS, PARTICIPANT_FIELDS, ROUNDS_DONE, SCALES, predictions
from fedh2l_mpi.metrics.schema import PREDICTED
from fedh2l_mpi.runtime.libraries import require

if TYPE_CHECKING:
    import xarray

# Arrays that describe participants and domains; all others are measured.
LABELS = (*(field.name for field in PARTICIPANT_FIELDS), "domain_name")
SCALE_FIELDS = {field.name: field for field in SCALES}
COORDINATES = {**SCALE_FIELDS, PREDICTED.name: PREDICTED, ROUNDS_DONE.name: ROUNDS_DONE}
UNKNOWN_TEXT = "?"


def open_run(path: str | Path) -> "xarray.Dataset":
    """Open a run as a dataset and read its coordinates only. The run may still be running, or be damaged.

    Coordinates are `round` (from 0), `rounds_done` (round + 1), `participant`, `domain`, `class`, `bin`, `edge`,
    `endpoint`, each participant's `architecture`, `own_domain`, `rank`, `host` and so on, and `domain_name`.
    If the run wrote its predictions (`evaluation.predictions`), there are `logits` (participant, sample, class), and
    the coordinates `label` and `sample_domain` of each test sample. Attributes are those of the file, the run's state
    as `state` (one word) and `state_text`, and the file's damage as `problems`. Missing or damaged values are NaN. If
    reading an array of whole numbers reveals damage, the array becomes one of floats.

    Parameters
    ----------
    path : path
        A run directory or a metrics file. It is open only while arrays are read.

    Raises
    ------
    UserError
        If no metrics file can be read, or xarray is missing.
    """
    require("xarray", "open_run")
    run = load_run(Path(path))
    opened = run_dataset(run)
    opened.set_close(run.close)
    return opened


def open_runs(patterns: str | Path | Sequence[str | Path], only: Sequence[str] | None = None) -> "xarray.Dataset":
    """Read runs into memory as one dataset, stacked along the dimension `run`.

    The dataset has every round, participant and so on that any run has. Values that a run lacks are NaN. Coordinates
    along `run` are its name, `state`, `seed`, and every config key in which the runs differ, by its dotted name.
    Labels such as `architecture` have the dimension `run` only if the runs differ in them. Graphs are left out,
    because each run numbers its edges on its own (`open_run` has them). The attribute `left_out` names all arrays
    that were left out.

    Parameters
    ----------
    patterns : str, path, or sequence of them
        Run directories, metrics files, folders that contain runs at any depth, or globs.
    only : sequence of str or None
        Arrays to read; None: all.

    Raises
    ------
    UserError
        If a pattern leads to no run, a file cannot be read, an array is unknown, or xarray is missing.
    """
    xarray = require("xarray", "open_runs")
    given = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    runs = [load_run(path) for path in find([str(pattern) for pattern in given])]
    dimensions = _all_dimensions(runs)
    names = [name for name, dims in dimensions.items() if name not in LABELS and "edge" not in dims]
    chosen = names if only is None else only
    left_out = [name for name in dimensions if name not in LABELS and name not in chosen]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise UserError(f"open_runs: there is no array {unknown[0]!r} to stack. Known: {', '.join(names)}.")
    for run in runs:
        # One file at a time is open, because systems limit their number. The arrays stay in memory for the stack.
        with run.metrics.opened():
            for name in (*LABELS, *chosen):
                _ = _values(run, name)
    used = {dim for name in (*LABELS, *chosen) for dim in dimensions[name]}
    scales_used = [name for name in (*SCALE_FIELDS, PREDICTED.name) if name not in ("edge", "endpoint")]
    axes = {name: _Axis.from_runs(name, runs) for name in scales_used if name in used or name in SCALE_FIELDS}
    arrays = {name: _stacked(name, dimensions[name], runs, axes) for name in chosen}
    labels = {name: _stacked_label(name, runs, axes) for name in LABELS}
    by_run = _by_run(runs)
    attributes = _common_attributes(runs) | {"left_out": ", ".join(left_out)}
    scales = {name: (name, axis.numbers, _described(name)) for name, axis in axes.items()}
    scales |= _rounds_done(axes["round"].numbers)
    by_run["run"] = ("run", np.array(unique_names([run.file for run in runs])), {"long_name": "name of the run"})
    return xarray.Dataset(arrays, {**scales, **labels, **by_run}, attributes)


def run_dataset(run: Run) -> "xarray.Dataset":
    """Return an open run as the dataset of `open_run`; closing the dataset does not close the run."""
    xarray = require("xarray", "dataset")
    from xarray.core.indexing import LazilyIndexedArray

    lazy, scales = _lazy_array_type(), [scale.name for scale in run.metrics.columns.scales]
    coordinates: dict[str, Any] = {name: (name, run.metrics[name], _described(name)) for name in scales}
    coordinates |= _rounds_done(run.metrics["round"])
    coordinates |= {name: (DIMENSIONS[name], _label(run, name), _described(name)) for name in LABELS}
    arrays = {
        name: xarray.Variable(dims, LazilyIndexedArray(lazy(run, name)), _described(name, run))
        for name, dims in run.metrics.dimensions.items()
        if name not in LABELS
    }
    attributes = attributes_of(run)
    predicted, problem = predictions.find(run.file.parent / predictions.FILE, run.participants, run.metrics.rounds)
    if problem:
        attributes["problems"] = "\n".join(filter(None, [str(attributes["problems"]), problem]))
    if predicted is not None and predicted.shape[2] == len(run.metrics["class"]):
        logits, sample = predictions.LOGITS, predictions.SAMPLE
        described = {"units": logits.units, "long_name": logits.long_name}
        values = LazilyIndexedArray(lazy(predicted, logits.name))
        arrays[logits.name] = xarray.Variable(("participant", sample.name, "class"), values, described)
        for field, of_samples in (
            (sample, np.arange(predicted.shape[1])),
            (predictions.LABEL, predicted.label),
            (predictions.SAMPLE_DOMAIN, predicted.sample_domain),
        ):
            meaning = {"units": field.units, "long_name": field.long_name}
            coordinates[field.name] = (sample.name, of_samples, meaning)
    return xarray.Dataset(arrays, coordinates, attributes)


def attributes_of(run: Run) -> dict[str, str | int]:
    """Return the file's attributes, the run's state and the file's problems."""
    state: dict[str, str | int] = {"state": run.state, "state_text": str(run.condition)}
    return {**run.metrics.attributes, **state, "problems": "\n".join(run.problems)}


def _lazy_array_type() -> Callable[[Run | predictions.Predictions, str], Any]:
    """Define the class of lazy arrays here, because its base class belongs to xarray."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class ArrayOfRun(BackendArray):
        """An array of a run's file, with the schema's dtype, or float if values are known to be missing; or logits."""

        def __init__(self, run: Run | predictions.Predictions, name: str) -> None:
            if isinstance(run, predictions.Predictions):
                self.part: Callable[[tuple[Any, ...]], NDArray[Any]] = run.part
                self.shape, self.dtype = run.shape, np.dtype(predictions.LOGITS.dtype)
                return
            self.metrics = run.metrics
            self.part = functools.partial(run.metrics.part, name)
            self.shape = tuple(len(run.metrics[dim]) for dim in run.metrics.dimensions[name])
            self.dtype = np.dtype(run.metrics.fields[name].dtype if run.metrics.is_whole(name) else "f8")

        def __getitem__(self, key: Any) -> NDArray[Any]:
            one_vector = indexing.IndexingSupport.OUTER_1VECTOR
            return indexing.explicit_indexing_adapter(key, self.shape, one_vector, self._read)

        def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
            return self.part(key)

    return ArrayOfRun


def _described(name: str, *runs: Run) -> dict[str, str]:
    """Return unit and meaning of a coordinate or an array, from the first of the runs that has it."""
    known = {**COORDINATES, **FIELDS}
    for run in reversed(runs):
        known |= run.metrics.fields
    return {"units": known[name].units, "long_name": known[name].long_name}


def _rounds_done(rounds_R: NDArray[np.int64]) -> dict[str, Any]:
    return {ROUNDS_DONE.name: ("round", rounds_R + 1, _described(ROUNDS_DONE.name))}


def _all_dimensions(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Return the dimensions of every array that any of the runs has.

    Raises
    ------
    UserError
        If two runs have different arrays of one name.
    """
    dimensions: dict[str, tuple[str, ...]] = {}
    for run in runs:
        for name, dims in run.metrics.dimensions.items():
            if dimensions.setdefault(name, dims) != dims:
                raise UserError(
                    f"open_runs: {name!r} has the dimensions {', '.join(dims)} in {run.file}, but "
                    f"{', '.join(dimensions[name])} in another run. Fix: open them one by one."
                )
    return dimensions


def _values(run: Run, name: str) -> NDArray[Any] | None:
    """Return an array of a run; None if the run does not record it."""
    return run.metrics[name] if name in run.metrics.dimensions else None


def _label(run: Run, name: str) -> NDArray[Any]:
    return np.array(run.metrics.texts(name), dtype=str) if FIELDS[name].dtype == "S" else run.metrics[name]


@dataclass(frozen=True)
class _Axis:
    """One axis of the stack: its numbers, ascending, and the positions of each run's numbers among them."""

    numbers: NDArray[np.int64]
    of_runs: Sequence[NDArray[np.int64]]

    @classmethod
    def from_runs(cls, scale: str, runs: Sequence[Run]) -> "_Axis":
        has = [scale in (own.name for own in run.metrics.columns.scales) for run in runs]
        none = np.empty(0, dtype=np.int64)
        each = [run.metrics[scale] if is_there else none for run, is_there in zip(runs, has, strict=True)]
        numbers = np.unique(np.concatenate(each))
        return cls(numbers, [np.searchsorted(numbers, own) for own in each])


def _stacked(name: str, dims: Sequence[str], runs: Sequence[Run], axes: Mapping[str, _Axis]) -> tuple[Any, ...]:
    """Return dimensions, values and attributes of an array of all runs."""
    parts = _filled(dims, axes, [_values(run, name) for run in runs])
    return ("run", *dims), parts, _described(name, *runs)


def _stacked_label(name: str, runs: Sequence[Run], axes: Mapping[str, _Axis]) -> tuple[Any, ...]:
    values_N = _filled(DIMENSIONS[name], axes, [_label(run, name) for run in runs])
    if (values_N == values_N[0]).all():
        return DIMENSIONS[name], values_N[0], _described(name)
    return ("run", *DIMENSIONS[name]), values_N, _described(name)


def _filled(dims: Sequence[str], axes: Mapping[str, _Axis], each: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """Stack the arrays of all runs; fill with NaN (a text with `?`) what a run lacks."""
    shape = (len(each), *(len(axes[dim].numbers) for dim in dims))
    present = [own for own in each if own is not None]
    kind = np.result_type(*present)
    is_complete = len(present) == len(each) and all(own.shape == shape[1:] for own in present)
    if kind.kind != "U" and not is_complete:
        kind = np.result_type(kind, np.float64)
    stacked = np.full(shape, UNKNOWN_TEXT if kind.kind == "U" else 0 if is_complete else np.nan, kind)
    for i, own in enumerate(each):
        if own is None:
            continue
        stacked[i][np.ix_(*(axes[dim].of_runs[i] for dim in dims))] = own
    return stacked


def differing_keys(runs: Sequence[Run]) -> dict[str, NDArray[Any]]:
    """Return the config keys in which the runs differ, with a value of each run: a number, a bool or a text."""
    flat = [run.flat_config() for run in runs]
    taken = {"run", "state", *COORDINATES, *(name for run in runs for name in run.metrics.dimensions)}
    differing = [
        key
        for key in dict.fromkeys(key for config in flat for key in config)
        if key not in taken
        and any(config.get(key) != flat[0].get(key) or (key in config) != (key in flat[0]) for config in flat)
    ]
    return {key: _plain_values([config.get(key) for config in flat]) for key in differing}


def _by_run(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the config keys in which the runs differ, seed and state, as coordinates along `run`."""
    coordinates: dict[str, Any] = {
        key: ("run", values, {"long_name": f"config key {key}"}) for key, values in differing_keys(runs).items()
    }
    seeds = [run.metrics.attributes.get("seed") for run in runs]
    coordinates["seed"] = ("run", _plain_values(seeds), {"long_name": "seed of every random stream"})
    coordinates["state"] = ("run", np.array([run.state for run in runs]), {"long_name": "what became of the run"})
    return coordinates


def _plain_values(values: Sequence[Any]) -> NDArray[Any]:
    """Return numbers as numbers, with NaN for None; return anything else as its YAML text."""
    if all(isinstance(value, bool) for value in values):
        return np.array(values)
    if any(value is not None for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    ):
        return np.array([np.nan if value is None else value for value in values])
    return np.array([value if isinstance(value, str) else _yaml(value) for value in values], dtype=str)


def _yaml(value: Any) -> str:
    text = yaml_text.write(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n...\n").strip()


def _common_attributes(runs: Sequence[Run]) -> dict[str, str | int]:
    """Return the attributes that all runs share, and the problems of all runs."""
    each = [attributes_of(run) for run in runs]
    shared = {
        name: value
        for name, value in each[0].items()
        if name not in ("state", "state_text", "problems") and all(other.get(name) == value for other in each)
    }
    problems = [f"{run.file}: {problem}" for run in runs for problem in run.problems]
    return {**shared, "problems": "\n".join(problems)}
