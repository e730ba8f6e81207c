"""A run at a glance: how accuracy grew, and who is good at what in the end."""

from typing import TYPE_CHECKING

from fedh2l_mpi.analysis.figures import curves, domains
from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import PAGE_MM, WIDE_MM, evaluated, new_figure
from fedh2l_mpi.analysis.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of more participants, the matrix would make the figure higher than wide.
LISTED = 16


def drawn(run: Run, width_mm: float) -> "Figure":
    """Learning curves, and beside them (below, in a narrow figure) the accuracies of the last evaluated round."""
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
