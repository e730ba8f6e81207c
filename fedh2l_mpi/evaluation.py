"""Whether a model is as often right as it is certain.

Confidence is the largest posterior of a sample. Shape letters: N samples, C classes, K confidence bins.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def calibration_bins(logits_NC: Tensor, labels_N: Tensor, bins: int) -> Tensor:
    """Number of samples, sum of confidences and number of hits in each bin, float64 (3, K).

    Bin k of K holds the confidences in (k/K, (k+1)/K].
    """
    confidence_N, predicted_N = logits_NC.softmax(dim=-1).max(dim=-1)
    bin_N = ((confidence_N * bins).ceil().long() - 1).clamp(0, bins - 1)
    in_bin_NK = (bin_N[:, None] == torch.arange(bins, device=bin_N.device)).double()
    summands_3N = torch.stack([torch.ones_like(confidence_N), confidence_N, predicted_N == labels_N]).double()
    return summands_3N @ in_bin_NK


def expected_calibration_error(bins_3K: NDArray[np.float64]) -> float:
    """Mean over samples of |accuracy - confidence| of their bin, from 0 to 1; bins as from `calibration_bins`.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", 2015.
    """
    count_K, confidence_K, hits_K = bins_3K
    return float(np.abs(hits_K - confidence_K).sum() / count_K.sum())


def reliability(bins_3K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the samples, mean confidence and accuracy of each bin, (3, K); an empty bin has NaN for both means."""
    count_K = bins_3K[0]
    samples_K = np.where(count_K > 0, count_K, np.nan)
    return np.stack([count_K / count_K.sum(), bins_3K[1] / samples_K, bins_3K[2] / samples_K])
