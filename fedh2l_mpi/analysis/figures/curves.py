"""Draw the learning curves of a run.

Shape letters: E evaluated rounds, P participants.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import (
    BLUE,
    COLUMN_MM,
    DOTS,
    GREY,
    VERMILION,
    WIDE_MM,
    accuracy_axis,
    band_name,
    evaluated,
    new_figure,
    round_axis,
    spread_on,
)
from fedh2l_mpi.analysis.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def measures(run: Run) -> Sequence[tuple[str, str]]:
    """Return the accuracy fields that differ in this run, and their labels."""
    if len(run.metrics["domain"]) == 1:
        return [("accuracy_all", "test set")]
    own = [("accuracy_own", "own domain")] if (run.metrics["own_domain"] >= 0).any() else []
    return [*own, ("accuracy_all", "all domains"), ("accuracy_worst", "worst domain")]


def means_on(axes: "Axes", run: Run) -> None:
    """Draw all measures into one panel, with a band for the accuracy on all domains only."""
    rows = evaluated(run)
    rounds_E = run.metrics["round"][rows] + 1
    looks = {"accuracy_own": (GREY, "--"), "accuracy_all": (BLUE, "-"), "accuracy_worst": (VERMILION, ":")}
    for name, label in measures(run):
        colour, style = looks[name]
        has_band = name == "accuracy_all"
        if has_band and run.participants > 1:
            label += f" (band: {band_name(run.participants)})"
        spread_on(axes, rounds_E, run.metrics[name][rows], colour, style, label, has_band)
    accuracy_axis(axes, "test accuracy" + (", mean over participants" if run.participants > 1 else ""))
    round_axis(axes, rounds_E)
    # The legend stands above the panel, because curves may cross any corner of it.
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw a panel for each measure, with the same scale."""
    rows = evaluated(run)
    rounds_E = run.metrics["round"][rows] + 1
    shown = measures(run)
    figure = new_figure(width_mm, 66.0 if width_mm >= WIDE_MM or len(shown) == 1 else 58.0)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, shown, strict=True):
        accuracy_EP = run.metrics[name][rows]
        spread_on(axes, rounds_E, accuracy_EP, BLUE)
        if run.participants > 1 and not np.isnan(accuracy_EP[-1]).all():
            worst_E = accuracy_EP[:, np.nanargmin(accuracy_EP[-1])]
            marker = "." if len(rows) == 1 else ""
            axes.plot(rounds_E, worst_E, linestyle=DOTS, color=VERMILION, linewidth=0.9, marker=marker)
        axes.set_title(title)
        round_axis(axes, rounds_E, ticks=6 if width_mm >= WIDE_MM or len(shown) == 1 else 3)
    accuracy_axis(panels[0], "test accuracy")
    if run.participants > 1:
        _legend(figure, run.participants)
    return figure


def _legend(figure: "Figure", participants: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=BLUE, label="mean"),
        Patch(color=BLUE, alpha=0.2, linewidth=0, label=band_name(participants)),
        Line2D([], [], color=VERMILION, linestyle=DOTS, label="lowest at the end"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)


CURVES = FigureKind(
    "curves",
    "Learning curves",
    "Test accuracy over the rounds on the participant's own domain, on all domains and on the domain where it is "
    "lowest: mean over participants, their band, and the participant that is lowest at the end.",
    COLUMN_MM,
    drawn,
)
