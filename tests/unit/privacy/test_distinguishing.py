"""Power of an attack, against closed forms."""

import numpy as np
import pytest
from scipy.stats import norm

from fedh2l_mpi.privacy import distinguishing


def test_two_gaussians_have_the_area_and_the_rate_of_their_closed_forms():
    draw = np.random.default_rng(0)
    members_M, others_N = draw.normal(1.0, 1.0, 40_000), draw.normal(0.0, 1.0, 40_000)
    # P(X > Y) of N(1, 1) and N(0, 1), and the share of N(1, 1) above the 99th percentile of N(0, 1).
    assert distinguishing.area_under_curve(members_M, others_N) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.005)
    rate = norm.sf(norm.ppf(0.99) - 1.0)
    assert distinguishing.true_positive_rate(members_M, others_N) == pytest.approx(rate, abs=0.01)


def test_ties_count_one_half_and_few_others_allow_no_false_positive():
    members_M, others_N = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0])
    assert distinguishing.area_under_curve(members_M, others_N) == pytest.approx((0.5 + 1.5 + 2) / 6)
    assert distinguishing.true_positive_rate(members_M, others_N) == pytest.approx(1 / 3)


def test_an_interval_of_equal_groups_holds_chance_and_has_the_width_of_hanley_and_mcneil():
    draw = np.random.default_rng(1)
    groups = draw.normal(size=300), draw.normal(size=300)
    estimate = distinguishing.bootstrapped(distinguishing.area_under_curve, *groups, draw)
    low, high = estimate.interval
    assert low < 0.5 < high
    # At an area of one half, the variance is (M + N + 1) / (12 M N).
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(601 / (12 * 300 * 300)), rel=0.15)
    halved = distinguishing.mean([estimate] * 2)
    assert halved.value == estimate.value
