"""Power of a membership attack: how well its scores separate members from other samples, with confidence intervals.

Shape letters: M members, N other samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
RESAMPLES, LEVEL = 500, 0.95
FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Estimate:
    """An estimate and the estimates of bootstrap resamples, float64 (RESAMPLES,)."""

    value: float
    resampled: NDArray[np.float64]

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of 95 % confidence: percentiles of the resamples.

        Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
        """
        low, high = np.quantile(self.resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def area_under_curve(members_M: Scores, others_N: Scores) -> float:
    """Return the probability that a random member has a higher score than another sample; ties count one half.

    It is the area under the ROC curve. Chance is 0.5.

    Source: Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    1982.
    """
    sorted_N = np.sort(others_N)
    below = np.searchsorted(sorted_N, members_M, side="left").sum()
    not_above = np.searchsorted(sorted_N, members_M, side="right").sum()
    return float(below + not_above) / (2 * len(members_M) * len(others_N))


def true_positive_rate(members_M: Scores, others_N: Scores, false_positives: float = FALSE_POSITIVES) -> float:
    """Return the share of members above the lowest threshold that at most this share of other samples exceeds.

    Chance is at most `false_positives`. If there are fewer than 1 / false_positives other samples, none may exceed it.

    Source: Carlini, Chien, Nasr, Song, Terzis and Tramer, "Membership inference attacks from first principles", 2022.
    """
    allowed = int(false_positives * len(others_N))
    threshold = np.sort(others_N)[::-1][allowed]
    return float((members_M > threshold).mean())


def bootstrapped(
    measure: Callable[[Scores, Scores], float], members_M: Scores, others_N: Scores, draw: np.random.Generator
) -> Estimate:
    """Return a measure of two groups of scores, and its values on resamples of each group with replacement."""
    resampled = [
        measure(draw.choice(members_M, len(members_M)), draw.choice(others_N, len(others_N))) for _ in range(RESAMPLES)
    ]
    return Estimate(measure(members_M, others_N), np.array(resampled))


def mean(estimates: list[Estimate]) -> Estimate:
    """Return the mean of independent estimates, such as those of all participants."""
    resampled = np.mean([one.resampled for one in estimates], axis=0)
    return Estimate(float(np.mean([one.value for one in estimates])), resampled)
