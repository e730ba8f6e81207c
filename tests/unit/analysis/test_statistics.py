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


def test_a_share_is_fiellers_by_hand():
    # Gaps 1, 2, 3 with mean 2 and variance 1; gains 1, 1, 1 of mean 1, variance 0, covariance 0; t squared over 3 is
    # 18.51282 / 3 = 6.17094 at 95 %, too much for the gap's interval, and 8.5263 % of that, 0.34014, at 50 %.
    lower, upper, ours = dict.fromkeys(range(3), 0.0), {0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 1.0)
    unclear = statistics.share_of_gap(ours, lower, upper, 0.95)
    assert math.isnan(unclear.share)
    assert (unclear.gap.mean, unclear.gap.low < 0 < unclear.gap.high) == (2.0, True)
    found = statistics.share_of_gap({**ours, 8: 5.0}, lower, {**upper, 9: 7.0}, 0.5)
    t_squared = scipy.stats.t.ppf(0.75, 2) ** 2
    # (4 - g) r^2 - 4 r + 1 <= 0 with g = t^2 / 3: r = (2 -+ root(g)) / (4 - g) = 1 / (2 +- root(g)).
    root = math.sqrt(t_squared / 3)
    assert (found.share, found.low, found.high) == pytest.approx((0.5, 1 / (2 + root), 1 / (2 - root)))
    assert found.gap.pairs == 3


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bounds_of_a_share_are_where_a_t_test_begins_to_reject(confidence):
    normal = np.random.default_rng(5)
    lower, gaps = normal.normal(0.7, 0.05, 6), normal.normal(0.2, 0.03, 6)
    ours = lower + 0.6 * gaps + normal.normal(0.0, 0.02, 6)
    found = statistics.share_of_gap(*(dict(enumerate(values)) for values in (ours, lower, lower + gaps)), confidence)
    assert found.low < found.share < found.high
    assert found.share == pytest.approx((ours - lower).mean() / gaps.mean())
    for bound in (found.low, found.high):
        assert scipy.stats.ttest_1samp(ours - lower - bound * gaps, 0.0).pvalue == pytest.approx(1 - confidence)


def test_an_interval_of_a_share_holds_the_true_share_as_often_as_promised():
    normal = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        gaps = normal.normal(0.2, 0.02, 5)
        ours = 0.4 * gaps + normal.normal(0.0, 0.03, 5)
        found = statistics.share_of_gap(dict(enumerate(ours)), dict.fromkeys(range(5), 0.0), dict(enumerate(gaps)), 0.9)
        held += found.low <= 0.4 <= found.high
    # Three standard deviations of 1,000 trials are 0.028.
    assert held / 1000 == pytest.approx(0.9, abs=0.03)


def test_the_controls_close_none_and_all_of_the_gap_and_one_pair_has_no_interval():
    lower, upper = {0: 0.5, 1: 0.6, 2: 0.55}, {0: 0.8, 1: 0.85, 2: 0.9}
    for ours, share in ((lower, 0.0), (upper, 1.0)):
        found = statistics.share_of_gap(ours, lower, upper, 0.95)
        assert (found.share, found.low, found.high) == pytest.approx((share, share, share))
    one = statistics.share_of_gap({0: 0.65, 1: 0.6}, lower, {0: 0.8}, 0.95)
    assert (one.share, math.isnan(one.low), one.gap.pairs) == (pytest.approx(0.5), True, 1)
    for upside_down in (statistics.share_of_gap(lower, upper, lower, 0.95), statistics.share_of_gap({}, {}, {}, 0.95)):
        assert math.isnan(upside_down.share)


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
