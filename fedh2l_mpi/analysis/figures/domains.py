"""Draw the accuracy of every participant on every domain.

Shape letters: P participants, D domains.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import (
    COLOUR_MAP,
    COLUMN_MM,
    LISTED,
    SMALL,
    VERMILION,
    colour_bar,
    domain_ticks,
    evaluated,
    ink_on,
    limits,
    mean,
    new_figure,
    rounds_text,
    shown,
)
from fedh2l_mpi.analysis.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_MM, AROUND_MM, LETTER_MM = 4.4, 21.0, 1.5
# Width of `0.87`, and of its short form `.87`, at a font size of 7 points [pt].
NUMBER_PT, SHORT_PT, LINE_PT = 21.0, 14.0, 8.0
# More rows could not be distinguished in a figure of usual height.
STRIPS = 200
# Ticks can name this many columns, and groups of rows.
COLUMNS = GROUPS = 24


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw the matrix of the last evaluated round."""
    last = int(evaluated(run)[-1])
    figure = new_figure(width_mm, height_mm(run, LISTED))
    matrix_on(figure.subplots(), run, last, LISTED)
    return figure


def height_mm(run: Run, listed: int) -> float:
    """Return the height that the matrix needs, if up to `listed` participants have rows of their own."""
    ticks, _ = domain_ticks(run)
    names_mm = LETTER_MM * max(map(len, ticks)) if _is_upright(ticks) else 0.0
    return names_mm + (max(32.0, AROUND_MM + ROW_MM * run.participants) if run.participants <= listed else 78.0)


def _is_upright(ticks: Sequence[str]) -> bool:
    """Return True if the columns' names are too long for one line in one column of a paper."""
    return len(ticks) > 1 and max(map(len, ticks)) * min(len(ticks), COLUMNS) > 36


