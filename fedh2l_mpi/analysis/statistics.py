"""Compute differences and ratios of groups of runs, paired by seed, and their confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedh2l_mpi.analysis.outcome import spread
from fedh2l_mpi.runtime.libraries import require

# Result of a run by its seed; NaN if it is unknown.
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its interval; NaN if there are too few pairs."""

    mean: float
    low: float
    high: float
    pairs: int


def difference(ours: BySeed, theirs: BySeed, confidence: float) -> Difference:
    """Return ours minus theirs over the seeds that both have, with Student's t interval for the mean.

    The interval assumes independent, normal differences. It needs at least two of them.
    Raises
    ------
    UserError
        If scipy is missing.
    """
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    mean, deviation = spread(differences)
    pairs = len(differences)
    if pairs < 2:
        return Difference(mean, math.nan, math.nan, pairs)
    half = _quantile(pairs - 1, (1 + confidence) / 2) * deviation / math.sqrt(pairs)
    return Difference(mean, mean - half, mean + half, pairs)


@dataclass(frozen=True)
class Share:
    """Part of a gap that a group closes, and its interval; NaN if they are unknown.

    Attributes
    ----------
    gap : Difference
        The gap itself: upper control minus lower control.
    """

    share: float
    low: float
    high: float
    gap: Difference


def share_of_gap(ours: BySeed, lower: BySeed, upper: BySeed, confidence: float) -> Share:
    """Return the mean of (ours - lower) divided by the mean of (upper - lower), over the seeds that all three have.

    The interval holds every ratio r for which a t-test does not reject that (ours - lower) - r (upper - lower) has
    mean 0. It assumes independent, jointly normal pairs, and is exact then. The share is NaN unless the interval of
    the gap lies above 0, because the ratio could have any value otherwise.
    Source: Fieller (1954), Some problems in interval estimation, J. R. Stat. Soc. B 16, 175-185.

    Raises
    ------
    UserError
        If scipy is missing.
    """
    seeds = [seed for seed in ours if seed in lower and seed in upper]
    gap = difference({seed: upper[seed] for seed in seeds}, lower, confidence)
    gained = difference({seed: ours[seed] for seed in seeds}, lower, confidence)
    # A single pair has no interval, so only its sign can be seen.
    if not (gap.mean if len(seeds) < 2 else gap.low) > 0:
        return Share(math.nan, math.nan, math.nan, gap)
    share = gained.mean / gap.mean
    if len(seeds) < 2:
        return Share(share, math.nan, math.nan, gap)
    gains = [ours[seed] - lower[seed] for seed in seeds]
    gaps = [upper[seed] - lower[seed] for seed in seeds]
    (of_gains, both), (_, of_gaps) = np.cov(gains, gaps).tolist()
    scale = _quantile(len(seeds) - 1, (1 + confidence) / 2) ** 2 / len(seeds)
    # The bounds are the roots of a r^2 - 2 b r + c; a is positive, because the interval of the gap excludes 0.
    a = gap.mean**2 - scale * of_gaps
    b = gained.mean * gap.mean - scale * both
    c = gained.mean**2 - scale * of_gains
    half = math.sqrt(max(0.0, b * b - a * c))
    return Share(share, (b - half) / a, (b + half) / a, gap)


def corrected(confidence: float, groups: int) -> float:
    """Return the confidence of each interval of a group against the others, by Bonferroni over these comparisons.

    The best of G groups is chosen after the fact. `best` is wrong only if one of the groups lies clear of another
    that is no worse, on one side of an interval. The probability of this is at most G times half of
    (1 - confidence) / (G - 1), which is at most 1 - confidence.
    """
    return 1 - (1 - confidence) / max(1, groups - 1)


def best(groups: Sequence[BySeed], higher_is_better: bool, confidence: float) -> int | None:
    """Return the number of the group whose intervals against all others exclude 0, or None if there is none."""
    if len(groups) < 2:
        return None
    each = corrected(confidence, len(groups))
    sign = 1.0 if higher_is_better else -1.0
    signed = [{seed: sign * value for seed, value in group.items()} for group in groups]
    for number, ours in enumerate(signed):
        others = [theirs for other, theirs in enumerate(signed) if other != number]
        if all(difference(ours, theirs, each).low > 0 for theirs in others):
            return number
    return None


def _quantile(degrees: int, probability: float) -> float:
    # scipy.special, because scipy.stats needs a second to import.
    special = require("scipy.special", "confidence intervals", "analysis")
    return float(special.stdtrit(degrees, probability))
