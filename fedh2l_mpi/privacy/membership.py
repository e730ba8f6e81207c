"""Scores of membership attacks: the higher, the more likely was a sample trained on.

Shape letters: N samples, C classes, K shadow models.
"""

import numpy as np
from numpy.typing import NDArray

# A float32 softmax rounds posteriors near 1 to 1, whose logarithms would be infinite.
SMALLEST = 1e-7
# The variance of few shadow models is the same number for all samples, because that of each could be near 0.
LEAST_VARIANCE = 1e-6


def loss_threshold(log_posteriors_NC: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return minus the cross-entropy of each sample (N,), in nats: models fit samples that they were trained on.

    Source: Yeom, Giacomelli, Fredrikson and Jha, "Privacy risk in machine learning: analyzing the connection to
    overfitting", 2018.
    """
    return np.asarray(log_posteriors_NC[np.arange(len(labels_N)), labels_N])


def scaled_confidence(log_posteriors_NC: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return phi = log(p / (1 - p)) of each sample (N,), with p the posterior of its class.

    Source: Carlini et al., "Membership inference attacks from first principles", 2022, section V.
    """
    p_N = np.clip(np.exp(loss_threshold(log_posteriors_NC, labels_N)), SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(p_N) - np.log1p(-p_N))


def likelihood_ratio(
    phi_N: NDArray[np.float64], shadow_KN: NDArray[np.float64], is_in_KN: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out) of each sample (N,), the attack LiRA.

    The means are those of the shadow models that were trained with the sample, and without it; the variances are over
    all samples, as the source recommends for few shadow models.

    Parameters
    ----------
    phi_N : float64 (N,)
        `scaled_confidence` under the attacked model.
    shadow_KN : float64 (K, N)
        That of the shadow models.
    is_in_KN : bool (K, N)
        True where the shadow model was trained on the sample. Every sample needs both kinds.

    Source: Carlini et al., "Membership inference attacks from first principles", 2022, algorithm 1.
    """

    def log_density(is_used_KN: NDArray[np.bool_]) -> NDArray[np.float64]:
        used_KN = np.where(is_used_KN, shadow_KN, np.nan)
        mean_N = np.nanmean(used_KN, axis=0)
        variance = max(float(np.nanmean((used_KN - mean_N) ** 2)), LEAST_VARIANCE)
        return np.asarray(-((phi_N - mean_N) ** 2) / (2 * variance) - np.log(variance) / 2)

    return log_density(is_in_KN) - log_density(~is_in_KN)
