"""Make the accuracy matrix of a page: whole per mille in as many rounds as there is room for, and colours.

Shape letters: P participants, D domains, S shown rounds, Q summary rows.
"""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.report import QUANTILES
from fedh2l_mpi.analysis.run import Run

# Up to this many participants get rows of numbers; more get rows of colours.
NUMBERED = 40
# Largest number of cells in all matrices of a page, of about 4 bytes each.
CELLS = 200_000
# Stands for NaN among whole numbers.
UNKNOWN = -1
# Matplotlib's colour map cividis in equal steps, between which it is almost linear.
CIVIDIS = "00224e 003170 2a3f6d 434e6c 575d6d 6a6c71 7d7c78 918b78 a59c74 bcae6c d2c060 e9d34e fee838"
LEVELS = 64
UNKNOWN_COLOUR = "#888888"


@dataclass(frozen=True)
class Matrix:
    """Accuracies of a run in whole per mille, or UNKNOWN.

    Attributes
    ----------
    after_S : list of int
        Number of rounds that had finished after each shown round.
    evaluated : int
        Number of evaluated rounds, which may be more than the shown ones.
    order_P : int64 (P,)
        Participant in each row: sorted by number, or by own domain if rows have no room for a number.
    cells_SPD : int16 (S, P, D)
    summary_SQD : int16 (S, Q, D)
        Mean over participants, or quantiles if there are many.
    """

    after_S: list[int]
    evaluated: int
    order_P: NDArray[np.int64]
    cells_SPD: NDArray[np.int16]
    summary_SQD: NDArray[np.int16]

    @property
    def is_numbered(self) -> bool:
        """True if rows show numbers instead of colours only."""
        return len(self.order_P) <= NUMBERED


def run_matrix(run: Run, room: int) -> Matrix:
    """Return the matrix of a run with at most `room` cells, but always with the first and last evaluated round."""
    participants, domains = run.participants, len(run.metrics["domain"])
    shown = thinned(run.evaluated_E, max(2, room // max(1, participants * domains)))
    if participants <= NUMBERED:
        order_P, parts = np.arange(participants), None
    else:
        order_P, parts = np.argsort(run.metrics["own_domain"], kind="stable"), list(QUANTILES.values())
    cells_SPD = np.empty((len(shown), participants, domains), np.int16)
    summary_SQD = np.empty((len(shown), len(parts) if parts else 1, domains), np.int16)
    for place, row in enumerate(shown):
        accuracy_PD = run.metrics.read_row("accuracy", int(row))[order_P]
        # A flipped bit may turn an accuracy into any number, so numbers out of range count as unknown.
        accuracy_PD = np.where((accuracy_PD >= 0) & (accuracy_PD <= 1), accuracy_PD, math.nan)
        cells_SPD[place] = per_mille(accuracy_PD)
        summary_SQD[place] = per_mille(_summed_up(accuracy_PD, parts))
    return Matrix([run.after(int(row)) for row in shown], len(run.evaluated_E), order_P, cells_SPD, summary_SQD)


def thinned(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most `most` (at least 2) rows, evenly spread, with the first and the last."""
    if len(rows) <= most:
        return rows
    return rows[np.rint(np.linspace(0, len(rows) - 1, most)).astype(np.int64)]


def per_mille(values: NDArray[np.float64]) -> NDArray[np.int16]:
    """Convert fractions to whole per mille, with the same digits as their `.3f`; UNKNOWN for NaN."""
    whole = np.full(values.shape, UNKNOWN, np.int16)
    known = ~np.isnan(values)
    # np.rint(1000 * values) would round twice, and sometimes differ from `.3f`, as for 0.0625.
    whole[known] = [round(1000 * round(value, 3)) for value in values[known].tolist()]
    return whole


def _summed_up(accuracy_PD: NDArray[np.float64], parts: Sequence[float] | None) -> NDArray[np.float64]:
    columns = [column[~np.isnan(column)] for column in accuracy_PD.T]
    size = len(parts) if parts else 1
    unknown = np.full(size, math.nan)
    summed = [(np.quantile(known, parts) if parts else [known.mean()]) if len(known) else unknown for known in columns]
    return np.array(summed, dtype=np.float64).reshape(len(columns), size).T


@dataclass(frozen=True)
class Scale:
    """Scale of colours: LEVELS equal steps from `low` to `high`, both per mille."""

    low: int
    high: int

    def level(self, cells: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the number of each cell's colour; LEVELS if the cell is unknown."""
        levels = np.clip((cells.astype(np.int64) - self.low) * LEVELS // (self.high - self.low), 0, LEVELS - 1)
        return np.where(cells == UNKNOWN, LEVELS, levels)


def scale_of(matrices: Sequence[Matrix]) -> Scale:
    """Return one scale for all matrices, so that colours can be compared between runs and rounds."""
    known = [matrix.cells_SPD[matrix.cells_SPD != UNKNOWN] for matrix in matrices]
    known = [cells for cells in known if len(cells)]
    if not known:
        return Scale(0, 1000)
    low = min(int(cells.min()) for cells in known) // 100 * 100
    high = -(-max(int(cells.max()) for cells in known) // 100) * 100
    return Scale(low, high) if low < high else Scale(max(0, low - 100), max(100, high))


def palette() -> list[str]:
    """Return LEVELS colours from the lowest accuracy to the highest, as #rrggbb."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in CIVIDIS.split()], dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, LEVELS)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.rint(channels).astype(int).T.tolist()]


def ink_on(colour: str) -> str:
    """Return black or white, whichever has the higher contrast, which is always at least 4.5."""
    return "#000" if contrast(colour, "#000000") >= contrast(colour, "#ffffff") else "#fff"


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, #rrggbb.

    Source: WCAG 2.2, "contrast ratio" and "relative luminance".
    """
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [value / 255 for value in bytes.fromhex(colour[1:])]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def picture(cells_PD: NDArray[np.int16], scale: Scale) -> str:
    """Return a round's matrix as the data URL of a PNG, one pixel per cell, for pages without JavaScript."""
    levels_PD = scale.level(cells_PD)
    colours = bytes.fromhex("".join([*palette(), UNKNOWN_COLOUR]).replace("#", ""))
    # In a PNG, every line begins with its filter; 0 means none.
    lines = np.hstack([np.zeros((len(levels_PD), 1), np.uint8), levels_PD.astype(np.uint8)]).tobytes()
    header = struct.pack(">IIBBBBB", levels_PD.shape[1], levels_PD.shape[0], 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()
