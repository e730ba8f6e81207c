"""Draw the reliability diagram: are the models right as often as they are confident?

Shape letters: P participants, K confidence bins.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import BLUE, COLUMN_MM, GREY, WIDE_MM, band_name, new_figure, rounds_text, spread
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw accuracy against confidence in the last evaluated round, and the share of samples in each bin."""
    row = calibrated(run)
    share_PK, confidence_PK, accuracy_PK = (
        np.asarray(run.metrics.read_row(f"calibration_{what}", row), dtype=np.float64)
        for what in ("share", "confidence", "accuracy")
    )
    confidence_K, accuracy_K = pooled(share_PK, confidence_PK), pooled(share_PK, accuracy_PK)
    over = spread(accuracy_PK.T)
    filled_K = ~np.isnan(confidence_K) & ~np.isnan(accuracy_K)

    is_wide = width_mm >= WIDE_MM
    figure = new_figure(width_mm, 90.0 if not is_wide else 80.0)
    if is_wide:
        diagram, histogram = figure.subplots(1, 2, width_ratios=(1.0, 0.8))
    else:
        diagram, histogram = figure.subplots(2, 1, height_ratios=(3.4, 1.0), sharex=True)
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8, label="accuracy = confidence")
    if run.participants > 1:
        diagram.fill_between(
            confidence_K[filled_K],
            over.low_R[filled_K],
            over.high_R[filled_K],
            color=BLUE,
            alpha=0.2,
            linewidth=0,
            label=f"participants, {band_name(run.participants)}",
        )
    label = _error_text(run, row)
    diagram.plot(confidence_K[filled_K], accuracy_K[filled_K], color=BLUE, marker="o", clip_on=False, label=label)
    diagram.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"test accuracy after {rounds_text(run.after(row))}")
    diagram.grid(True)
    # The legend stands above the panel, because the curve may cross any corner of it.
    diagram.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))

    bins = share_PK.shape[1]
    known_P = ~np.isnan(share_PK).all(axis=1)
    share_K = np.nanmean(share_PK[known_P], axis=0)
    histogram.bar(np.arange(bins) / bins, share_K, width=0.92 / bins, align="edge", color=GREY)
    histogram.set(ylabel="share of samples", xlabel="confidence (largest posterior)", xlim=(0, 1), ylim=(0, None))
    if is_wide:
        diagram.set_xlabel("confidence (largest posterior)")
    for axes in (diagram, histogram):
        axes.set_xticks(np.linspace(0, 1, 6))
    return figure


def calibrated(run: Run) -> int:
    """Return the row of the last evaluated round with calibration.

    Raises
    ------
    UserError
        If there is none.
    """
    if len(run.evaluated_E) == 0:
        raise UserError("no round has been evaluated yet")
    for row in run.evaluated_E[::-1]:
        if not np.isnan(run.metrics.read_row("calibration_share", int(row))).all():
            return int(row)
    raise UserError("calibration was not recorded")


def pooled(share_PK: NDArray[np.float64], values_PK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each bin over all participants' samples, float64 (K,); NaN for a bin without samples."""
    weights_PK = np.where(np.isnan(values_PK), 0.0, np.nan_to_num(share_PK))
    weight_K = weights_PK.sum(axis=0)
    sums_K = (weights_PK * np.nan_to_num(values_PK)).sum(axis=0)
    return np.where(weight_K > 0, sums_K / np.where(weight_K > 0, weight_K, 1.0), np.nan)


def _error_text(run: Run, row: int) -> str:
    """Write the expected calibration error, and its range over the participants."""
    errors_1P = np.asarray(run.metrics.read_row("calibration_error", row), dtype=np.float64)[None]
    over = spread(errors_1P)
    if np.isnan(over.mean_R[0]):
        return "all samples"
    text = f"expected calibration error {over.mean_R[0]:.3f}"
    return text + (f" ({over.low_R[0]:.3f} to {over.high_R[0]:.3f})" if run.participants > 1 else "")


RELIABILITY = FigureKind(
    "reliability",
    "Calibration",
    "Accuracy against mean confidence in each bin of confidence, on the test sets of all domains in the last "
    "evaluated round, pooled over participants, with a band over single participants; below, the share of samples in "
    "each bin. Under the diagonal, the models are overconfident.",
    COLUMN_MM,
    drawn,
)
