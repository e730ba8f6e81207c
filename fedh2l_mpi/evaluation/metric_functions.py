"""Metrics of a classifier on one labelled set, one function per formula. The key `evaluation.metrics` names them.

Each takes logits, float (N, C), and labels, int64 (N,), and returns a number, which is NaN on an empty set. A class
without a sample is left out of a mean over classes. Shape letters: N samples, C classes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedh2l_mpi import losses

MetricFunction = Callable[[Tensor, Tensor], float]


def confusion_matrix(predicted_N: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """Return the number of samples of each class (row) that are predicted as each class (column), int64 (C, C)."""
    return torch.bincount(labels_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Return the mean over classes of their recall, the share of a class's samples that is predicted as this class.

    A class without a sample is left out.

    Source: Brodersen, Ong, Stephan and Buhmann, "The balanced accuracy and its posterior distribution", 2010.
    """
    matrix_CC = confusion_matrix(logits_NC.argmax(dim=-1), labels_N, logits_NC.shape[-1]).double()
    samples_C = matrix_CC.sum(dim=1)
    recall_C = matrix_CC.diagonal() / samples_C
    return float(recall_C[samples_C > 0].mean())


def macro_f1(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    A class that is neither a label nor predicted is left out.

    Source: Opitz and Burst, "Macro F1 and macro F1", 2019, the mean of the classes' F1.
    """
    matrix_CC = confusion_matrix(logits_NC.argmax(dim=-1), labels_N, logits_NC.shape[-1]).double()
    both_C = matrix_CC.sum(dim=0) + matrix_CC.sum(dim=1)
    f1_C = 2 * matrix_CC.diagonal() / both_C
    return float(f1_C[both_C > 0].mean())


def nll(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Return the mean of -log softmax(z)[y] in nats, without a temperature, unlike the array `loss`.

    Source: Good, "Rational decisions", 1952, the logarithmic score.
    """
    return float(losses.cross_entropy(logits_NC.double(), labels_N)) if len(labels_N) else math.nan


def auroc(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Return the area under the ROC curve: the mean over classes of each one against the rest.

    It is the probability that a sample of the class has a higher posterior of it than another sample; ties count
    half. A class without a sample, or with all of them, is left out; NaN if all samples are of a single class.

    Source: Provost and Domingos, "Well-trained PETs: improving probability estimation trees", 2000; for one class by
    the rank sum of Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982.
    """
    posteriors_NC = logits_NC.double().softmax(dim=-1)
    areas = []
    for label in range(logits_NC.shape[-1]):
        is_class_N = labels_N == label
        positive = int(is_class_N.sum())
        negative = len(labels_N) - positive
        if positive and negative:
            _, place_N, count = posteriors_NC[:, label].unique(return_inverse=True, return_counts=True)
            # Equal posteriors share the mean of their ranks.
            rank = count.cumsum(dim=0).double() - (count - 1) / 2
            sum_of_ranks = float(rank[place_N][is_class_N].sum())
            areas.append((sum_of_ranks - positive * (positive + 1) / 2) / (positive * negative))
    return sum(areas) / len(areas) if areas else math.nan


FUNCTIONS: dict[str, MetricFunction] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "nll": nll,
    "auroc": auroc,
}
MEANINGS = {
    "balanced_accuracy": ("1", "recall, mean over the classes of a domain's test set"),
    "macro_f1": ("1", "F1, mean over classes, on a domain's test set"),
    "nll": ("nats", "negative log-likelihood without temperature on a domain's test set"),
    "auroc": ("1", "area under the ROC curve of a class against the rest, mean over classes, on a domain's test set"),
}
