"""Inference of the distribution of a participant's private labels from posteriors on the seed samples.

Shape letters: S seed rows, C classes.
"""

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.privacy.distinguishing import RESAMPLES, Estimate


def estimated_distribution(posteriors_SC: NDArray[np.float64], labels_S: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean over classes of the mean posterior of the class's seed samples, float64 (C,), which sums to 1.

    A model leans towards classes that it has seen often. Classes without seed samples have no part in the mean. This
    estimate is the project's own, and a lower bound of what a better attack would find.
    """
    means = [posteriors_SC[labels_S == label].mean(axis=0) for label in np.unique(labels_S)]
    return np.asarray(np.mean(means, axis=0))


def distance(p_C: NDArray[np.float64], q_C: NDArray[np.float64]) -> float:
    """Return the total variation distance of two distributions, from 0 (equal) to 1."""
    return float(np.abs(p_C - q_C).sum() / 2)


def distance_of_estimate(
    posteriors_SC: NDArray[np.float64],
    labels_S: NDArray[np.int64],
    true_C: NDArray[np.float64],
    draw: np.random.Generator,
) -> Estimate:
    """Return the distance of the estimated distribution from the true one, and that of resampled seed rows."""
    rows = [draw.integers(len(labels_S), size=len(labels_S)) for _ in range(RESAMPLES)]
    resampled = [distance(estimated_distribution(posteriors_SC[at], labels_S[at]), true_C) for at in rows]
    value = distance(estimated_distribution(posteriors_SC, labels_S), true_C)
    return Estimate(value, np.array(resampled))
