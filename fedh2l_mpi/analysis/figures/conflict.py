"""Draw how far private and seed gradients agree, and the losses.

Shape letters: R rounds, P participants.
"""

from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import (
    BLUE,
    COLUMN_MM,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    WIDE_MM,
    band_name,
    new_figure,
    round_axis,
    spread_on,
)
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRADIENTS = {
    "conflict_rate": ("share of steps in conflict", VERMILION, "-"),
    "gradient_cosine": ("gradient cosine", BLUE, "--"),
}
DISTANCES = {"fedmd": "distance of logits", "fedproto": "distance of embeddings"}
LOSSES = {
    "loss_private": ("private", GREY, "-"),
    "loss_seed": ("seed set", GREEN, "--"),
    "loss_distillation": ("distillation", PURPLE, "-."),
}


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw a panel for the gradients and one for the losses, as far as the method has them."""
    panels = [
        (title, {name: look for name, look in looks.items() if not np.isnan(run.metrics[name]).all()})
        for title, looks in (("share, cosine", GRADIENTS), ("loss [nats]", LOSSES))
    ]
    panels = [(title, looks) for title, looks in panels if looks]
    if not panels:
        raise UserError("no round has finished yet" if run.metrics.rounds == 0 else "no losses were recorded")
    is_wide = width_mm >= WIDE_MM
    figure = new_figure(width_mm, 62.0 if is_wide or len(panels) == 1 else 98.0)
    grid = (1, len(panels)) if is_wide else (len(panels), 1)
    rounds_R = run.metrics["round"] + 1
    every = figure.subplots(*grid, squeeze=False, sharex=True).ravel()
    for axes, (title, looks) in zip(every, panels, strict=True):
        for name, (label, colour, style) in looks.items():
            if name == "loss_distillation":
                label = DISTANCES.get(run.key("method.name"), label)
            spread_on(axes, rounds_R, run.metrics[name], colour, style, label)
        if looks.keys() & GRADIENTS.keys():
            axes.axhline(0.0, color="black", linewidth=0.6)
        axes.set_ylabel(title)
        round_axis(axes, rounds_R)
        if not is_wide and axes is not every[-1]:
            axes.set_xlabel("")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(looks))
    if run.participants > 1:
        figure.supxlabel(f"lines: mean over participants; bands: {band_name(run.participants)}", size=7.0)
    return figure


CONFLICT = FigureKind(
    "conflict",
    "Gradients and losses",
    "Share of mutual steps whose private and seed gradients conflict (negative inner product), the cosine between "
    "the two, and the losses in training, over the rounds: mean and band over participants.",
    COLUMN_MM,
    drawn,
)
