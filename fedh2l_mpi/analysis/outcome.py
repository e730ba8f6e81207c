"""Read the outcome of a finished run, and combine outcomes of several runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.metrics import ROW_FIELDS, TIMINGS, RunMetrics, slowest_rank_seconds

UNITS = {field.name: field.units for field in ROW_FIELDS}


@dataclass(frozen=True)
class Outcome:
    """Results of a finished run, means over its participants.

    Attributes
    ----------
    values : mapping
        Value of each field of the metrics file in the last round; bytes and seconds are summed over the rounds.
    rounds_E : int64 (E,)
        Evaluated rounds, counted from 1.
    accuracy_E, bytes_E : float64 (E,)
        All-domain accuracy in these rounds, and the bytes that a participant had sent by then.
    seconds : float
        Time of the slowest rank in the rounds [s].
    revision : str
        Revision of the code that ran it.
    """

    seed: int
    values: Mapping[str, float]
    rounds_E: NDArray[np.int64]
    accuracy_E: NDArray[np.float64]
    bytes_E: NDArray[np.float64]
    seconds: float
    revision: str = ""


def read_outcome(run: RunMetrics) -> Outcome:
    """Read the outcome from the metrics of a finished run."""
    values = {}
    for field in ROW_FIELDS:
        values_RP = run[field.name]
        adds_up = field.units in ("byte", "s")
        # Rounds without evaluation have no seconds of evaluation, so NaN counts as 0.
        values[field.name] = float((np.nansum(values_RP, axis=0) if adds_up else values_RP[-1]).mean())
    accuracy_R = run["accuracy_all"].mean(axis=1)
    evaluated = np.flatnonzero(~np.isnan(accuracy_R))
    seconds = slowest_rank_seconds([np.nansum(run[name], axis=0) for name in TIMINGS], run["rank"])
    return Outcome(
        int(run.attributes["seed"]),
        values,
        run["round"][evaluated] + 1,
        accuracy_R[evaluated],
        run["bytes_sent"].mean(axis=1).cumsum()[evaluated],
        float(seconds),
        str(run.attributes.get("git_revision", "")),
    )


def bytes_until(run: Outcome, accuracy: float) -> float:
    """Return the bytes sent by a participant when all-domain accuracy first reached this value; NaN: never."""
    reached = np.flatnonzero(run.accuracy_E >= accuracy)
    return float(run.bytes_E[reached[0]]) if len(reached) else math.nan


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN if there are too few values."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def paired(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[float]:
    """Return our all-domain accuracy minus theirs, for each seed that both have."""
    by_seed = {run.seed: run.values["accuracy_all"] for run in theirs}
    return [run.values["accuracy_all"] - by_seed[run.seed] for run in ours if run.seed in by_seed]
