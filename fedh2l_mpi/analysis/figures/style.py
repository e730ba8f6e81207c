"""Style of all figures: sizes, colours, and common parts.

Shape letters: R rounds (or any rows), P participants.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import ROUNDS_DONE
from fedh2l_mpi.runtime.libraries import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One column of a paper and two.
COLUMN_MM, PAGE_MM = 85.0, 175.0
# From this width on, two panels fit next to each other.
WIDE_MM = 130.0
MM_PER_INCH = 25.4
# In a narrower figure, text of 7 points leaves no room for data; no sheet of paper is wider.
WIDTHS_MM = (60.0, 500.0)
# Okabe and Ito's colours, which people with any kind of colour vision can distinguish.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
# Grey is visible on white and on black.
GREY = "#808080"
# On a page, pure black becomes the page's text colour. These two stand on fixed colours, so they must not change.
DARK, LIGHT = "#111111", "#ffffff"
COLOUR_MAP = "cividis"
# Line style of the participant with the lowest accuracy.
DOTS = (0, (1, 1.2))
# With more participants than this, single ones are not shown.
LISTED = 32
# With more participants than this, the band excludes outliers.
PERCENTILES_FROM = 50
SMALL = 7.0
# Smallest range of an axis of accuracies.
LEAST_SPAN = 0.06

SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so figures are the same everywhere
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "figure.titlesize": 7.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.borderaxespad": 0.2,
    "legend.borderpad": 0.1,
    "legend.labelspacing": 0.25,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.formatter.use_mathtext": False,
    "text.parse_math": False,  # a name may contain a dollar sign
    "text.usetex": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "fedh2l_mpi",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Use our matplotlib settings instead of the user's, for drawing and for saving.

    Raises
    ------
    UserError
        If matplotlib is missing.
    """
    require("matplotlib", "figures")
    import matplotlib.style

    with matplotlib.style.context(["default", SETTINGS]):
        yield


def check_width(width_mm: float) -> None:
    """Raise a UserError if a figure cannot have this width."""
    if not WIDTHS_MM[0] <= width_mm <= WIDTHS_MM[1]:
        raise UserError(f"width of a figure: got {width_mm:g} mm, must be from {WIDTHS_MM[0]:g} to {WIDTHS_MM[1]:g}.")


def new_figure(width_mm: float, height_mm: float) -> "Figure":
    """Return an empty figure that keeps everything inside its edges."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    inside = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.03, hspace=0.04)
    return Figure(figsize=(width_mm / MM_PER_INCH, height_mm / MM_PER_INCH), layout=inside)


def evaluated(run: Run) -> NDArray[np.int64]:
    """Return the rows of the evaluated rounds, at least one.

    Raises
    ------
    UserError
        If there is none.
    """
    if len(run.evaluated_E) == 0:
        damaged = any("'accuracy_all'" in problem for problem in run.problems)
        raise UserError("its accuracies cannot be read" if damaged else "no round has been evaluated yet")
    return run.evaluated_E


def mean(values_RP: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of the known values in each row, float64 (R,); NaN if there is none."""
    values_RP = np.asarray(values_RP, dtype=np.float64)
    known_R = (~np.isnan(values_RP)).sum(axis=1)
    return np.where(known_R > 0, np.nansum(values_RP, axis=1) / np.maximum(known_R, 1), np.nan)


@dataclass(frozen=True)
class Spread:
    """Mean over participants, and a band that contains most or all of them, each float64 (R,)."""

    mean_R: NDArray[np.float64]
    low_R: NDArray[np.float64]
    high_R: NDArray[np.float64]


