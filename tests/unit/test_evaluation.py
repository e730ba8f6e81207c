"""Calibration against samples counted by hand, and against a plain loop."""

import numpy as np
import pytest
import torch

from fedh2l_mpi.evaluation import calibration_bins, expected_calibration_error, reliability


def logits(confidences, classes=10):
    """Scores of which class 0 has the posterior asked for, and the others share the rest."""
    confidence_N = torch.tensor(confidences, dtype=torch.float64)
    rest_N = (1 - confidence_N) / (classes - 1)
    return torch.cat([confidence_N[:, None], rest_N[:, None].expand(-1, classes - 1)], dim=1).log()


def test_certain_and_half_right_is_an_error_of_a_half():
    bins_3K = calibration_bins(logits([1 - 1e-9] * 4), torch.tensor([0, 0, 1, 2]), 10).numpy()
    assert bins_3K[0].tolist() == [0] * 9 + [4]
    assert expected_calibration_error(bins_3K) == pytest.approx(0.5)


def test_bins_are_open_below_and_closed_above():
    bins_3K = calibration_bins(logits([0.35, 0.25, 0.75, 0.95]), torch.zeros(4, dtype=torch.int64), 4).numpy()
    # (0, 0.25], (0.25, 0.5], (0.5, 0.75], (0.75, 1]; rounding may lift what is exactly on an edge.
    assert bins_3K[0].sum() == 4
    assert bins_3K[0, 1] >= 1
    assert bins_3K[0, 3] >= 1


def test_the_error_is_that_of_a_loop_over_samples():
    draw = torch.Generator().manual_seed(0)
    logits_NC = 2 * torch.randn(500, 7, generator=draw)
    labels_N = torch.randint(7, (500,), generator=draw)
    by_bin = {}
    for scores, label in zip(logits_NC, labels_N, strict=True):
        posterior = torch.softmax(scores, 0)
        confidence = float(posterior.max())
        hit = int(posterior.argmax()) == int(label)
        by_bin.setdefault(int(np.ceil(confidence * 10)) - 1, []).append((confidence, hit))
    error = sum(abs(np.sum([c - h for c, h in members])) for members in by_bin.values()) / 500
    bins_3K = calibration_bins(logits_NC, labels_N, 10).numpy()
    assert expected_calibration_error(bins_3K) == pytest.approx(error, abs=1e-6)
    share_K, confidence_K, accuracy_K = reliability(bins_3K)
    assert share_K.sum() == pytest.approx(1.0)
    known = share_K > 0
    assert np.isnan(confidence_K[~known]).all()
    assert np.nansum(share_K * np.abs(accuracy_K - confidence_K)) == pytest.approx(error, abs=1e-6)
