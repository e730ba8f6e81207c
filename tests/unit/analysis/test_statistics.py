"""Intervals of paired differences, and the best of several groups."""

import math

import numpy as np
import pytest
import scipy.stats

from fedh2l_mpi.analysis import statistics


def test_an_interval_is_students_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1; t of 2 degrees at 0.975 is 4.30265, over the root of 3: 2.48414.
    found = statistics.difference({0: 2.0, 1: 4.0, 2: 6.0, 9: 50.0}, {2: 3.0, 0: 1.0, 1: 2.0, 7: 0.0}, 0.95)
    assert (found.mean, found.pairs) == (pytest.approx(2.0), 3)
    assert (found.low, found.high) == (pytest.approx(2 - 2.48414, abs=1e-5), pytest.approx(2 + 2.48414, abs=1e-5))


@pytest.mark.parametrize("pairs", [2, 3, 5, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_an_interval_is_scipys(pairs, confidence):
    ours, theirs = np.random.default_rng(pairs).normal(0.7, 0.1, (2, pairs))
    found = statistics.difference(dict(enumerate(ours)), dict(enumerate(theirs)), confidence)
    theirs_interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(confidence)
    again = scipy.stats.t.interval(confidence, pairs - 1, found.mean, scipy.stats.sem(ours - theirs))
    assert (found.low, found.high) == pytest.approx(tuple(theirs_interval))
    assert (found.low, found.high) == pytest.approx(again)


def test_of_fewer_than_two_pairs_there_is_no_interval():
    one = statistics.difference({0: 0.7, 1: 0.5}, {0: 0.5, 2: 0.5}, 0.95)
    assert (one.mean, one.pairs, math.isnan(one.low), math.isnan(one.high)) == (pytest.approx(0.2), 1, True, True)
    none = statistics.difference({0: 0.7}, {1: 0.7}, 0.95)
    assert (none.pairs, math.isnan(none.mean)) == (0, True)


def test_the_best_group_must_be_clear_of_every_other_by_a_corrected_interval():
    def group(mean, spread):
        return {seed: mean + spread * deviation for seed, deviation in enumerate([-1.0, 0.5, 0.5, -0.5, 0.5])}

    low, middle, high = group(0.1, 0.01), group(0.5, -0.01), group(0.9, 0.02)
    assert statistics.best([low, high, middle], True, 0.95) == 1
    assert statistics.best([low, high, middle], False, 0.95) == 0
    near = {seed: value + 0.3 * (-1) ** seed for seed, value in high.items()}
    assert statistics.best([low, high, near], True, 0.95) is None
    assert statistics.best([low, high, {0: 0.0}], True, 0.95) is None, "a single pair is no evidence"
    assert statistics.best([high, high], True, 0.95) is None
    assert statistics.best([high], True, 0.95) is None
    # Between the plain interval and the corrected one lies what the number of groups decides.
    base = {seed: 0.0 for seed in range(5)}
    better = {seed: 1.0 + deviation for seed, deviation in enumerate([-0.8, 0.8, -0.6, 0.6, 0.0])}
    assert statistics.best([base, better], True, 0.95) == 1
    far = [{seed: -100.0 for seed in range(5)} for _ in range(20)]
    assert statistics.best([base, better, *far], True, 0.95) is None
    assert 1 - statistics.corrected(0.95, 22) == pytest.approx(0.05 / 21)


@pytest.mark.parametrize("groups", [2, 4])
def test_among_equals_one_is_called_best_no_more_often_than_promised(groups):
    normal = np.random.default_rng(0).normal(size=(400, groups, 4))
    found = [statistics.best([dict(enumerate(g)) for g in trial], True, 0.8) for trial in normal]
    share = sum(number is not None for number in found) / len(found)
    # Of two equals, exactly: one of them in 20 %; three deviations of 400 trials are 6 %.
    assert share < 0.26
    assert groups > 2 or share > 0.14
