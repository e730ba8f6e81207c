"""The part of a page on classes: a heat map of accuracy by class, and one of the classes taken for each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.classes import ByClass
from fedh2l_mpi.analysis.html import matrix
from fedh2l_mpi.analysis.html.matrix import Scale

# A table of numbers has at most this many rows and columns; a larger one is a picture.
NUMBERED = 20
SCALE = Scale(0, 1000)


def section(found: ByClass | None, names: list[str]) -> dict[str, Any] | None:
    """Return the heat maps of a run's results by class; None if it has none.

    Parameters
    ----------
    names : list of str
        Name of each participant's row.
    """
    if found is None:
        return None
    labels = [str(label) for label in range(found.accuracy_PC.shape[1])]
    maps = [_heat("Accuracy by class", "participant", names, labels, found.accuracy_PC)]
    if (share_CC := found.share_CC) is not None:
        caption = "Predicted class (column) of the test samples of a class (row), share, all participants together"
        maps.append(_heat(caption, "class", labels, labels, share_CC))
    return {"maps": maps}


def _heat(
    caption: str, corner: str, rows: list[str], columns: list[str], shares: NDArray[np.float64]
) -> dict[str, Any]:
    cells = matrix.per_mille(shares)
    if max(len(rows), len(columns)) > NUMBERED:
        return {"caption": caption, "picture": matrix.picture(cells, SCALE), "rows": len(rows), "columns": len(columns)}
    levels = SCALE.level(cells)
    lines = [
        (name, [(_text(cell), level) for cell, level in zip(own, shown, strict=True)])
        for name, own, shown in zip(rows, cells.tolist(), levels.tolist(), strict=True)
    ]
    return {"caption": caption, "picture": None, "corner": corner, "columns": columns, "lines": lines}


def _text(per_mille: int) -> str:
    return "–" if per_mille == matrix.UNKNOWN else f"{per_mille / 1000:.3f}"
