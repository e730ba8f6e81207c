"""A run as one picture: how accuracy grew, and who is good at what in the end.

Shape letters: R rounds, P participants, D domains.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart with any kind of colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
# Cells with numbers in them, up to this many participants.
NUMBERED = 16


def plot(run: metrics.RunMetrics, out: Path) -> None:
    """Write learning curves and the final participant x domain accuracies as PNG, SVG or PDF, by `out`'s ending.

    Raises
    ------
    UserError
        If matplotlib is missing, nothing has been evaluated yet, or `out` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plot needs matplotlib: pip install 'fedh2l_mpi[analysis]'") from None
    evaluated = np.flatnonzero(~np.isnan(run["accuracy_all"]).any(axis=1))
    if len(evaluated) == 0:
        raise UserError("no round has been evaluated yet: nothing to plot")
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    curves, matrix = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    _curves(curves, run, evaluated)
    _matrix(matrix, run, int(evaluated[-1]))
    try:
        figure.savefig(out, dpi=200)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot write the plot: {error}") from None


def _curves(axes: "Axes", run: metrics.RunMetrics, evaluated: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds = run["round"][evaluated] + 1
    curves = [
        ("accuracy_own", "own domain", GREY, "--"),
        ("accuracy_all", "all domains (band: lowest to highest)", BLUE, "-"),
        ("accuracy_worst", "worst domain", ORANGE, ":"),
    ]
    if len(run["domain"]) == 1:
        curves = [("accuracy_all", "test set (band: lowest to highest)", BLUE, "-")]
    for name, label, colour, style in curves:
        values_RP = run[name][evaluated]
        axes.plot(rounds, values_RP.mean(axis=1), style, color=colour, label=label, marker="o", markersize=3)
        if name == "accuracy_all":
            axes.fill_between(rounds, values_RP.min(axis=1), values_RP.max(axis=1), color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="rounds", ylabel="test accuracy", title="mean over participants")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rounds) == 1:
        axes.set_xticks(rounds)
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _matrix(axes: "Axes", run: metrics.RunMetrics, last: int) -> None:
    accuracy_PD = run["accuracy"][last]
    image = axes.imshow(accuracy_PD, aspect="auto", cmap="cividis", vmax=1.0)
    names = [name.decode() for name in run["domain_name"]]
    # "rotated 15 deg" for every column would not fit: what all have in common goes to the axis.
    turned = len(names) > 1 and all(name.startswith("rotated ") and name.endswith(" deg") for name in names)
    ticks = [name.removeprefix("rotated ").removesuffix(" deg") for name in names] if turned else names
    axes.set_xticks(range(len(ticks)), ticks if len(ticks) > 1 else [""])
    label = "rotation [degrees], bold: own" if turned else "domain" if len(ticks) > 1 else "test set"
    axes.set(xlabel=label, title=f"accuracy after {last + 1} rounds")
    axes.title.set_fontsize("medium")
    if len(accuracy_PD) <= NUMBERED:
        architectures = [name.decode() for name in run["architecture"]]
        axes.set_yticks(range(len(accuracy_PD)), [f"{i} {name}" for i, name in enumerate(architectures)])
        middle = (accuracy_PD.min() + 1.0) / 2
        for i, row in enumerate(accuracy_PD):
            for domain, value in enumerate(row):
                colour = "black" if value > middle else "white"
                weight = "bold" if domain == run["own_domain"][i] and len(row) > 1 else "normal"
                axes.text(
                    domain, i, f"{value:.2f}", ha="center", va="center", color=colour, size="x-small", weight=weight
                )
    else:
        axes.set_ylabel("participant")
        axes.figure.colorbar(image, ax=axes, label="test accuracy")
