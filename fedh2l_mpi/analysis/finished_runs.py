"""Read the finished runs among many, and say why the others are left out. Their files are closed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedh2l_mpi.analysis import grouping
from fedh2l_mpi.analysis.outcome import Outcome, read_outcome
from fedh2l_mpi.analysis.run import Run, load_run
from fedh2l_mpi.config.comparison import what_counts
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import SCHEMA_VERSION


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes
    ----------
    name : str
        Path of its run directory or file.
    settings, counts : mapping
        Config by dotted keys: all keys, and those that its numbers depend on, without the seed.
    started : str
        Date and time, UTC, as text that sorts; empty if unknown.
    schema : object
        Schema version of its file.
    """

    name: str
    settings: Mapping[str, Any]
    counts: Mapping[str, Any]
    outcome: Outcome
    started: str
    schema: object


def read_finished(paths: Sequence[Path], curves: Sequence[str] = ()) -> tuple[list[FinishedRun], list[str]]:
    """Return each run that can be compared once, and a note for each run that cannot.

    Parameters
    ----------
    curves : sequence of str
        Fields to read in every evaluated round.
    """
    found: dict[Path, FinishedRun] = {}
    notes: dict[str, None] = {}
    for path in paths:
        try:
            run = load_run(path)
        except UserError as error:
            notes[f"left out: {error}"] = None
            continue
        try:
            with run.metrics.opened():
                found.setdefault(run.file.resolve(), _finished(run, curves))
        except UserError as error:
            notes[f"left out: {_name(run)}: {error}"] = None
    return list(found.values()), list(notes)


def keep_newest(runs: Sequence[FinishedRun], keys: Sequence[str]) -> tuple[list[FinishedRun], list[str]]:
    """Keep the newest of the runs with the same seed and the same values of the keys; return a note for each other."""
    kept: dict[tuple[object, ...], FinishedRun] = {}
    notes = []
    for run in runs:
        here = (*grouping.group_key(run.settings, keys), run.outcome.seed)
        other = kept.setdefault(here, run)
        if other is run:
            continue
        older, newer = (other, run) if run.started > other.started else (run, other)
        kept[here] = newer
        differ = grouping.differing([older.counts, newer.counts])
        later = ", started later" if newer.started > older.started else ""
        which = f" (they differ in {', '.join(differ[:3])}{', …' if len(differ) > 3 else ''})" if differ else ""
        notes.append(f"left out: {older.name} has the group and seed of {newer.name}{later}{which}")
    return list(kept.values()), notes


def _finished(run: Run, curves: Sequence[str]) -> FinishedRun:
    """Read a finished run; raise a UserError without its name if it cannot be compared."""
    if run.state != "complete":
        raise UserError(str(run.condition))
    attributes, evaluated_E = run.metrics.attributes, run.evaluated_E
    outcome = None
    if len(evaluated_E) and isinstance(attributes.get("seed"), int):
        outcome = read_outcome(run.metrics, curves)
    schema = attributes.get("schema_version")
    # Runs of another schema can still be compared; a note of its own reports the schema.
    damage = [problem for problem in run.problems if schema == SCHEMA_VERSION or not problem.startswith("has schema")]
    if damage:
        raise UserError(f"damaged: {damage[0]}")
    if not len(evaluated_E):
        raise UserError("was never evaluated")
    if evaluated_E[-1] != run.metrics.rounds - 1:
        raise UserError(f"was last evaluated after round {run.after(int(evaluated_E[-1]))} of {run.metrics.rounds}")
    if outcome is None:
        raise UserError("damaged: attribute 'seed' is missing")
    settings = run.flat_config()
    result_keys = what_counts(settings)
    counts = {key: value for key, value in result_keys.items() if key != grouping.SEED}
    # Groups are made by the keys that change results, so their values replace those of the config.
    started = str(attributes.get("started", ""))
    return FinishedRun(_name(run), {**settings, **result_keys}, counts, outcome, started, schema)


def _name(run: Run) -> str:
    """Return the run directory, or the file if it does not have its usual name."""
    return str(run.file if run.name == run.file.stem else run.file.parent)
