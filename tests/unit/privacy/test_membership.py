"""Scores of membership attacks, against numbers that were worked out by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from fedh2l_mpi.privacy import label_distribution, membership

LOG_NC = np.log([[0.8, 0.2], [0.5, 0.5], [1.0, 1e-300]])
LABELS = np.array([0, 1, 1])


def test_scores_of_the_loss_and_of_the_scaled_confidence():
    assert membership.loss_threshold(LOG_NC, LABELS)[:2] == pytest.approx([np.log(0.8), np.log(0.5)])
    phi_N = membership.scaled_confidence(LOG_NC, LABELS)
    assert phi_N[:2] == pytest.approx([np.log(4), 0.0])
    assert np.isfinite(phi_N).all()


def test_the_likelihood_ratio_is_that_of_two_gaussians():
    shadow_KN = np.array([[3.0, 5.0], [5.0, 7.0], [0.0, 2.0], [2.0, 0.0]])
    is_in_KN = np.array([[True, True], [True, True], [False, False], [False, False]])
    ratio_N = membership.likelihood_ratio(np.array([4.0, 1.0]), shadow_KN, is_in_KN)
    expected = [norm.logpdf(phi, mean_in) - norm.logpdf(phi, 1.0) for phi, mean_in in ((4.0, 4.0), (1.0, 6.0))]
    assert ratio_N == pytest.approx(expected)


def test_an_estimate_of_labels_is_the_mean_over_classes():
    posteriors_SC = np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]])
    estimate_C = label_distribution.estimated_distribution(posteriors_SC, np.array([0, 0, 1]))
    assert estimate_C == pytest.approx([0.6, 0.4])
    assert label_distribution.distance(estimate_C, np.array([1.0, 0.0])) == pytest.approx(0.4)