def spread(values_RP: NDArray[Any]) -> Spread:
    """Return mean and band of the known values in each row."""
    values_RP = np.asarray(values_RP, dtype=np.float64)
    if values_RP.shape[1] <= PERCENTILES_FROM:
        return Spread(mean(values_RP), np.fmin.reduce(values_RP, axis=1), np.fmax.reduce(values_RP, axis=1))
    low_R, high_R = np.full((2, len(values_RP)), np.nan)
    whole_R = ~np.isnan(values_RP).any(axis=1)
    low_R[whole_R], high_R[whole_R] = np.percentile(values_RP[whole_R], [10, 90], axis=1)
    # Rows with unknown values are rare, so a slow loop is enough.
    for row in np.flatnonzero(~whole_R & ~np.isnan(values_RP).all(axis=1)):
        low_R[row], high_R[row] = np.nanpercentile(values_RP[row], [10, 90])
    return Spread(mean(values_RP), low_R, high_R)


def band_name(participants: int) -> str:
    """Return the meaning of the band of `spread`."""
    return "lowest to highest" if participants <= PERCENTILES_FROM else "10th to 90th percentile"


def spread_on(
    axes: "Axes",
    x_R: NDArray[Any],
    values_RP: NDArray[Any],
    colour: str,
    style: Any = "-",
    label: str | None = None,
    has_band: bool = True,
) -> None:
    """Draw the mean over participants as a line, with their band."""
    over = spread(values_RP)
    known_R = ~np.isnan(over.mean_R)
    x_R = np.asarray(x_R)[known_R]
    marker = "o" if len(x_R) <= 12 else ""
    if has_band and values_RP.shape[1] > 1:
        low_R, high_R = over.low_R[known_R], over.high_R[known_R]
        axes.fill_between(x_R, low_R, high_R, color=colour, alpha=0.2, linewidth=0)
        if len(x_R) == 1:  # a band of one point has no width
            axes.vlines(x_R, low_R, high_R, color=colour, alpha=0.4, linewidth=3)
    axes.plot(x_R, over.mean_R[known_R], linestyle=style, color=colour, label=label, marker=marker)


def round_axis(axes: "Axes", rounds_R: NDArray[np.int64], ticks: int = 6) -> None:
    """Set the x axis to whole numbers of rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(ROUNDS_DONE.long_name)
    if len(rounds_R) == 1:
        axes.set_xticks(rounds_R)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=ticks, steps=[1, 2, 5, 10]))
    axes.grid(True)


def accuracy_axis(axes: "Axes", label: str, whole: float = 1.0) -> None:
    """Set the y axis to accuracies, with a smallest range, so that a difference of 0.001 does not look large.

    Parameters
    ----------
    whole : float
        Highest accuracy: 1, or 100 for per cent.
    """
    axes.set_ylabel(label)
    (low, high), least = axes.get_ylim(), LEAST_SPAN * whole
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def colour_bar(figure: Any, mappable: Any, axes: Any, label: str) -> None:
    """Draw the colour bar next to the axes."""
    bar = figure.colorbar(mappable, ax=axes, label=label, aspect=25, pad=0.02, fraction=0.05, panchor=False)
    # The bar is one raster image, because thin lines would show between 256 separate strips.
    if bar.solids is not None:
        bar.solids.set_rasterized(True)


def ink_on(shade: float) -> str:
    """Return black or white, whichever is readable on this shade of the colour map, from 0 to 1."""
    return DARK if shade > 0.5 else LIGHT


def limits(values: NDArray[np.float64], least: float = 0.02) -> tuple[float, float]:
    """Return the lowest and the highest known value, moved apart if they are almost equal."""
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if not np.isnan(values).all() else (0.0, 1.0)
    return (low, high) if high - low >= least else (low - least / 2, high + least / 2)


def shown(text: str, most: int = 16) -> str:
    """Return a name that a figure can show: printable, and at most `most` characters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def domain_ticks(run: Run) -> tuple[Sequence[str], str]:
    """Return the domains' names without their common part, and the label of the axis."""
    names = run.metrics.texts("domain_name")
    if len(names) > 1 and all(name.startswith("rotated ") and name.endswith(" deg") for name in names):
        return [shown(name[len("rotated ") : -len(" deg")], 8) for name in names], "rotation [degrees]"
    return [shown(name) for name in names], "domain"


def rounds_text(count: int) -> str:
    """Write a number of rounds with its unit."""
    return f"{count:,} round{'' if count == 1 else 's'}"
