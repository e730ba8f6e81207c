"""FigureKind: name, title, caption and drawing function of a figure."""

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
        Title of a few words.
    caption : str
        Caption of one or two sentences.
    width_mm : float
        Default width.
    drawn : function
        Function of a run and a width [mm] that returns the figure. If there is nothing to draw, it raises a
        `UserError` without the run's name.
    """

    name: str
    title: str
    caption: str
    width_mm: float
    drawn: Callable[[Run, float], "Figure"]
