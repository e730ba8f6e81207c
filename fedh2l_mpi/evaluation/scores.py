"""Evaluation of participants: accuracy, loss and calibration on held-out samples.

Confidence is the largest posterior of a sample. Shape letters: N samples, S seed rows, C classes, K confidence bins, D
domains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.seed_set import SeedRound
from fedh2l_mpi.errors import DivergedError
from fedh2l_mpi.evaluation.chosen_metrics import Metric
from fedh2l_mpi.evaluation.metric_functions import confusion_matrix
from fedh2l_mpi.metrics import CONFIDENCE_BINS, TEMPERATURES
from fedh2l_mpi.participant import REMEDY, Participant

# Each halves the interval of log T, which they shrink from log 400 to 5e-12.
HALVINGS = 40


@dataclass(frozen=True)
class Score:
    """Accuracy [1] and mean cross-entropy [nats] on a labelled set; NaN on an empty one.

    Attributes
    ----------
    calibration_3K : float64 (3, K)
        Result of `calibration_bins`.
    """

    accuracy: float
    loss: float
    calibration_3K: NDArray[np.float64]


def evaluate(
    participant: Participant,
    tests_D: Sequence[Labelled],
    own_domain: int,
    temperature: float | None = None,
    metrics: Sequence[Metric] = (),
) -> dict[str, Any]:
    """Return the fields of a participant's metrics row that an evaluated round adds, and its confusion matrix.

    Parameters
    ----------
    tests_D : sequence of Labelled
        Each domain's test set.
    own_domain : int
        The domain of the participant's private data; -1 if they belong to all domains.
    temperature : float or None
        T of the posteriors softmax(z / T) that loss and calibration are measured on. None: 1, and not fitted.
    metrics : sequence of Metric
        More metrics, each a field of its name with a value for each domain.
    """
    local, scores = participant.local_test, []
    confusion_CC: Tensor | None = None
    chosen: dict[str, list[float]] = {metric.field.name: [] for metric in metrics}
    for test in tests_D:
        logits_NC = logits_of(participant, test)
        scores.append(_score(participant, logits_NC, test.labels, temperature or 1.0))
        if len(test):
            found = confusion_matrix(logits_NC.argmax(dim=-1), test.labels, logits_NC.shape[-1])
            confusion_CC = found if confusion_CC is None else confusion_CC + found
        for metric in metrics:
            chosen[metric.field.name].append(metric.value(logits_NC, test.labels) if len(test) else math.nan)
    accuracy_D = [one.accuracy for one in scores]
    mean = sum(accuracy_D) / len(accuracy_D)
    calibration_3K = np.sum([one.calibration_3K for one in scores], axis=0)
    return {
        "accuracy_D": accuracy_D,
        "loss_D": [one.loss for one in scores],
        "accuracy_own": accuracy_D[own_domain] if own_domain >= 0 else mean,
        "accuracy_all": mean,
        "accuracy_worst": min(accuracy_D),
        "accuracy_validation": score(participant, participant.validation).accuracy,
        **({} if local is None else {"accuracy_local": score(participant, local).accuracy}),
        "calibration_error": expected_calibration_error(calibration_3K),
        "calibration_3K": reliability(calibration_3K),
        "temperature": math.nan if temperature is None else temperature,
        "confusion_CC": None if confusion_CC is None else confusion_CC.cpu().numpy().astype(np.int32),
        **chosen,
    }


def score(participant: Participant, samples: Labelled, temperature: float = 1.0) -> Score:
    """Return accuracy and loss on labelled samples, in eval mode.

    Loss and calibration are those of softmax(z / T); accuracy is that of the logits z, whatever T is.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    """
    return _score(participant, logits_of(participant, samples), samples.labels, temperature)


def _score(participant: Participant, logits_NC: Tensor, labels_N: Tensor, temperature: float) -> Score:
    if len(labels_N) == 0:
        return Score(math.nan, math.nan, np.zeros((3, CONFIDENCE_BINS)))
    hits = (logits_NC.argmax(dim=-1) == labels_N).sum()
    scaled_NC = logits_NC / temperature
    loss = float(losses.cross_entropy(scaled_NC, labels_N))
    if not math.isfinite(loss):
        raise DivergedError(f"participant {participant.index} diverged: its loss on held-out data is {loss}. {REMEDY}")
    bins_3K = calibration_bins(scaled_NC, labels_N, CONFIDENCE_BINS)
    return Score(int(hits) / len(labels_N), loss, bins_3K.cpu().numpy())


@torch.no_grad()
def logits_of(participant: Participant, samples: Labelled) -> Tensor:
    """Return the logits (N, C) of labelled samples; inputs are normalised piece by piece to save memory."""
    participant.model.eval()
    if len(samples) == 0:
        return torch.empty(0, 0, device=participant.device)
    size = participant.forward_size
    starts = range(0, len(samples), size)
    return torch.cat([participant.model(samples.inputs(slice(at, at + size))) for at in starts])


def confusion_of(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of samples of each class (row) by the predicted class (column), int32 (C, C)."""
    logits = torch.from_numpy(logits_NC)
    counts_CC = confusion_matrix(logits.argmax(dim=-1), torch.from_numpy(labels_N), logits.shape[-1])
    return counts_CC.numpy().astype(np.int32)


