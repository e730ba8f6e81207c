"""Metrics of logits against scikit-learn, and against values worked out by hand."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from fedh2l_mpi.config.optimizer import METRICS
from fedh2l_mpi.evaluation import metric_functions
from fedh2l_mpi.evaluation.metric_functions import FUNCTIONS, auroc, balanced_accuracy, confusion_matrix, macro_f1, nll

CLASSES = 5


def sample(classes=CLASSES, absent=(), seed=0):
    """Skewed labels, logits that often agree with them, and ties of posteriors."""
    draw = torch.Generator().manual_seed(seed)
    chance = 0.5 ** torch.arange(classes)
    chance[list(absent)] = 0.0
    labels_N = torch.multinomial(chance, 300, replacement=True, generator=draw)
    logits_NC = torch.randint(-2, 3, (300, classes), generator=draw).float()
    logits_NC[torch.arange(300), labels_N] += torch.randint(0, 3, (300,), generator=draw)
    return logits_NC, labels_N


def sklearn_auroc(labels, posteriors):
    """One class against the rest, over classes that have samples; scikit-learn refuses the others."""
    present = [c for c in range(posteriors.shape[1]) if 0 < (labels == c).sum() < len(labels)]
    return np.mean([sklearn_metrics.roc_auc_score(labels == c, posteriors[:, c]) for c in present])


@pytest.mark.parametrize("absent", [(), (1,), (1, 2, 3)])
@pytest.mark.parametrize("classes", [CLASSES, 10])
def test_they_are_those_of_scikit_learn(classes, absent):
    logits_NC, labels_N = sample(classes, absent)
    labels, predicted = labels_N.numpy(), logits_NC.argmax(dim=-1).numpy()
    posteriors = logits_NC.double().softmax(dim=-1).numpy()
    with warnings.catch_warnings():
        # It warns of predictions of a class without a sample.
        warnings.simplefilter("ignore")
        expected = {
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
            "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
            "nll": sklearn_metrics.log_loss(labels, posteriors, labels=range(classes)),
            "auroc": sklearn_auroc(labels, posteriors),
        }
    assert tuple(FUNCTIONS) == METRICS == tuple(expected)
    for name, function in FUNCTIONS.items():
        assert function(logits_NC, labels_N) == pytest.approx(expected[name], abs=1e-12), name
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(classes))
    assert confusion_matrix(torch.tensor(predicted), labels_N, classes).tolist() == matrix.tolist()


def test_two_classes_have_the_one_area_of_scikit_learn():
    logits_NC, labels_N = sample(2)
    expected = sklearn_metrics.roc_auc_score(labels_N.numpy(), logits_NC.softmax(dim=-1)[:, 1].numpy())
    assert auroc(logits_NC, labels_N) == pytest.approx(expected, abs=1e-12)
    several, labels_N = sample()
    expected = sklearn_metrics.roc_auc_score(labels_N, several.double().softmax(dim=-1), multi_class="ovr")
    assert auroc(several, labels_N) == pytest.approx(expected, abs=1e-12)


def test_a_single_class_has_no_area_and_every_other_metric():
    logits_NC, labels_N = (
        torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 0.0]]),
        torch.zeros(4, dtype=torch.int64),
    )
    assert math.isnan(auroc(logits_NC, labels_N))
    assert balanced_accuracy(logits_NC, labels_N) == 0.75
    # Class 0: 2 * 3 / (2 * 3 + 0 + 1); class 1 is predicted once, wrongly.
    assert macro_f1(logits_NC, labels_N) == pytest.approx((6 / 7 + 0) / 2)
    assert nll(logits_NC, labels_N) == pytest.approx(np.log1p(np.exp([-2.0, 2.0, -3.0, -1.0])).mean())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_set_has_no_value(name):
    assert math.isnan(FUNCTIONS[name](torch.empty(0, CLASSES), torch.empty(0, dtype=torch.int64)))


def test_every_metric_has_a_unit_and_a_meaning_and_a_source():
    for name, function in FUNCTIONS.items():
        units, meaning = metric_functions.MEANINGS[name]
        assert units in ("1", "nats")
        assert len(meaning) > 5
        assert "Source:" in function.__doc__, name
