"""Draw a run at a glance: learning curves, and the final accuracy of every participant on every domain."""

from typing import TYPE_CHECKING

from fedh2l_mpi.analysis.figures import curves, domains
from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import PAGE_MM, WIDE_MM, evaluated, new_figure
from fedh2l_mpi.analysis.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more participants, the matrix would make the figure higher than wide.
LISTED = 16


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw learning curves and, to the right or (in a narrow figure) below, the last accuracy matrix."""
    last = int(evaluated(run)[-1])
    matrix_mm = domains.height_mm(run, LISTED)
    if width_mm >= WIDE_MM:
        figure = new_figure(width_mm, max(68.0, matrix_mm))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    else:
        figure = new_figure(width_mm, 62.0 + matrix_mm)
        left, right = figure.subplots(2, 1, height_ratios=(58.0, matrix_mm))
    curves.means_on(left, run)
    domains.matrix_on(right, run, last, LISTED)
    return figure


OVERVIEW = FigureKind(
    "overview",
    "Overview",
    "Test accuracy over the rounds, mean over participants, and in the last evaluated round that of every participant "
    "on every domain, its own outlined.",
    PAGE_MM,
    drawn,
)
