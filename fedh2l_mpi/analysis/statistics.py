"""Differences between groups of runs, paired by seed, and how sure they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedh2l_mpi.analysis.outcome import spread
from fedh2l_mpi.runtime.libraries import require

# From a seed to what its run came to; NaN where that is not known.
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and an interval for it; NaN where there are too few pairs for either."""

    mean: float
    low: float
    high: float
    pairs: int


def difference(ours: BySeed, theirs: BySeed, confidence: float) -> Difference:
    """Ours less theirs over the seeds that both have, with the interval of Student's t for the mean.

    It takes the differences to be independent and normal; of fewer than two there is none.

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
    """Confidence of each of a group's intervals against the others, by Bonferroni over these comparisons.

    The one group that is called best is chosen after the fact, from all of them. For `best` to be wrong, one of the G
    groups must lie clear of another that is no worse, on one side of an interval: by chance, at most G times half of
    (1 - confidence) / (G - 1), and that is no more than 1 - confidence.
    """
    return 1 - (1 - confidence) / max(1, groups - 1)


def best(groups: Sequence[BySeed], higher_is_better: bool, confidence: float) -> int | None:
    """Number of the group that is better than every other by an interval that excludes 0; None if none is."""
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
