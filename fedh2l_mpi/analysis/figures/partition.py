"""Draw who holds what: the private samples of every participant by class and by domain.

Shape letters: P participants, C classes, D domains, X columns of a panel.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import BLUE, MM_PER_INCH, PAGE_MM, SMALL, domain_ticks, new_figure
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Height of a row of few participants and of all rows of many, and of what is around them.
ROW_MM, ROWS_MM, AROUND_MM = 5.0, 190.0, 24.0
# Width of the labels of the rows and between two panels.
LABELS_MM = 18.0
# More rows could not be distinguished, so some participants are left out.
MOST_ROWS = 250
# A cell of this width and height has room for a number of four digits.
NUMBER_MM = (5.5, 3.5)
# Share of a cell that the largest bubble fills.
FILLED = 0.95
# A smaller bubble could not be seen.
LEAST_PT2 = 0.5
POINTS_PER_MM = 72.0 / MM_PER_INCH
NUMBERED_TICKS = 24
# A narrower panel has its title and label in two lines.
TITLE_MM = 32.0


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw a bubble for each participant and class, and each participant and domain; its area shows the samples."""
    if not run.metrics.is_whole("label_histogram"):
        raise UserError("its numbers of samples by class are missing or damaged.")
    labels_PC = np.asarray(run.metrics["label_histogram"])
    step = -(-len(labels_PC) // MOST_ROWS)
    names, domain_label = domain_ticks(run)
    panels: list[tuple[NDArray[np.int64], Sequence[str], str]] = [
        (labels_PC[::step], [str(label) for label in range(labels_PC.shape[1])], "class")
    ]
    domains_PD = domain_samples(run)
    if domains_PD is not None and len(names) > 1:
        panels.append((domains_PD[::step], names, domain_label))

    rows = len(panels[0][0])
    row_mm = min(ROW_MM, ROWS_MM / rows)
    columns = [values_PX.shape[1] for values_PX, _, _ in panels]
    # A panel of few columns keeps room for its label.
    widths = [max(count, sum(columns) / 6) for count in columns]
    figure = new_figure(width_mm, AROUND_MM + row_mm * max(rows, 3))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for place, (panel, (values_PX, ticks, label)) in enumerate(zip(axes, panels, strict=True)):
        room_mm = width_mm - LABELS_MM - 4.0 * len(panels)
        column_mm = room_mm * widths[place] / sum(widths) / values_PX.shape[1]
        _bubbles(panel, values_PX, (column_mm, row_mm), (ticks, label))
    thinned = "" if step == 1 else f" (every {step}th)"
    shown = np.arange(0, rows, -(-rows // NUMBERED_TICKS))
    axes[0].set_yticks(shown, [str(row * step) for row in shown.tolist()])
    axes[0].set(ylabel=f"participant{thinned}", ylim=(max(rows, 3) - 0.5, -0.5))
    return figure


def domain_samples(run: Run) -> NDArray[np.int64] | None:
    """Return the private samples of each participant in each domain, int64 (P, D); None if the file does not say.

    Files without `domain_histogram` still say it of participants with an own domain.
    """
    if run.metrics.is_whole("domain_histogram"):
        return np.asarray(run.metrics["domain_histogram"])
    own_P, samples_P = np.asarray(run.metrics["own_domain"]), np.asarray(run.metrics["private_samples"])
    domains = len(run.metrics.texts("domain_name"))
    if not ((own_P >= 0) & (own_P < domains)).all() or not run.metrics.is_whole("private_samples"):
        return None
    samples_PD = np.zeros((len(own_P), domains), dtype=np.int64)
    samples_PD[np.arange(len(own_P)), own_P] = samples_P
    return samples_PD


def _bubbles(
    axes: "Axes", values_PX: NDArray[np.int64], cell_mm: tuple[float, float], names: tuple[Sequence[str], str]
) -> None:
    rows, columns = np.nonzero(values_PX > 0)
    counts, largest = values_PX[rows, columns], max(1, int(values_PX.max(initial=1)))
    # The area of a marker is that of a square around it [pt^2].
    largest_pt2 = (FILLED * min(cell_mm) * POINTS_PER_MM) ** 2
    sizes = np.maximum(largest_pt2 * counts / largest, LEAST_PT2)
    axes.scatter(columns, rows, s=sizes, color=BLUE, alpha=0.45, linewidth=0, clip_on=False)
    if cell_mm[0] >= NUMBER_MM[0] and cell_mm[1] >= NUMBER_MM[1] and largest < 10_000:
        for row, column, count in zip(rows.tolist(), columns.tolist(), counts.tolist(), strict=True):
            axes.text(column, row, str(count), ha="center", va="center", fontsize=SMALL)
    ticks, label = names
    gap = " " if cell_mm[0] * values_PX.shape[1] >= TITLE_MM else "\n"
    label = label.replace(" ", gap)
    axes.set(xlabel=label, title=f"largest:{gap}{largest:,} samples", xlim=(-0.7, values_PX.shape[1] - 0.3))
    step = max(1, -(-len(ticks) * max(map(len, ticks)) * 1.6 // (cell_mm[0] * len(ticks))))
    places = np.arange(0, len(ticks), int(step))
    axes.set_xticks(places, [ticks[place] for place in places.tolist()])
    axes.grid(True)


PARTITION = FigureKind(
    "partition",
    "Who holds what",
    "Private training samples of each participant by class and by domain; the area of a bubble is their number, and a "
    "class or domain without a bubble is not held.",
    PAGE_MM,
    drawn,
)
