"""Compute differences between groups of runs, paired by seed, and their confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
