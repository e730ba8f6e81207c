"""How every figure looks: sizes, colours, and what is drawn the same way everywhere.

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
from fedh2l_mpi.runtime.libraries import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One column of a paper and two.
COLUMN_MM, PAGE_MM = 85.0, 175.0
# From here on, two panels have room side by side.
WIDE_MM = 130.0
MM_PER_INCH = 25.4
# Okabe and Ito's colours: told apart with any kind of colour vision.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
# Seen on white and on black.
GREY = "#808080"
# On a page, black becomes the page's text colour. These two lie on colours of our own and stay as they are.
DARK, LIGHT = "#111111", "#ffffff"
COLOUR_MAP = "cividis"
# The one who learns least, of whatever colour the others are.
DOTS = (0, (1, 1.2))
# Beyond this many participants, each by itself cannot be shown.
LISTED = 32
# Beyond this many, one odd participant should not make the band.
PERCENTILES_FROM = 50
SMALL = 7.0
# Of an axis of accuracies.
LEAST_SPAN = 0.06

SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that a figure is the same everywhere
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
    "text.parse_math": False,  # a name may hold a dollar
    "text.usetex": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "fedh2l_mpi",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Our settings of matplotlib and no others, whatever the user's are; both to draw in and to save in.

    Raises
    ------
    UserError
        If matplotlib is missing.
    """
    require("matplotlib", "figures")
    import matplotlib.style

    with matplotlib.style.context(["default", SETTINGS]):
        yield


def new_figure(width_mm: float, height_mm: float) -> "Figure":
    """An empty figure that keeps everything inside its edges."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    inside = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.03, hspace=0.04)
    return Figure(figsize=(width_mm / MM_PER_INCH, height_mm / MM_PER_INCH), layout=inside)


def evaluated(run: Run) -> NDArray[np.int64]:
    """Rows of the evaluated rounds, at least one.

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
    """Mean of what is known in each row, float64 (R,); NaN where nothing is."""
    values_RP = np.asarray(values_RP, dtype=np.float64)
    known_R = (~np.isnan(values_RP)).sum(axis=1)
    return np.where(known_R > 0, np.nansum(values_RP, axis=1) / np.maximum(known_R, 1), np.nan)


@dataclass(frozen=True)
class Spread:
    """Over participants: their mean, and a band in which most or all of them are, each float64 (R,)."""

    mean_R: NDArray[np.float64]
    low_R: NDArray[np.float64]
    high_R: NDArray[np.float64]


def spread(values_RP: NDArray[Any]) -> Spread:
    """Mean and band of each row, of what is known in it."""
    values_RP = np.asarray(values_RP, dtype=np.float64)
    if values_RP.shape[1] <= PERCENTILES_FROM:
        return Spread(mean(values_RP), np.fmin.reduce(values_RP, axis=1), np.fmax.reduce(values_RP, axis=1))
    low_R, high_R = np.full((2, len(values_RP)), np.nan)
    whole_R = ~np.isnan(values_RP).any(axis=1)
    low_R[whole_R], high_R[whole_R] = np.percentile(values_RP[whole_R], [10, 90], axis=1)
    # Slow, but hardly ever needed: a row in which some are not known.
    for row in np.flatnonzero(~whole_R & ~np.isnan(values_RP).all(axis=1)):
        low_R[row], high_R[row] = np.nanpercentile(values_RP[row], [10, 90])
    return Spread(mean(values_RP), low_R, high_R)


def band_name(participants: int) -> str:
    """What a band of `spread` shows."""
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
    """Draw the mean over participants as a line, and their band."""
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
    """Whole numbers of rounds along x."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("rounds")
    if len(rounds_R) == 1:
        axes.set_xticks(rounds_R)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=ticks, steps=[1, 2, 5, 10]))
    axes.grid(True)


def accuracy_axis(axes: "Axes", label: str) -> None:
    """Accuracies along y; what differs in the third digit only must not look like a leap."""
    axes.set_ylabel(label)
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:
        axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)


def colour_bar(figure: Any, mappable: Any, axes: Any, label: str) -> None:
    """Beside the axes, what their colours mean."""
    bar = figure.colorbar(mappable, ax=axes, label=label, aspect=25, pad=0.02, fraction=0.05, panchor=False)
    # As one picture: 256 strips would leave hairs of the ground between them.
    if bar.solids is not None:
        bar.solids.set_rasterized(True)


def ink_on(shade: float) -> str:
    """Black or white, whichever is read on this place of the colour map, from 0 to 1."""
    return DARK if shade > 0.5 else LIGHT


def limits(values: NDArray[np.float64], least: float = 0.02) -> tuple[float, float]:
    """Lowest and highest of what is known, a little apart where they are not."""
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if not np.isnan(values).all() else (0.0, 1.0)
    return (low, high) if high - low >= least else (low - least / 2, high + least / 2)


def shown(text: str, most: int = 16) -> str:
    """A name as a figure can show it: printable, and not longer than there is room for."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def domain_ticks(run: Run) -> tuple[Sequence[str], str]:
    """The domains' names, and what they are: what all have in common is said once."""
    names = run.metrics.texts("domain_name")
    if len(names) > 1 and all(name.startswith("rotated ") and name.endswith(" deg") for name in names):
        return [shown(name[len("rotated ") : -len(" deg")], 8) for name in names], "rotation [degrees]"
    return [shown(name) for name in names], "domain"


def rounds_text(count: int) -> str:
    """A number of rounds in words."""
    return f"{count:,} round{'' if count == 1 else 's'}"
