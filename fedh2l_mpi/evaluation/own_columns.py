"""The arrays of a run that every run does not have: notes of its method, metrics and tests that its config asks for."""

import re
from collections.abc import Mapping, Sequence

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.evaluation.chosen_metrics import KEY, Metric, OwnMetric
from fedh2l_mpi.evaluation.metric_functions import FUNCTIONS
from fedh2l_mpi.metrics import Columns, Field
from fedh2l_mpi.metrics.columns import name_problem
from fedh2l_mpi.metrics.schema import AT_END, CONFUSION_BYTES, PRESENT, SIMULATED_SECONDS

ACCURACY_LOCAL = Field(
    "accuracy_local", "f8", "1", "accuracy on test samples of the participant's own data, its own distribution"
)
# Names that keep their meaning in every run, so nothing of a user's own may have them.
KEPT = (ACCURACY_LOCAL.name, SIMULATED_SECONDS.name, PRESENT.name, *FUNCTIONS)
# A note's meaning may end with its unit, such as `[s]`.
UNIT = re.compile(r"(?P<meaning>.*\S)\s*\[(?P<units>[^\[\]]+)\]\s*")


def columns_of(
    method: str,
    notes: Mapping[str, str],
    has_local_test: bool = False,
    metrics: Sequence[Metric] = (),
    participants: int = 1,
    classes: int = 1,
    has_clock: bool = False,
    may_be_absent: bool = False,
) -> Columns:
    """Return the arrays that a run adds to those of the schema.

    Parameters
    ----------
    method : str
        The method's name in the config, for messages.
    notes : mapping
        What the method declares to note: a meaning for each name, with a unit in brackets at its end or none.
    has_local_test : bool
        True if some participant is tested on samples of its own distribution.
    metrics : sequence of Metric
        The chosen metrics.
    participants, classes : int
        P and C, which decide whether the file has a confusion matrix of every participant.
    has_clock : bool
        True if a simulated network gives every round its simulated seconds.
    may_be_absent : bool
        True if some participants do not take part in every round.

    Raises
    ------
    UserError
        If a name cannot be that of an array, or is taken.
    """
    taken: dict[str, str] = {}
    for name in notes:
        _refuse(f"method.name: {method!r} declares the note", name, taken)
        taken[name] = "a note"
    for metric in metrics:
        if isinstance(metric, OwnMetric):
            _refuse(f"{KEY}: {metric.plugin.name!r} gives an array", metric.field.name, taken)
        taken[metric.field.name] = "a metric"
    by_participant = tuple(_field(name, meaning) for name, meaning in notes.items())
    try:
        return Columns(
            (
                *by_participant,
                *((ACCURACY_LOCAL,) if has_local_test else ()),
                *((SIMULATED_SECONDS,) if has_clock else ()),
                *((PRESENT,) if may_be_absent else ()),
            ),
            tuple(one.field for one in metrics),
            tuple(name for name in AT_END if name != "confusion" or 4 * participants * classes**2 <= CONFUSION_BYTES),
        )
    except ValueError as error:
        raise UserError(f"method.name: {method!r}, {KEY}: {error}") from None


def _refuse(what: str, name: str, taken: Mapping[str, str]) -> None:
    why = name_problem(name, taken)
    if not why and name in KEPT:
        why = "is kept for a metric of this program. Fix: choose another name."
    if why:
        raise UserError(f"{what} {name!r}, which {why}")


def _field(name: str, meaning: str) -> Field:
    found = UNIT.fullmatch(meaning)
    return Field(name, "f8", found["units"], found["meaning"]) if found else Field(name, "f8", "1", meaning)
