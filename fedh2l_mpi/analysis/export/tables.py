"""Tidy tables of runs: a row for each observation, block by block.

Shape letters: R rounds of a block, P participants, D domains, K confidence bins.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.dataset import differing_keys
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.metrics import BIN_FIELDS, DOMAIN_FIELDS, FIELDS, PARTICIPANT_FIELDS, ROW_FIELDS, Field
from fedh2l_mpi.metrics.schema import PREDICTED

# Rows of a table in memory at a time; one round of many participants and domains may have more.
BLOCK_ROWS = 2**16
ROUND = Field("round", "i8", "1", "round, from 0")
PARTICIPANT = Field("participant", "i8", "1", "participant, from 0")
DOMAIN = Field("domain", "i8", "1", "domain, from 0")
DOMAIN_NAME = FIELDS["domain_name"]
BIN = Field("bin", "i8", "1", "confidence bin k of 10, from 0: confidences in (k/10, (k+1)/10]")
RUN = Field("run", "S", "1", "name of the run")

Block = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Table:
    """Table of one kind of observation: a column for each field, and blocks of rows; texts are str."""

    name: str
    meaning: str
    fields: Sequence[Field]
    blocks: Callable[[], Iterator[Block]]


def tables_of(run: Run) -> list[Table]:
    edges = (
        Field("since_round", "i8", "1", FIELDS["graph_since_round"].long_name),
        Field("a", "i8", "1", "the one participant that the edge joins"),
        Field("b", "i8", "1", "the other"),
    )
    labels = (PARTICIPANT, Field("class", "i8", "1", "class label"), _named(FIELDS["label_histogram"], "samples"))
    columns = run.metrics.columns
    by_participant = (*ROW_FIELDS, *columns.by_participant)
    by_domain = (*DOMAIN_FIELDS, *columns.by_domain)
    return [
        Table(
            "rounds",
            "a participant in a round",
            (ROUND, PARTICIPANT, *by_participant),
            lambda: _long(run, by_participant, known_only=False),
        ),
        Table(
            "domains",
            "a participant on a domain's test set after a round",
            (ROUND, PARTICIPANT, DOMAIN, DOMAIN_NAME, *by_domain),
            lambda: _domains(run, by_domain),
        ),
        Table("participants", "a participant", (PARTICIPANT, *PARTICIPANT_FIELDS), lambda: _participants(run)),
        Table("labels", "a participant's private samples of a class", labels, lambda: _labels(run)),
        Table(
            "calibration",
            "a participant's test samples, of all domains after a round, in a confidence bin",
            (ROUND, PARTICIPANT, BIN, *BIN_FIELDS),
            lambda: _long(run, BIN_FIELDS),
        ),
        Table("edges", "an edge of a graph", edges, lambda: _edges(run)),
        *_at_end(run),
    ]


def _at_end(run: Run) -> list[Table]:
    """Return the tables of the end of a run, of those arrays that it has."""
    label = Field("class", "i8", "1", "class label")
    tables = []
    if "accuracy_class" in run.metrics.dimensions:
        accuracy = run.metrics.fields["accuracy_class"]
        meaning = "a participant on the test samples of a class, of all domains, at the end"
        fields = (PARTICIPANT, label, accuracy)
        tables.append(Table("classes", meaning, fields, lambda: _cells(run, "accuracy_class")))
    if "confusion" in run.metrics.dimensions:
        samples = _named(run.metrics.fields["confusion"], "samples")
        meaning = "a participant's predictions of one class for the test samples of a class, at the end"
        confused = (PARTICIPANT, label, PREDICTED, samples)
        tables.append(Table("confusion", meaning, confused, lambda: _cells(run, "confusion")))
    return tables


def _cells(run: Run, name: str) -> Iterator[Block]:
    """Yield the known cells of an array (participant, class, ...), one row for each."""
    for participant, values in enumerate(run.metrics[name]):
        index = np.indices(values.shape).reshape(values.ndim, -1)
        flat = values.ravel()
        known = ~np.isnan(flat) if flat.dtype.kind == "f" else flat >= 0
        yield [np.full(int(known.sum()), participant), *index[:, known], flat[known]]


def _named(field: Field, name: str) -> Field:
    return Field(name, field.dtype, field.units, field.long_name)


def _domains(run: Run, fields: Sequence[Field]) -> Iterator[Block]:
    names_D = np.array(run.metrics.texts("domain_name"), dtype=object)
    for round_, participant, domain, *values in _long(run, fields):
        yield [round_, participant, domain, names_D[domain], *values]


def _participants(run: Run) -> Iterator[Block]:
    metrics = run.metrics
    texts = [field.dtype == "S" for field in PARTICIPANT_FIELDS]
    columns = [
        np.array(metrics.texts(field.name), dtype=object) if is_text else metrics[field.name]
        for field, is_text in zip(PARTICIPANT_FIELDS, texts, strict=True)
    ]
    yield [metrics["participant"], *columns]


def _labels(run: Run) -> Iterator[Block]:
    samples_PC = run.metrics["label_histogram"]
    participant, label = np.indices(samples_PC.shape)
    yield [participant.ravel(), label.ravel(), samples_PC.ravel()]


def _edges(run: Run) -> Iterator[Block]:
    ends_E2 = run.metrics["graph_edges"]
    yield [run.metrics["graph_since_round"], ends_E2[:, 0], ends_E2[:, 1]]


def _long(run: Run, fields: Sequence[Field], known_only: bool = True) -> Iterator[Block]:
    """Yield arrays of the same dimensions in long form: one index column per dimension, one column per array.

    Parameters
    ----------
    known_only : bool
        True: leave out rows in which every value is NaN.
    """
    metrics = run.metrics
    dims = metrics.dimensions[fields[0].name]
    inner = [len(metrics[dim]) for dim in dims[1:]]
    step = max(1, BLOCK_ROWS // max(1, math.prod(inner)))
    for first in range(0, metrics.rounds, step):
        rounds_R = metrics["round"][first : first + step]
        values = [metrics.part(field.name, (slice(first, first + step),)).ravel() for field in fields]
        index = np.indices((len(rounds_R), *inner)).reshape(len(dims), -1)
        columns = [rounds_R[index[0]], *index[1:], *values]
        if known_only:
            known = ~np.logical_and.reduce([np.isnan(column) for column in values])
            columns = [column[known] for column in columns]
        yield columns


def joined(runs: Mapping[str, Run]) -> list[Table]:
    """Return the tables of several runs, each with their rows one after another.

    The first columns are the run's name and the config keys in which the runs differ. A column that a run lacks is
    unknown in its rows.

    Parameters
    ----------
    runs : mapping
        Runs by their names.
    """
    keys = differing_keys(list(runs.values()))
    labels = [RUN, *(Field(key, _kind(values), "1", f"config key {key}") for key, values in keys.items())]
    by_run = [{table.name: table for table in tables_of(run)} for run in runs.values()]

    def blocks(kind: str, fields: Sequence[Field]) -> Iterator[Block]:
        for i, (name, run) in enumerate(runs.items()):
            own = by_run[i].get(kind)
            if own is None:
                # An older version did not record this.
                continue
            of_run = [name, *(values[i] for values in keys.values())]
            # One file is open at a time, because systems limit their number.
            with run.metrics.opened():
                for block in own.blocks():
                    columns = dict(zip((field.name for field in own.fields), block, strict=True))
                    rows = len(block[0])
                    first = [_repeated(value, label, rows) for value, label in zip(of_run, labels, strict=True)]
                    unknown = np.full(rows, np.nan)
                    yield [*first, *(columns.get(field.name, unknown) for field in fields)]

    found = []
    for kind, table in {kind: table for tables in reversed(by_run) for kind, table in tables.items()}.items():
        same = [tables[kind] for tables in by_run if kind in tables]
        fields = list({field.name: field for own in same for field in own.fields}.values())
        found.append(
            Table(
                table.name,
                f"{table.meaning} of a run",
                (*labels, *fields),
                lambda kind=kind, fields=fields: blocks(kind, fields),  # type: ignore[misc]
            )
        )
    return found


def _kind(values: NDArray[Any]) -> str:
    return {"i": "i8", "f": "f8"}.get(values.dtype.kind, "S")


def _repeated(value: Any, field: Field, rows: int) -> NDArray[Any]:
    if field.dtype != "S":
        return np.full(rows, value, field.dtype)
    text = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
    return np.full(rows, text, dtype=object)
