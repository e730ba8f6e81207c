"""What a figure is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedh2l_mpi.analysis.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Attributes
    ----------
    title : str
        A few words.
    caption : str
        What is seen, in one or two sentences.
    width_mm : float
        Its width where none is asked for.
    drawn : function
        From a run and a width [mm] to the figure; a `UserError` without the run's name if there is nothing to draw.
    """

    name: str
    title: str
    caption: str
    width_mm: float
    drawn: Callable[[Run, float], "Figure"]
