"""Draw groups of runs in one figure: a measure against the rounds done, the bytes sent, and the simulated time.

Shape letters: S runs that differ in their seeds, E evaluated rounds.
"""

import functools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.figures.method_looks import Look, looks_of
from fedh2l_mpi.analysis.figures.output import save
from fedh2l_mpi.analysis.figures.simulated_time import time_axis
from fedh2l_mpi.analysis.figures.style import (
    PAGE_MM,
    SMALL,
    WIDE_MM,
    accuracy_axis,
    check_width,
    house_style,
    new_figure,
    round_axis,
    shown,
)
from fedh2l_mpi.analysis.figures.traffic import bytes_axis
from fedh2l_mpi.analysis.outcome import Outcome, units_of
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond this many lines, the bands would hide each other.
BANDS = 8
# About this many markers on a line, which start at different rounds, so that lines that meet can be distinguished.
MARKERS = 6
# Height of a panel, least width of one, and what its labels take; a line and a letter of text; the key of a legend.
PANEL_MM, LEAST_MM, AROUND_MM, LINE_MM, LETTER_MM, KEY_MM = 58.0, 56.0, 12.0, 3.6, 1.35, 14.0
MISSING_LINES = 4
MEASURES = {
    "accuracy_own": "own-domain test accuracy",
    "accuracy_all": "all-domain test accuracy",
    "accuracy_worst": "worst-domain test accuracy",
    "calibration_error": "calibration error",
}
BYTES = "bytes_sent"
Over = Literal["rounds", "bytes", "time"]
# Why a curve that is known has no place on an axis.
NOT_RECORDED = "not recorded"
UNPLACED = {"bytes": "sends nothing", "time": "no simulated time"}


@dataclass(frozen=True)
class Curve:
    """A line of the figure: its label, its method, which decides how it looks, and its runs, one for each seed."""

    label: str
    method: str
    runs: Sequence[Outcome]


@dataclass(frozen=True)
class Overlay:
    """The figure, and a note for each curve that a panel does not show."""

    figure: "Figure"
    notes: Sequence[str]


@dataclass(frozen=True)
class _Panel:
    """A measure against the rounds done, the bytes sent, or the simulated time."""

    measure: str
    over: Over = "rounds"

    @property
    def name(self) -> str:
        return f"{self.measure} against {'simulated time' if self.over == 'time' else self.over}"

    def places(self, run: Outcome) -> NDArray[Any]:
        """Return where the evaluated rounds of a run stand on the x axis, (E,); NaN where they have no place."""
        if self.over == "bytes":
            return run.bytes_E
        if self.over == "time":
            return np.full(len(run.rounds_E), np.nan) if run.simulated_s_E is None else run.simulated_s_E
        return run.rounds_E


def plot_overlay(
    curves: Sequence[Curve],
    title: str,
    out: Path,
    measures: Sequence[str] = ("accuracy_all",),
    width_mm: float = PAGE_MM,
    percent: bool = False,
) -> Sequence[str]:
    """Draw the curves into a file, as `draw_overlay` does; return a note for each curve that a panel does not show.

    Raises
    ------
    UserError
        As `draw_overlay`, or if `out` cannot be written.
    """
    drawn = draw_overlay(curves, title, measures, width_mm, percent)
    save(drawn.figure, out)
    return drawn.notes


