"""The runs of a sweep as one picture: accuracy against rounds, and against what was sent for it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedh2l_mpi.analysis.tables import Outcome
from fedh2l_mpi.errors import UserError

# Okabe and Ito's colours, told apart with any kind of colour vision; yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
# Beyond this many lines, the bands would hide each other.
BANDS = 8


def plot(runs_by_row: Mapping[str, Sequence[Outcome]], title: str, out: Path) -> None:
    """Write all-domain accuracy, a line for each row: mean over its runs, and a band from the lowest to the highest.

    Raises
    ------
    UserError
        If matplotlib is missing, or `out` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise UserError("curves need matplotlib: pip install 'fedh2l_mpi[analysis]'") from None
    rows = {row: runs for row, runs in runs_by_row.items() if runs}
    sends = any(run.bytes_E[-1] > 0 for runs in rows.values() for run in runs)
    # The legend is at the side, one line for each row: the figure is as high as it needs.
    height = max(3.2, 0.8 + 0.2 * len(rows))
    figure = Figure(figsize=(9.6 if sends else 6.4, height), layout="constrained")
    panels = figure.subplots(1, 2 if sends else 1, sharey=True, squeeze=False)[0]
    looks = itertools.cycle(itertools.product(STYLES, COLOURS))
    for (row, runs), (style, colour) in zip(rows.items(), looks, strict=False):
        rounds_E = runs[0].rounds_E
        accuracy_SE = np.stack([run.accuracy_E for run in runs])
        bytes_E = np.mean([run.bytes_E for run in runs], axis=0)
        for axes, x_E in zip(panels, (rounds_E, bytes_E), strict=False):
            # A method that sends nothing has no place on an axis of bytes, nor has a warm-up without exchange.
            shown = x_E > 0
            x_E, shown_SE = x_E[shown], accuracy_SE[:, shown]
            marker = "o" if len(x_E) == 1 else ""
            label = row if axes is panels[0] else None
            axes.plot(x_E, shown_SE.mean(axis=0), style, color=colour, label=label, marker=marker, linewidth=1.4)
            if len(rows) <= BANDS and len(runs) > 1 and len(x_E):
                axes.fill_between(x_E, shown_SE.min(axis=0), shown_SE.max(axis=0), color=colour, alpha=0.12, lw=0)
    panels[0].set(xlabel="rounds", ylabel="all-domain test accuracy")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if sends:
        panels[1].set(xlabel="sent by a participant [bytes]", xscale="log")
    for axes in panels:
        axes.grid(alpha=0.3)
    many = max((len(runs) for runs in rows.values()), default=0)
    what = f"mean over {many} seeds" + (" (band: lowest to highest)" if len(rows) <= BANDS else "") if many > 1 else ""
    figure.suptitle("\n".join(filter(None, (title, what))), fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small", ncols=math.ceil(len(rows) / 40) or 1)
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot write the curves: {error}") from None
