"""Calibration against samples counted by hand, and against a plain loop; temperatures against closed forms."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedh2l_mpi.config import EvaluationConfig, OptimizerConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.seed_set import SeedRound
from fedh2l_mpi.errors import DivergedError
from fedh2l_mpi.evaluation.scores import (
    calibration_bins,
    evaluate,
    expected_calibration_error,
    fitted_temperature,
    reliability,
    temperature_on,
)
from fedh2l_mpi.participant import Participant


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


NO_PRIOR = torch.zeros(3)


@pytest.mark.parametrize("scale", [0.06, 0.5, 1.0, 3.0, 19.0])
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_logits_that_are_a_multiple_of_the_right_ones_have_that_multiple_as_their_temperature(scale, strength):
    # Labels occur exactly as often as the posteriors say: in a half, in three and in two tenths, and so on.
    posterior_SC = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], dtype=torch.float64)
    labels = [0] * 5 + [1] * 3 + [2] * 2 + [0] + [1] * 8 + [2]
    prior_C = strength * torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    right_SC = posterior_SC.log() - prior_C
    logits_SC = scale * right_SC.repeat_interleave(10, dim=0) + 7.0
    assert fitted_temperature(logits_SC, torch.tensor(labels), prior_C) == pytest.approx(scale, rel=1e-9)
    # The same as distributions, which mixed samples have.
    assert fitted_temperature(scale * right_SC, posterior_SC, prior_C) == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_temperature_stays_within_its_bounds(size):
    logits_SC = size * torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    right, wrong = torch.tensor([0, 1]), torch.tensor([2, 0])
    assert fitted_temperature(logits_SC, right, NO_PRIOR) == pytest.approx(1 / 20)
    assert fitted_temperature(logits_SC, wrong, NO_PRIOR) == pytest.approx(20)


def test_no_other_temperature_has_a_lower_cross_entropy():
    draw = torch.Generator().manual_seed(0)
    logits_SC = 5 * torch.randn(200, 3, generator=draw)
    targets_SC = torch.softmax(logits_SC / 4 + torch.randn(200, 3, generator=draw), dim=-1)
    prior_C = torch.tensor([0.0, -1.0, -2.0])

    def loss(temperature):
        return float(cross_entropy(logits_SC.double() / temperature + prior_C, targets_SC.double()))

    best = fitted_temperature(logits_SC, targets_SC, prior_C)
    assert 1.5 < best < 15
    assert loss(best) <= min(map(loss, np.geomspace(1 / 20, 20, 500)))
    assert loss(best) < min(loss(0.999 * best), loss(1.001 * best))


class Scores(torch.nn.Module):
    """The first pixels of an image are its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.weight * images.flatten(1)[:, :3]


def test_a_temperature_changes_loss_and_calibration_but_no_accuracy():
    images = torch.randn(300, 1, 2, 2, generator=torch.Generator().manual_seed(1)) * 4
    some = Labelled(images, images.flatten(1)[:, :3].argmax(dim=1) % 2)
    trained = OptimizerConfig(average="none")
    one = Participant(0, "scores", Scores(), some, some, trained, EvaluationConfig(batch_size=7), seed=0)
    seed = SeedRound(1, images[:50], some.labels[:50], some.labels[:50])
    temperature = temperature_on(one, seed, NO_PRIOR)
    assert temperature == fitted_temperature(images[:50].flatten(1)[:, :3], seed.targets, NO_PRIOR) > 2
    plain, scaled = evaluate(one, [some], 0), evaluate(one, [some], 0, temperature)
    assert np.isnan(plain["temperature"])
    assert scaled["temperature"] == temperature
    for name in plain:
        if name.startswith("accuracy"):
            assert plain[name] == scaled[name], name
    for row, divisor in ((plain, 1.0), (scaled, temperature)):
        logits_NC = images.flatten(1)[:, :3] / divisor
        bins_3K = calibration_bins(logits_NC, some.labels, 10).numpy()
        assert row["loss_D"] == [pytest.approx(float(cross_entropy(logits_NC, some.labels)))]
        assert row["calibration_error"] == pytest.approx(expected_calibration_error(bins_3K))
    assert scaled["loss_D"] < plain["loss_D"]
    with pytest.raises(DivergedError, match="participant 0 diverged: its logits on the seed samples are not finite"):
        temperature_on(one, SeedRound(1, images / 0, some.labels, some.labels), NO_PRIOR)