def temperature_on(participant: Participant, seed: SeedRound, seed_prior_C: Tensor) -> float:
    """Return the temperature that fits a participant's logits to the targets of seed rows that it has not seen.

    Raises
    ------
    DivergedError
        If a logit is not finite.
    """
    logits_SC = participant.logits(seed.inputs)
    if not torch.isfinite(logits_SC).all():
        text = "its logits on the seed samples are not finite"
        raise DivergedError(f"participant {participant.index} diverged: {text}. {REMEDY}")
    return fitted_temperature(logits_SC, seed.targets, seed_prior_C)


def fitted_temperature(logits_SC: Tensor, targets: Tensor, prior_C: Tensor) -> float:
    """Return the T within TEMPERATURES that minimises the mean cross-entropy of softmax(z / T + tau log pi).

    The cross-entropy is convex in 1/T, so its slope has one change of sign, which is found by bisection of log T in
    float64. T is the lowest one allowed if all samples are right.

    Parameters
    ----------
    targets : int64 (S,) or float (S, C)
        Classes, or a distribution over them.
    prior_C : float (C,)
        tau log pi of the targets, if z are logits for even labels (`losses.under_prior`); else 0.

    Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017.
    """
    scores_SC, prior_C = logits_SC.double(), prior_C.double()
    if not targets.is_floating_point():
        targets = torch.nn.functional.one_hot(targets, scores_SC.shape[-1])
    # Differences from the target's score have the same softmax. If all samples are right, none is positive, so that no
    # rounding can change the sign of the slope.
    scores_SC = scores_SC - (targets * scores_SC).sum(dim=-1, keepdim=True)
    low, high = (math.log(limit) for limit in TEMPERATURES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        posteriors_SC = (scores_SC / math.exp(middle) + prior_C).softmax(dim=-1)
        slope = float((posteriors_SC * scores_SC).sum())
        # This is the slope along 1/T: where it is positive, a higher T is better.
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def calibration_bins(logits_NC: Tensor, labels_N: Tensor, bins: int) -> Tensor:
    """Return the number of samples, the sum of confidences and the number of hits in each bin, float64 (3, K).

    Bin k of K holds the confidences in (k/K, (k+1)/K].
    """
    confidence_N, predicted_N = logits_NC.softmax(dim=-1).max(dim=-1)
    bin_N = ((confidence_N * bins).ceil().long() - 1).clamp(0, bins - 1)
    in_bin_NK = (bin_N[:, None] == torch.arange(bins, device=bin_N.device)).double()
    summands_3N = torch.stack([torch.ones_like(confidence_N), confidence_N, predicted_N == labels_N]).double()
    return summands_3N @ in_bin_NK


def expected_calibration_error(bins_3K: NDArray[np.float64]) -> float:
    """Return the mean over samples of |accuracy - confidence| of their bin, from 0 to 1.

    `bins_3K` is a result of `calibration_bins`.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", 2015.
    """
    count_K, confidence_K, hits_K = bins_3K
    return float(np.abs(hits_K - confidence_K).sum() / count_K.sum())


def reliability(bins_3K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of samples, mean confidence and accuracy of each bin, (3, K); means of an empty bin are NaN."""
    count_K = bins_3K[0]
    samples_K = np.where(count_K > 0, count_K, np.nan)
    return np.stack([count_K / count_K.sum(), bins_3K[1] / samples_K, bins_3K[2] / samples_K])