def matrix_on(axes: "Axes", run: Run, row: int, listed: int) -> None:
    """Draw the matrix: a row for each of up to `listed` participants; for more, strips of participants by domain.

    Draw everything else first: the space that it leaves decides if numbers fit into the cells.
    """
    accuracy_PD = np.asarray(run.metrics.read_row("accuracy", row), dtype=np.float64)
    own_P = np.asarray(run.metrics["own_domain"])
    is_listed = len(own_P) <= listed
    if not is_listed:
        # Sort by own domain, then best first; participants with a mix of all domains come last.
        groups_P = np.where(own_P < 0, accuracy_PD.shape[1], own_P)
        order_P = np.lexsort((-np.nan_to_num(accuracy_PD.mean(axis=1)), groups_P))
        accuracy_PD, own_P = accuracy_PD[order_P], own_P[order_P]
    participants, domains = accuracy_PD.shape
    low, high = limits(accuracy_PD)
    look: dict[str, Any] = {"cmap": COLOUR_MAP, "vmin": low, "vmax": high}
    if is_listed:
        mesh = axes.pcolormesh(accuracy_PD, edgecolors="face", linewidth=0.2, **look)
    else:
        edges_B, accuracy_BD = strips(accuracy_PD, own_P)
        mesh = axes.pcolormesh(np.arange(domains + 1), edges_B, accuracy_BD, rasterized=True, **look)
    axes.set(xlim=(0, domains), ylim=(participants, 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    outlined = _outline(axes, own_P, domains)
    ticks, kind = domain_ticks(run)
    _domain_axis(axes, ticks, kind, outlined)
    if is_listed:
        names = [f"{i} {shown(name, 14)}" for i, name in enumerate(run.metrics.texts("architecture"))]
        axes.set_yticks(np.arange(participants) + 0.5, names)
    else:
        _group_axis(axes, own_P, ticks)
    figure: Any = axes.figure
    figure.draw_without_rendering()
    box, points = axes.get_window_extent(), 72.0 / figure.dpi
    cell_pt, line_pt = box.width / domains * points, box.height / participants * points
    title = f"test accuracy after {rounds_text(run.after(row))}"
    if is_listed and cell_pt >= SHORT_PT and line_pt >= LINE_PT:
        _numbers(axes, accuracy_PD, own_P, mesh, is_short=cell_pt < NUMBER_PT)
        axes.set_title(title)
    else:
        colour_bar(figure, mesh, axes, title)


def strips(accuracy_PD: NDArray[np.float64], own_P: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return means of neighbouring rows with the same own domain, as a single row would be too thin to see.

    Returns
    -------
    edges : int64 (B + 1,)
        First row of each strip, and the number of rows.
    accuracy : float64 (B, D)
    """
    rows = -(-len(own_P) // STRIPS)
    starts = [start for _, first, last in _groups(own_P) for start in range(first, last, rows)]
    edges_B = np.array([*starts, len(own_P)])
    return edges_B, np.stack([mean(accuracy_PD[first:last].T) for first, last in itertools.pairwise(edges_B)])


def _domain_axis(axes: "Axes", ticks: Sequence[str], kind: str, outlined: bool) -> None:
    """Write the names of the columns that fit, upright if they are long."""
    domains = len(ticks)
    if domains == 1:
        axes.set_xticks([])
        axes.set_xlabel("test set")
        return
    every = -(-domains // COLUMNS)
    rotation = 90 if _is_upright(ticks) else 0
    axes.set_xticks(np.arange(domains)[::every] + 0.5, ticks[::every], rotation=rotation)
    axes.set_xlabel(f"tested on: {kind}" + (" (outlined: own)" if outlined else ""))


def _group_axis(axes: "Axes", own_P: NDArray[Any], ticks: Sequence[str]) -> None:
    groups = [(domain, first, last) for domain, first, last in _groups(own_P) if domain < len(ticks)]
    if 1 < len(groups) <= GROUPS:
        axes.set_yticks(
            [(first + last) / 2 for _, first, last in groups],
            [ticks[domain] if domain >= 0 else "mixed" for domain, _, _ in groups],
        )
        axes.set_ylabel(f"{len(own_P):,} participants, by own domain")
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(own_P):,} participants" + (", by own domain" if len(groups) > 1 else ""))


def _outline(axes: "Axes", own_P: NDArray[Any], domains: int) -> bool:
    """Outline the participants' own domains; return True if there is any to outline."""
    from matplotlib.patches import Rectangle

    framed = [(domain, first, last) for domain, first, last in _groups(own_P) if 0 <= domain < domains]
    if domains == 1 or not framed:
        return False
    for domain, first, last in framed:
        axes.add_patch(
            Rectangle((domain, first), 1, last - first, fill=False, edgecolor=VERMILION, linewidth=1.2, clip_on=False)
        )
    return True


def _groups(own_P: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """Yield the groups of neighbouring rows with the same own domain: domain, first row, row after the last."""
    starts = [0, *(np.flatnonzero(np.diff(own_P)) + 1), len(own_P)]
    for first, last in itertools.pairwise(starts):
        yield int(own_P[first]), int(first), int(last)


def _numbers(axes: "Axes", accuracy_PD: NDArray[np.float64], own_P: NDArray[Any], mesh: Any, is_short: bool) -> None:
    for i, accuracy_D in enumerate(accuracy_PD):
        for domain, value in enumerate(accuracy_D):
            if np.isnan(value):
                text, colour = "?", None
            else:
                text = f"{value:.2f}"
                text, colour = text.removeprefix("0") if is_short else text, ink_on(mesh.norm(value))
            axes.text(
                domain + 0.5,
                i + 0.5,
                text,
                ha="center",
                va="center_baseline",
                color=colour,
                size=SMALL,
                weight="bold" if domain == own_P[i] and len(accuracy_D) > 1 else "normal",
            )


DOMAINS = FigureKind(
    "domains",
    "Participants and domains",
    "Test accuracy of every participant on every domain in the last evaluated round; its own domain is outlined. "
    "Many participants are sorted by own domain and then by accuracy. If there are too many for rows of their own, a "
    "strip is the mean of a few similar ones.",
    COLUMN_MM,
    drawn,
)
