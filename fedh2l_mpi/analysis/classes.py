"""Results by class at the end of a run: accuracy of each participant, and which classes are taken for which.

Shape letters: P participants, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run

# A table has at most this many columns of classes; then it has the least accurate ones.
SHOWN = 10
# Number of pairs of classes that are listed as taken for each other.
PAIRS = 5


@dataclass(frozen=True)
class ByClass:
    """Results by class on the test sets of all domains, at the end of a run that was not stopped.

    Attributes
    ----------
    accuracy_PC : float64 (P, C)
        NaN if a class has no test sample.
    confusion_CC : int64 (C, C) or None
        Test samples of a class (row) by the predicted class, sum over participants; None if the file is without them.
    """

    accuracy_PC: NDArray[np.float64]
    confusion_CC: NDArray[np.int64] | None

    @property
    def mean_C(self) -> NDArray[np.float64]:
        """Accuracy by class, mean over the participants whose value is known, (C,)."""
        known = ~np.isnan(self.accuracy_PC)
        total_C = np.where(known, self.accuracy_PC, 0.0).sum(axis=0)
        return np.where(known.any(axis=0), total_C / np.maximum(known.sum(axis=0), 1), np.nan)

    @property
    def share_CC(self) -> NDArray[np.float64] | None:
        """Share of a class's test samples by the predicted class; NaN for a class without any."""
        if self.confusion_CC is None:
            return None
        total_C1 = self.confusion_CC.sum(axis=1, keepdims=True)
        return np.where(total_C1 > 0, self.confusion_CC / np.maximum(total_C1, 1), np.nan)

    def shown(self) -> list[int]:
        """Return the classes that a table has room for, ascending: all, or the SHOWN least accurate."""
        classes = len(self.mean_C)
        worst = np.argsort(self.mean_C, kind="stable")[:SHOWN] if classes > SHOWN else np.arange(classes)
        return sorted(int(label) for label in worst)

    def pairs(self) -> Iterator[tuple[int, int, float]]:
        """Yield the PAIRS classes most often taken for another one: class, predicted class, share of its samples."""
        if (share_CC := self.share_CC) is None:
            return
        wrong_CC = np.nan_to_num(share_CC * (1 - np.eye(len(share_CC))))
        for place in np.argsort(-wrong_CC, axis=None, kind="stable")[:PAIRS]:
            label, predicted = divmod(int(place), len(wrong_CC))
            if wrong_CC[label, predicted] > 0:
                yield label, predicted, float(wrong_CC[label, predicted])


def by_class(run: Run) -> ByClass | None:
    """Return the results by class of a run; None if it has none yet, or an earlier version wrote it."""
    measured = run.metrics
    if "accuracy_class" not in measured.dimensions:
        return None
    accuracy_PC = np.asarray(measured["accuracy_class"], dtype=np.float64)
    # A flipped bit may turn an accuracy into any number.
    accuracy_PC = np.where((accuracy_PC >= 0) & (accuracy_PC <= 1), accuracy_PC, np.nan)
    if np.isnan(accuracy_PC).all():
        return None
    confusion_CC = None
    if "confusion" in measured.dimensions and measured.is_whole("confusion"):
        counts_PCC = measured["confusion"]
        if (counts_PCC >= 0).all():
            confusion_CC = counts_PCC.sum(axis=0, dtype=np.int64)
    return ByClass(accuracy_PC, confusion_CC)
