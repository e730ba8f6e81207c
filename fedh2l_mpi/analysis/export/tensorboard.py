"""Write a run as an event file for TensorBoard.

Shape letters: R rounds, P participants, D domains.
"""

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.outcome import known_mean
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.metrics import DOMAIN_FIELDS, ROW_FIELDS, TIMINGS, slowest_rank_seconds
from fedh2l_mpi.runtime.libraries import require

# TensorBoard reads a folder's files whose names contain the first part.
FILE_NAME = "events.out.tfevents.{seconds}.fedh2l_mpi"
VERSION = "brain.Event:2"


def write_events(run: Run, folder: Path) -> None:
    """Write the scalars of every round into a new folder: an event for each round, with known values only.

    Tags are `<field>/mean`, `<field>/participant_<i>`, and the participants' mean on each domain as
    `<field>_by_domain/<domain>`. The step is the number of rounds done. TensorBoard stores scalars as float32.

    Raises
    ------
    UserError
        If the package tensorboard is missing.
    """
    require("tensorboard", "--to tensorboard")
    proto = require("tensorboard.compat.proto.event_pb2", "--to tensorboard")
    summary = require("tensorboard.compat.proto.summary_pb2", "--to tensorboard")
    records = require("tensorboard.summary.writer.record_writer", "--to tensorboard")
    folder.mkdir()
    wall_R = _wall_times(run)
    start = float(wall_R[0]) if len(wall_R) else _started(run)
    with (folder / FILE_NAME.format(seconds=int(start))).open("wb") as file:
        writer = records.RecordWriter(file)
        writer.write(proto.Event(wall_time=start, file_version=VERSION).SerializeToString())
        for row, wall in enumerate(wall_R):
            values = [summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(run, row)]
            event = proto.Event(wall_time=wall, step=run.after(row), summary=summary.Summary(value=values))
            writer.write(event.SerializeToString())


def scalars(run: Run, row: int) -> Iterator[tuple[str, float]]:
    """Yield tag and value of each known scalar of a round."""
    metrics = run.metrics
    for field in (*ROW_FIELDS, *metrics.columns.by_participant):
        values_P = np.asarray(metrics.read_row(field.name, row), dtype=np.float64)
        yield from _known({f"{field.name}/mean": known_mean(values_P)})
        yield from _known({f"{field.name}/participant_{i}": value for i, value in enumerate(values_P.tolist())})
    names_D = metrics.texts("domain_name")
    for field in (*DOMAIN_FIELDS, *metrics.columns.by_domain):
        values_PD = np.asarray(metrics.read_row(field.name, row), dtype=np.float64)
        means_D = (known_mean(values_P) for values_P in values_PD.T)
        yield from _known(
            {f"{field.name}_by_domain/{name}": value for name, value in zip(names_D, means_D, strict=True)}
        )


def _known(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((tag, value) for tag, value in values.items() if not np.isnan(value))


def _wall_times(run: Run) -> NDArray[np.float64]:
    """Return about when each round ended, float64 (R,) [s since 1970]: the start, and the time of the rounds so far."""
    seconds_R = slowest_rank_seconds([run.metrics[name] for name in TIMINGS], run.metrics["rank"])
    return _started(run) + np.cumsum(seconds_R)


def _started(run: Run) -> float:
    """Return when the run was started [s since 1970]; 0 if the file does not say."""
    try:
        return datetime.datetime.fromisoformat(str(run.metrics.attributes.get("started"))).timestamp()
    except ValueError:
        return 0.0