def draw_overlay(
    curves: Sequence[Curve],
    title: str,
    measures: Sequence[str] = ("accuracy_all",),
    width_mm: float = PAGE_MM,
    percent: bool = False,
    over: Over | None = None,
) -> Overlay:
    """Draw a panel for each measure against the rounds: means over each curve's runs, a band from lowest to highest.

    A single measure has a second panel, against the bytes sent, and a third against simulated time if runs have it.

    Parameters
    ----------
    measures : sequence of str
        Fields that the runs have curves of.
    percent : bool
        True: accuracies are in per cent.
    over : {"rounds", "bytes", "time"} or None
        The only axis; None: rounds, and for a single measure bytes and simulated time.

    Raises
    ------
    UserError
        If matplotlib is missing, or nothing can be drawn, or not at this width.
    """
    check_width(width_mm)
    possible = [(curve, why) for curve in curves if (why := _why_not(curve))]
    notes = [f"not drawn: {curve.label} {why}" for curve, why in possible]
    drawable = [replace(curve, runs=at_common_rounds(curve.runs)) for curve in curves if not _why_not(curve)]
    if not drawable:
        raise UserError(
            "there is nothing to draw, because no group has a round in which all of its runs were evaluated. "
            "Group also by the key that makes their rounds differ."
        )
    panels = _panels(drawable, measures, over)
    with house_style():
        columns = max(1, min(len(panels), int(width_mm // LEAST_MM))) if width_mm >= WIDE_MM else 1
        rows = math.ceil(len(panels) / columns)
        legend_columns = _legend_columns(drawable, width_mm)
        legend_mm = LINE_MM * math.ceil(len(drawable) / legend_columns)
        figure = new_figure(width_mm, PANEL_MM * rows + legend_mm + 8.0)
        every = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        looks = looks_of([curve.method for curve in drawable])
        for axes, panel in zip(every, panels, strict=False):
            notes += _draw_panel(axes, panel, drawable, looks, percent, width_mm / columns - AROUND_MM)
        figure.suptitle("\n".join(filter(None, (title, _seeds_text(drawable)))))
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, handlelength=3.0)
    return Overlay(figure, notes)


def _why_not(curve: Curve) -> str:
    """Return why a curve cannot be drawn at all, or an empty text."""
    if not curve.runs:
        return "has no finished run"
    if not len(_common_rounds(curve.runs)):
        return "has no round in which all of its runs were evaluated"
    return ""


def _panels(curves: Sequence[Curve], measures: Sequence[str], over: Over | None) -> list[_Panel]:
    panels = [_Panel(measure, over or "rounds") for measure in measures]
    sends = any((run.bytes_E > 0).any() for curve in curves for run in curve.runs)
    if over == "bytes" and not sends:
        raise UserError("no group sends anything.")
    if over is None and len(panels) == 1 and sends and measures[0] != BYTES:
        panels.append(_Panel(measures[0], "bytes"))
    if over is None and len(measures) == 1 and any(_has_time(run) for curve in curves for run in curve.runs):
        panels.append(_Panel(measures[0], "time"))
    return panels


def _has_time(run: Outcome) -> bool:
    return run.simulated_s_E is not None and bool((run.simulated_s_E > 0).any())


def _draw_panel(
    axes: "Axes", panel: _Panel, curves: Sequence[Curve], looks: Sequence[Look], percent: bool, panel_mm: float
) -> list[str]:
    """Draw all curves into a panel, name above it those that it cannot show, and return a note for each of them."""
    is_accuracy = panel.measure.startswith("accuracy_")
    scale = 100.0 if percent and is_accuracy else 1.0
    missing: dict[str, list[str]] = {}
    places: list[float] = []
    has_bands = len(curves) <= BANDS
    for number, (curve, look) in enumerate(zip(curves, looks, strict=True)):
        values_SE = scale * np.stack([run.curve(panel.measure) for run in curve.runs])
        x_E = np.mean([panel.places(run) for run in curve.runs], axis=0)
        known_E = ~np.isnan(values_SE).any(axis=0)
        # A method that sends nothing, or a warm-up without exchange, has no position on an axis of bytes.
        placed_E = known_E & (x_E > 0)
        if not placed_E.any():
            reason = UNPLACED.get(panel.over, NOT_RECORDED) if known_E.any() else NOT_RECORDED
            missing.setdefault(reason, []).append(curve.label)
        places += x_E[placed_E].tolist()
        first = number * max(1, int(placed_E.sum()) // MARKERS) // max(1, len(curves))
        _draw_curve(axes, curve.label, x_E[placed_E], values_SE[:, placed_E], look, has_bands, first)
    if is_accuracy:
        accuracy_axis(axes, _axis_name(panel.measure, percent), scale)
    else:
        axes.set_ylabel(_axis_name(panel.measure, False))
    if panel.over == "time":
        time_axis(axes, min(places, default=1.0), max(places, default=1.0), ticks=5)
        axes.grid(True)
    elif panel.over == "bytes":
        bytes_axis(axes, min(places, default=1.0), max(places, default=1.0), ticks=5)
        axes.set_xlabel("sent by a participant [bytes]")
        axes.grid(True)
    else:
        round_axis(axes, np.unique([count for curve in curves for count in curve.runs[0].rounds_E]))
    if missing:
        axes.set_title(_missing_text(missing, panel_mm), loc="right", size=SMALL)
    return [f"not drawn in {panel.name}: {label}, {reason}" for reason, labels in missing.items() for label in labels]


def _draw_curve(
    axes: "Axes",
    label: str,
    x_E: NDArray[Any],
    values_SE: NDArray[np.float64],
    look: Look,
    has_band: bool,
    first_marker: int,
) -> None:
    points = len(x_E)
    axes.plot(
        x_E,
        values_SE.mean(axis=0),
        linestyle=look.line,
        color=look.colour,
        label=label,
        marker=look.marker,
        markersize=3.6,
        markerfacecolor="white" if look.is_hollow else look.colour,
        markeredgewidth=0.8,
        markevery=(min(first_marker, max(0, points - 1)), max(1, points // MARKERS)),
    )
    if has_band and len(values_SE) > 1 and points:
        low_E, high_E = values_SE.min(axis=0), values_SE.max(axis=0)
        axes.fill_between(x_E, low_E, high_E, color=look.colour, alpha=0.15, lw=0)
        if points == 1:  # a band of one point has no width
            axes.vlines(x_E, low_E, high_E, color=look.colour, alpha=0.4, lw=3)


def _axis_name(measure: str, in_percent: bool) -> str:
    name = MEASURES.get(measure, measure.replace("_", " "))
    units = "%" if in_percent else {"byte": "bytes"}.get(units_of(measure), units_of(measure))
    return name if units == "1" else f"{name} [{units}]"


def _missing_text(missing: dict[str, list[str]], width_mm: float) -> str:
    """Name the curves that a panel of this width does not show, in a few lines."""
    parts = [
        f"not shown ({reason}): {'; '.join(shown(label, 40) for label in labels)}" for reason, labels in missing.items()
    ]
    lines = textwrap.wrap(". ".join(parts), int(width_mm / LETTER_MM), max_lines=MISSING_LINES, placeholder=" …")
    return "\n".join(lines)


def _seeds_text(curves: Sequence[Curve]) -> str:
    """Say what line and band are, or nothing if every line is one run."""
    counts = [len(curve.runs) for curve in curves]
    least, most = min(counts), max(counts)
    band = " (band: lowest to highest)" if len(curves) <= BANDS else ""
    return f"mean over {most if least == most else f'{least} to {most}'} seeds{band}" if most > 1 else ""


def _legend_columns(curves: Sequence[Curve], width_mm: float) -> int:
    """Return how many columns the legend has room for below the panels."""
    longest = max(len(curve.label) for curve in curves)
    return max(1, min(len(curves), int(width_mm / (KEY_MM + LETTER_MM * longest))))


def at_common_rounds(runs: Sequence[Outcome]) -> list[Outcome]:
    """Return the runs at the rounds in which all were evaluated; ignored keys may make these rounds differ."""
    common = _common_rounds(runs)
    found = []
    for run in runs if len(common) else ():
        rows = np.isin(run.rounds_E, common)
        found.append(
            replace(
                run,
                rounds_E=run.rounds_E[rows],
                accuracy_E=run.accuracy_E[rows],
                bytes_E=run.bytes_E[rows],
                training_s_E=run.training_s_E[rows],
                simulated_s_E=run.simulated_s_E[rows] if run.simulated_s_E is not None else None,
                curves_E={name: values_E[rows] for name, values_E in run.curves_E.items()},
            )
        )
    return found


def _common_rounds(runs: Sequence[Outcome]) -> NDArray[np.int64]:
    return functools.reduce(np.intersect1d, [run.rounds_E for run in runs])
