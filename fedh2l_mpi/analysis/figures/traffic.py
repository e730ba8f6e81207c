"""Draw accuracy against the bytes sent.

Shape letters: R rounds, E evaluated rounds, P participants.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.method_looks import look_of
from fedh2l_mpi.analysis.figures.style import (
    COLUMN_MM,
    GREY,
    accuracy_axis,
    band_name,
    evaluated,
    mean,
    new_figure,
    rounds_text,
    shown,
    spread_on,
)
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.units import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw accuracy against the bytes that a participant had sent, and the traffic of sharing parameters instead."""
    rows = evaluated(run)
    sent_E = mean(run.metrics["bytes_sent"]).cumsum()[rows]
    look = look_of(str(run.key("method.name", "")))
    method = shown(str(run.key("method.name", "this run")), 28)
    if np.isnan(sent_E).all():
        raise UserError("the bytes that were sent cannot be read")
    if not np.nanmax(sent_E) > 0:
        raise UserError(f"nothing was sent (method {method})")
    degree_RP, copy_P = run.metrics["degree"], run.metrics["parameter_bytes"]
    shared = float(mean(degree_RP * copy_P).cumsum()[rows[-1]])

    figure = new_figure(width_mm, 66.0)
    axes = figure.subplots()
    # A warm-up without exchange has sent 0 bytes, which a logarithmic axis cannot show.
    placed = sent_E > 0
    label = f"{method}: {size(float(np.nanmax(sent_E)))} in {rounds_text(run.after(rows[-1]))}"
    if run.participants > 1:
        label += f"\n(band: {band_name(run.participants)})"
    spread_on(axes, sent_E[placed], run.metrics["accuracy_all"][rows[placed]], look.colour, "-", label)
    ends = [float(sent_E[placed][0]), float(np.nanmax(sent_E))]
    if shared > 0:
        axes.axvline(shared, color=GREY, linestyle="--", label=f"sharing parameters instead: {size(shared)}")
        ends.append(shared)
    bytes_axis(axes, min(ends), max(ends), ticks=5 if width_mm < 130 else 9)
    axes.set_xlabel("sent by a participant [bytes]")
    accuracy_axis(axes, "all-domain test accuracy")
    axes.grid(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure


def bytes_axis(axes: "Axes", low: float, high: float, ticks: int) -> None:
    """Set a logarithmic x axis from `low` to `high` bytes, with at most `ticks` ticks, in KiB, MiB and GiB."""
    steps = ((1, 2, 5, 10, 20, 50, 100, 200, 500), (1, 4, 16, 64, 256), (1, 10, 100), (1, 32), (1,))
    places = [[step * 1024.0**power for power, step in itertools.product(range(6), some)] for some in steps]
    log_axis(axes, low, high, ticks, places, size)


def log_axis(
    axes: "Axes", low: float, high: float, ticks: int, places: Sequence[Sequence[float]], show: Callable[[float], str]
) -> None:
    """Set a logarithmic x axis from `low` to `high`, with the first places of which at most `ticks` are within it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = low / 1.4, high * 1.4
    if high < 12 * low:  # so little that no two ticks would be in it
        middle = (low * high) ** 0.5
        low, high = middle / 3.5, middle * 3.5
    axes.set(xscale="log", xlim=(low, high))
    within: list[float] = []
    for some in places:
        within = [place for place in some if low <= place <= high]
        if len(within) <= ticks:
            break
    axes.xaxis.set_major_locator(FixedLocator(within))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: show(place)))
    axes.xaxis.set_minor_locator(NullLocator())


BYTES = FigureKind(
    "bytes",
    "Accuracy and traffic",
    "All-domain test accuracy against the bytes that a participant had sent by then, mean and band over participants. "
    "The dashed line is the traffic of sharing parameters instead for as many rounds: one copy of the model per edge "
    "and round.",
    COLUMN_MM,
    drawn,
)
