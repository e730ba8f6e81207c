"""Read the outcome of a finished run, and combine outcomes of several runs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.metrics import NOTED, PRESENT, ROW_FIELDS, SIMULATED_SECONDS, TIMINGS, RunMetrics, slowest_rank_seconds

UNITS = {field.name: field.units for field in ROW_FIELDS}
# More measures that have a better end, of metrics that a config may ask for.
HIGHER_IS_BETTER = ("balanced_accuracy", "macro_f1", "auroc")
LOWER_IS_BETTER = ("calibration_error", "nll")
# The seconds that a participant works, whatever the number of ranks, and however often it is evaluated.
TRAINING = ("seconds_publish", "seconds_local", "seconds_mutual")


@dataclass(frozen=True)
class Outcome:
    """Results of a finished run, means over its participants.

    Attributes
    ----------
    values : mapping
        Value of each field of the metrics file in the last round; bytes and seconds are summed over the rounds. The
        run's own arrays are means over participants and domains; simulated seconds are the last participant's.
    rounds_E : int64 (E,)
        Evaluated rounds, counted from 1.
    accuracy_E, bytes_E, training_s_E : float64 (E,)
        All-domain accuracy in these rounds, and the bytes that a participant had sent and the seconds that it had
        trained by then. Training is publishing and both phases, without waiting and evaluation.
    seconds : float
        Time of the slowest rank in the rounds [s].
    revision : str
        Revision of the code that ran it.
    curves_E : mapping
        Other fields, float64 (E,), in these rounds; bytes and seconds are the sums by then.
    simulated_s_E : float64 (E,) or None
        Simulated time at which the last participant had ended each of these rounds [s]; None: the run has no clock.
    """

    seed: int
    values: Mapping[str, float]
    rounds_E: NDArray[np.int64]
    accuracy_E: NDArray[np.float64]
    bytes_E: NDArray[np.float64]
    training_s_E: NDArray[np.float64]
    seconds: float
    revision: str = ""
    curves_E: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    simulated_s_E: NDArray[np.float64] | None = None

    def curve(self, name: str) -> NDArray[np.float64]:
        """Return a field in the evaluated rounds, float64 (E,); raise KeyError if it was not read."""
        return self.accuracy_E if name == "accuracy_all" else self.curves_E[name]


def units_of(measure: str) -> str:
    """Return the units of a field; an array of a run's own counts as a pure number."""
    return SIMULATED_SECONDS.units if measure == SIMULATED_SECONDS.name else UNITS.get(measure, "1")


def higher_is_better(measure: str) -> bool | None:
    """Return True or False, or None if neither higher nor lower is better."""
    if measure.startswith("accuracy_") or measure in HIGHER_IS_BETTER:
        return True
    return False if units_of(measure) in ("byte", "s", "nats") or measure in LOWER_IS_BETTER else None


def read_outcome(run: RunMetrics, curves: Sequence[str] = ()) -> Outcome:
    """Read the outcome from the metrics of a finished run, and these fields in all evaluated rounds."""
    values = {}
    for field in ROW_FIELDS:
        values_RP = run[field.name]
        adds_up = field.units in ("byte", "s")
        # Rounds without evaluation have no seconds of evaluation, so NaN counts as 0.
        if field.name in NOTED:
            # Who was absent has noted nothing.
            values[field.name] = known_mean(values_RP[-1])
        else:
            values[field.name] = float((np.nansum(values_RP, axis=0) if adds_up else values_RP[-1]).mean())
    for name in run.columns.names:
        values[name] = known_mean(run.read_row(name, run.rounds - 1)) if run.rounds else math.nan
    if PRESENT.name in run.columns.names and run.rounds:
        values[PRESENT.name] = known_mean(run[PRESENT.name])
    simulated_s_R = None
    if SIMULATED_SECONDS.name in run.columns.names:
        simulated_s_R = _curve(run, SIMULATED_SECONDS.name)
        values[SIMULATED_SECONDS.name] = float(simulated_s_R[-1]) if run.rounds else math.nan
    accuracy_R = run["accuracy_all"].mean(axis=1)
    evaluated = np.flatnonzero(~np.isnan(accuracy_R))
    training_s_RP = np.nansum([run[name] for name in TRAINING], axis=0)
    seconds = slowest_rank_seconds([np.nansum(run[name], axis=0) for name in TIMINGS], run["rank"])
    return Outcome(
        int(run.attributes["seed"]),
        values,
        run["round"][evaluated] + 1,
        accuracy_R[evaluated],
        run["bytes_sent"].mean(axis=1).cumsum()[evaluated],
        training_s_RP.mean(axis=1).cumsum()[evaluated],
        float(seconds),
        str(run.attributes.get("git_revision", "")),
        {name: _curve(run, name)[evaluated] for name in curves},
        simulated_s_R[evaluated] if simulated_s_R is not None else None,
    )


def _curve(run: RunMetrics, name: str) -> NDArray[np.float64]:
    """Return a field by round, float64 (R,): the mean over participants, or the last one's simulated seconds.

    Bytes and measured seconds are summed until each round.
    """
    if name not in run.dimensions:
        return np.full(run.rounds, np.nan)
    values_RP = run[name]
    if name == SIMULATED_SECONDS.name:
        return np.asarray(values_RP.max(axis=1, initial=0.0), dtype=np.float64)
    if name in run.columns.names or name in NOTED:
        return np.array([known_mean(values) for values in values_RP], dtype=np.float64)
    if units_of(name) not in ("byte", "s"):
        return np.asarray(values_RP.mean(axis=1), dtype=np.float64)
    return np.asarray(np.nancumsum(values_RP, axis=0).mean(axis=1), dtype=np.float64)


def known_mean(values: NDArray[Any]) -> float:
    """Return the mean of the known values; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def until(run: Outcome, cost_E: NDArray[Any], accuracy: float) -> float:
    """Return the cost by the first evaluation whose all-domain accuracy is at least this; NaN: never reached.

    Parameters
    ----------
    cost_E : (E,)
        Cost by each evaluated round, such as `run.bytes_E`.
    """
    reached = np.flatnonzero(run.accuracy_E >= accuracy)
    return float(cost_E[reached[0]]) if len(reached) else math.nan


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN if there are too few values."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
