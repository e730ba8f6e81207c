"""Draw the time spent in each phase.

Shape letters: R rounds, P participants, F phases, B bars.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import (
    BLUE,
    COLUMN_MM,
    GREEN,
    LISTED,
    ORANGE,
    SKY,
    VERMILION,
    WIDE_MM,
    new_figure,
    rounds_text,
    shown,
)
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the order of a round.
PHASES = {"publish": SKY, "local": BLUE, "wait": VERMILION, "mutual": GREEN, "evaluate": ORANGE}
BAR_MM = 3.6


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw the seconds of every participant by phase; for many participants, of every rank, or as one area."""
    seconds_FP = phase_seconds(run)
    rank_P = np.asarray(run.metrics["rank"])
    ranks = np.unique(rank_P[rank_P >= 0])
    if run.participants <= LISTED:
        names = [f"{i} {shown(name, 14)}" for i, name in enumerate(run.metrics.texts("architecture"))]
        seconds_FB, whose = seconds_FP, "a participant's time"
    elif 1 < len(ranks) <= LISTED:
        names = [f"rank {rank}" for rank in ranks]
        seconds_FB = np.stack([seconds_FP[:, rank_P == rank].sum(axis=1) for rank in ranks], axis=1)
        whose = "time of a rank's participants"
    else:
        names, seconds_FB, whose = [], seconds_FP, "a participant's time"
    unit, scale = _unit(float(seconds_FB.sum(axis=0).max()))

    is_wide = width_mm >= WIDE_MM
    height_mm = (22.0 if is_wide else 25.0) + (BAR_MM * len(names) if names else 50.0)
    figure = new_figure(width_mm, max(height_mm, 36.0))
    axes = figure.subplots()
    label = f"{whose} in {rounds_text(run.metrics.rounds)} [{unit}]"
    if names:
        _bars(axes, seconds_FB / scale, names)
        axes.set_xlabel(label)
    else:
        _area(axes, seconds_FB / scale)
        axes.set_xlabel(f"{run.participants:,} participants, slowest first")
        axes.set_ylabel(label)
    waits = seconds_FP[list(PHASES).index("wait")].sum() / seconds_FP.sum()
    if not np.isnan(run.metrics["seconds_wait"]).all():
        share = "under 0.1%" if 0 < waits < 5e-4 else f"{waits:.1%}"
        axes.set_title(f"waiting: {share} of the time")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5 if width_mm >= 75 else 3, handlelength=1.0)
    return figure


def phase_seconds(run: Run) -> NDArray[np.float64]:
    """Return the seconds in each of the PHASES over all rounds, float64 (F, P); unknown times count as 0.

    Raises
    ------
    UserError
        If no time is known.
    """
    if run.metrics.rounds == 0:
        raise UserError("no round has finished yet")
    seconds_FP = np.stack([np.nansum(run.metrics[f"seconds_{phase}"], axis=0) for phase in PHASES])
    if not seconds_FP.sum() > 0:
        raise UserError("no times were recorded")
    return seconds_FP


def _unit(seconds: float) -> tuple[str, float]:
    for unit, scale in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 3 * scale:
            return unit, scale
    return "s", 1.0


def _bars(axes: "Axes", times_FB: NDArray[np.float64], names: list[str]) -> None:
    before_B = np.zeros(len(names))
    places = np.arange(len(names))
    for (phase, colour), times_B in zip(PHASES.items(), times_FB, strict=True):
        axes.barh(places, times_B, left=before_B, color=colour, label=phase, height=0.75)
        before_B = before_B + times_B
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")


def _area(axes: "Axes", times_FP: NDArray[np.float64]) -> None:
    times_FP = times_FP[:, np.argsort(-times_FP.sum(axis=0), kind="stable")]
    places = np.arange(times_FP.shape[1]) + 1
    axes.stackplot(places, times_FP, labels=list(PHASES), colors=list(PHASES.values()), linewidth=0)
    axes.set_xlim(1, len(places))
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y")


PHASES_KIND = FigureKind(
    "phases",
    "Time by phase",
    "Time in each phase, summed over the rounds: a bar for each participant, or for each rank where there are many. "
    "Participants of one rank take turns, so the rank's waiting is divided among them.",
    COLUMN_MM,
    drawn,
)
