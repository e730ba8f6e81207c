"""Draw who took part in which round of a run whose participants may be absent.

Shape letters: R rounds, P participants.
"""

from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import BLUE, COLUMN_MM, new_figure, round_axis
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import PRESENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Height of a row of few participants and of all rows of many, and of what is around them.
ROW_MM, ROWS_MM, AROUND_MM = 3.5, 100.0, 16.0


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw a row for each participant, coloured in the rounds in which it took part."""
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    if PRESENT.name not in run.metrics.columns.names:
        raise UserError("everybody took part in every round (faults.participation.kind is always)")
    present_RP = np.asarray(run.metrics[PRESENT.name], dtype=np.float64)
    rounds, participants = present_RP.shape
    if not rounds:
        raise UserError("no round has finished yet")
    row_mm = min(ROW_MM, ROWS_MM / participants)
    figure = new_figure(width_mm, AROUND_MM + row_mm * max(participants, 3))
    axes = figure.subplots()
    colours, edges = ListedColormap(["white", BLUE]), (0.5, rounds + 0.5, participants - 0.5, -0.5)
    axes.imshow(present_RP.T > 0, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=edges)
    axes.set_title(f"present: {np.nanmean(present_RP):.0%} of participants and rounds")
    axes.set_ylabel("participant")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=max(1, min(8, participants))))
    round_axis(axes, run.metrics["round"] + 1)
    axes.grid(False)
    return figure


PRESENCE = FigureKind(
    "presence",
    "Who took part",
    "The rounds in which each participant took part (coloured) or was absent (white), in a run whose participants may "
    "be absent.",
    COLUMN_MM,
    drawn,
)
