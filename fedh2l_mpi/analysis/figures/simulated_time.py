"""Draw accuracy against the simulated time of a network with a clock.

Shape letters: R rounds, E evaluated rounds, P participants.
"""

from typing import TYPE_CHECKING

import numpy as np

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.method_looks import look_of
from fedh2l_mpi.analysis.figures.style import (
    COLUMN_MM,
    accuracy_axis,
    band_name,
    evaluated,
    new_figure,
    rounds_text,
    shown,
    spread_on,
)
from fedh2l_mpi.analysis.figures.traffic import log_axis
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import SIMULATED_SECONDS
from fedh2l_mpi.runtime.units import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ticks [s], from many to few: parts of a second, seconds, minutes, hours, days.
_FINE = (*(d * 10.0**p for p in range(-6, 0) for d in (1, 2, 5)), *(1, 2, 5, 10, 30))
_FINE += tuple(unit * d for unit, ds in ((60, (1, 2, 5, 10, 30)), (3600, (1, 2, 5, 12))) for d in ds)
_FINE += tuple(86_400.0 * d * 10**p for p in range(4) for d in (1, 2, 5))
_COARSE = (*(10.0**p for p in range(-6, 2)), 60.0, 600.0, 3600.0, 36_000.0, *(86_400.0 * 10**p for p in range(5)))
TICKS = (_FINE, _COARSE, _COARSE[::2], _COARSE[::4])


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw accuracy against the simulated time at which the last participant had ended the round."""
    if SIMULATED_SECONDS.name not in run.metrics.columns.names:
        raise UserError("the run's network has no clock (network.kind is none)")
    rows = evaluated(run)
    time_E = run.metrics[SIMULATED_SECONDS.name].max(axis=1, initial=0.0)[rows]
    if not np.nanmax(time_E, initial=0.0) > 0:
        raise UserError("no simulated time has passed: steps take no time (network.speed_steps_per_s is null)")
    method = shown(str(run.key("method.name", "this run")), 28)
    label = f"{method}, {run.key('network.kind', 'network')}: {duration(float(np.nanmax(time_E)))} in "
    label += rounds_text(run.after(rows[-1]))
    if run.participants > 1:
        label += f"\n(band: {band_name(run.participants)})"
    figure = new_figure(width_mm, 66.0)
    axes = figure.subplots()
    placed = time_E > 0
    colour = look_of(str(run.key("method.name", ""))).colour
    spread_on(axes, time_E[placed], run.metrics["accuracy_all"][rows[placed]], colour, "-", label)
    time_axis(axes, float(time_E[placed][0]), float(np.nanmax(time_E)), ticks=5 if width_mm < 130 else 9)
    accuracy_axis(axes, "all-domain test accuracy")
    axes.grid(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure


def time_axis(axes: "Axes", low: float, high: float, ticks: int) -> None:
    """Set a logarithmic x axis from `low` to `high` simulated seconds, with at most `ticks` ticks, and name it."""
    log_axis(axes, low, high, ticks, TICKS, duration)
    axes.set_xlabel("simulated time")


TIME = FigureKind(
    "time",
    "Accuracy and simulated time",
    "All-domain test accuracy against the simulated time at which the last participant had ended the round, mean and "
    "band over participants, in a run whose network has a clock.",
    COLUMN_MM,
    drawn,
)
