"""Draw the runs of a sweep in one figure: accuracy against rounds, and against the bytes sent.

Shape letters: S runs that differ in their seeds, E evaluated rounds.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedh2l_mpi.analysis.figures.output import save
from fedh2l_mpi.analysis.figures.style import (
    BLUE,
    GREEN,
    MM_PER_INCH,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    house_style,
    new_figure,
    round_axis,
)
from fedh2l_mpi.analysis.figures.traffic import bytes_axis
from fedh2l_mpi.analysis.outcome import Outcome

# Yellow is too pale for a line.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000")
STYLES = ("-", "--", ":", "-.")
# Beyond this many lines, the bands would hide each other.
BANDS = 8
# More rows go into further columns of the legend.
HIGHEST_MM = 230.0


def plot_overlay(runs_by_row: Mapping[str, Sequence[Outcome]], title: str, out: Path) -> None:
    """Draw all-domain accuracy, one line per row: the mean over its runs, and a band from lowest to highest.

    Raises
    ------
    UserError
        If matplotlib is missing, or `out` cannot be written.
    """
    with house_style():
        rows = {row: runs for row, runs in runs_by_row.items() if runs}
        sent = [float(sent) for runs in rows.values() for run in runs for sent in run.bytes_E if sent > 0]
        # The legend stands at the side with one line for each row, so it decides the height of the figure.
        height_mm = min(max(80.0, 20.0 + 3.4 * len(rows)), HIGHEST_MM)
        figure = new_figure(240.0 if sent else 160.0, height_mm)
        panels = figure.subplots(1, 2 if sent else 1, sharey=True, squeeze=False)[0]
        looks = itertools.cycle(itertools.product(STYLES, COLOURS))
        for (row, runs), (style, colour) in zip(rows.items(), looks, strict=False):
            rounds_E = runs[0].rounds_E
            accuracy_SE = np.stack([run.accuracy_E for run in runs])
            bytes_E = np.mean([run.bytes_E for run in runs], axis=0)
            for axes, x_E in zip(panels, (rounds_E, bytes_E), strict=False):
                # A method that sends nothing, or a warm-up without exchange, has no position on an axis of bytes.
                placed = x_E > 0
                x_E, shown_SE = x_E[placed], accuracy_SE[:, placed]
                marker = "o" if len(x_E) == 1 else ""
                label = row if axes is panels[0] else None
                axes.plot(x_E, shown_SE.mean(axis=0), linestyle=style, color=colour, label=label, marker=marker)
                if len(rows) <= BANDS and len(runs) > 1 and len(x_E):
                    low_E, high_E = shown_SE.min(axis=0), shown_SE.max(axis=0)
                    axes.fill_between(x_E, low_E, high_E, color=colour, alpha=0.12, lw=0)
                    if len(x_E) == 1:  # a band of one point has no width
                        axes.vlines(x_E, low_E, high_E, color=colour, alpha=0.4, lw=3)
        panels[0].set_ylabel("all-domain test accuracy")
        round_axis(panels[0], np.unique([count for runs in rows.values() for count in runs[0].rounds_E]))
        if sent:
            bytes_axis(panels[1], min(sent), max(sent), ticks=6)
            panels[1].set_xlabel("sent by a participant [bytes]")
            panels[1].grid(True)
        counts = [len(runs) for runs in rows.values()]
        least, most = min(counts, default=0), max(counts, default=0)
        seeds = f"{most}" if least == most else f"{least} to {most}"
        band = " (band: lowest to highest)" if len(rows) <= BANDS else ""
        what = f"mean over {seeds} seeds{band}" if most > 1 else ""
        figure.suptitle("\n".join(filter(None, (title, what))))
        columns = math.ceil(len(rows) * 3.4 / (figure.get_figheight() * MM_PER_INCH)) or 1
        figure.legend(loc="outside right upper", ncols=columns)
    save(figure, out)
