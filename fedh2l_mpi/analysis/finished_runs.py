"""The finished runs among many, each with what is kept of it when its file has been closed; why others are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedh2l_mpi.analysis import grouping
from fedh2l_mpi.analysis.outcome import Outcome, read_outcome
from fedh2l_mpi.analysis.run import Run, look_at
from fedh2l_mpi.config.comparison import what_counts
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import SCHEMA_VERSION


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes
    ----------
    name : str
        Where it lies.
    settings, counts : mapping
        Its config by dotted keys: all of it, and what its numbers depend on, without the seed.
    started : str
        Date and time, UTC, as text that sorts; empty if it is not known.
    schema : object
        Of its file.
    """

    name: str
    settings: Mapping[str, Any]
    counts: Mapping[str, Any]
    outcome: Outcome
    started: str
    schema: object


def finished(paths: Sequence[Path]) -> tuple[list[Finished], list[str]]:
    """The runs that can be compared, each once, and a note for each that cannot."""
    found: dict[Path, Finished] = {}
    notes: dict[str, None] = {}
    for path in paths:
        try:
            run = look_at(path)
        except UserError as error:
            notes[f"{error}: left out"] = None
            continue
        try:
            found.setdefault(run.file.resolve(), _finished(run))
        except UserError as error:
            notes[f"{_name(run)}: {error}: left out"] = None
        finally:
            run.close()
    return list(found.values()), list(notes)


def newest(runs: Sequence[Finished], keys: Sequence[str]) -> tuple[list[Finished], list[str]]:
    """Of the runs with the same seed and the same settings under the keys the newest; a note for each other."""
    kept: dict[tuple[object, ...], Finished] = {}
    notes = []
    for run in runs:
        here = (*grouping.place(run.settings, keys), run.outcome.seed)
        other = kept.setdefault(here, run)
        if other is run:
            continue
        older, newer = (other, run) if run.started > other.started else (run, other)
        kept[here] = newer
        differ = grouping.differing([older.counts, newer.counts])
        later = ", started later" if newer.started > older.started else ""
        besides = f" (they differ in {', '.join(differ[:3])}{', …' if len(differ) > 3 else ''})" if differ else ""
        notes.append(f"{older.name}: of the same group and seed as {newer.name}{later}{besides}: left out")
    return list(kept.values()), notes


def _finished(run: Run) -> Finished:
    """Raises UserError with what is wrong, without the run's name."""
    if run.state != "complete":
        raise UserError(str(run.condition))
    attributes, evaluated_E = run.metrics.attributes, run.evaluated_E
    outcome = None
    if len(evaluated_E) and isinstance(attributes.get("seed"), int):
        outcome = read_outcome(run.metrics)
    schema = attributes.get("schema_version")
    # What is known of another schema can still be compared; that is a note of its own.
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
    told = what_counts(settings)
    counts = {key: value for key, value in told.items() if key != grouping.SEED}
    # Groups are made by what counts: so that has the last word.
    return Finished(_name(run), {**settings, **told}, counts, outcome, str(attributes.get("started", "")), schema)


def _name(run: Run) -> str:
    """The run directory, or the file where that has another name than usual."""
    return str(run.file if run.name == run.file.stem else run.file.parent)
