"""Groups of runs on a page: means over seeds with their intervals, and the groups' curves laid over each other."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fedh2l_mpi.analysis import figures, statistics, tables
from fedh2l_mpi.analysis.compare import Comparison, Group, compare
from fedh2l_mpi.analysis.outcome import units_of
from fedh2l_mpi.analysis.tables import Numbers
from fedh2l_mpi.errors import UserError

# A plot's measure, its axis, title and caption.
PLOTS: tuple[tuple[str, Literal["rounds", "bytes"], str, str], ...] = (
    ("accuracy_all", "rounds", "Accuracy over rounds", "Mean over every domain's test set."),
    (
        "accuracy_all",
        "bytes",
        "Accuracy over bytes",
        "The same, over what a participant had sent by then.",
    ),
    ("accuracy_worst", "rounds", "Lowest accuracy over rounds", "Accuracy on the domain where it is lowest."),
)
TERMS = {"accuracy_own": "own", "accuracy_all": "all", "accuracy_worst": "worst", "bytes_sent": "sent"}


def section(files: Sequence[Path], width_mm: float) -> dict[str, Any] | None:
    """Return headings, rows, plots and notes of the groups of finished runs; None if there is nothing to compare.

    Parameters
    ----------
    files : sequence of Path
        Metrics files.
    width_mm : float
        Width of each plot.
    """
    try:
        compared = compare(files)
    except UserError:
        return None
    most = max(len(group.outcomes) for group in compared.groups)
    if len(compared.groups) < 2 and most < 2:
        return None
    plots, missing = _plots(compared, width_mm)
    try:
        rows = [_row(compared, group) for group in compared.groups]
        interval = f"the Student-t interval of {tables.percent(compared.confidence)}"
    except UserError as error:
        missing.append(f"There is no table: {error}")
        rows, interval = [], ""
    return {
        "headings": [(TERMS[measure], tables.HEADINGS[measure].replace("\n", " ")) for measure in compared.measures],
        "baseline": compared.baseline.label,
        "rows": rows,
        "interval": interval if most > 1 else "",
        "plots": plots,
        "missing": missing,
        "notes": compared.notes,
    }


def _row(compared: Comparison, group: Group) -> tuple[str, int, list[str], str]:
    """Return the group's name, its number of runs, its means, and its difference to the baseline."""
    difference = tables.NOTHING
    if group is not compared.baseline:
        less = compared.less_baseline(group, "accuracy_all")
        difference = tables.show_interval(less, "{:+.3f}".format) if less.pairs else tables.NOTHING
    means = [_mean(compared, group, measure) for measure in compared.measures]
    return group.label, len(group.outcomes), means, difference


def _mean(compared: Comparison, group: Group, measure: str) -> str:
    """Write the mean over the seeds, and half of its interval, which is left out where it has no width."""
    by_seed = group.by_seed(measure)
    # The interval of the mean is that of the differences to 0.
    found = statistics.difference(by_seed, dict.fromkeys(by_seed, 0.0), compared.confidence)
    written, half = Numbers(), (found.high - found.low) / 2
    if found.mean != found.mean:
        return "–"
    if half != half or (units_of(measure) == "byte" and half == 0.0):
        return written.text(measure, found.mean)
    return f"{written.text(measure, found.mean)} ± {written.text(measure, half)}"


def _plots(compared: Comparison, width_mm: float) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return title, caption and SVG of each plot, and a line for each plot that cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        return [], ["There are no curves, because matplotlib was not installed when this page was made."]
    curves = [figures.Curve(group.label, group.method, group.outcomes) for group in compared.groups]
    plots, missing = [], []
    for measure, over, title, caption in PLOTS:
        try:
            drawn = figures.draw_overlay(curves, "", (measure,), width_mm, over=over)
        except UserError as error:
            missing.append(f"{title}: not drawn, {error}")
        else:
            plots.append((title, caption, figures.inline_svg(drawn.figure, f"{title}, all groups of runs")))
    return plots, missing
