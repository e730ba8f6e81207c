"""Mean and standard deviation of the training samples, with which samples are normalised.

Shape letters: N samples, X the axes of one sample, K channels (images, series) or features (vectors).
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data.sources import NaturalDomains, Table
from fedh2l_mpi.data.test_sets import kept_for_testing, one_domain
from fedh2l_mpi.sample_form import SampleForm

# Values in memory at a time. The pieces decide the rounding, so they must not depend on the machine.
PIECE_VALUES = 1 << 20

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def training_rows(labels: NDArray[np.int64], domains: NaturalDomains | None, share: float | None) -> NDArray[np.int64]:
    """Return the rows that are for training: all, or those that `share` of every class and domain leaves.

    Parameters
    ----------
    share : float or None
        `data.test_share` of data without a test part; None: there is a test part.
    """
    rows = np.arange(len(labels))
    if share is None:
        return rows
    return np.setdiff1d(rows, np.concatenate(kept_for_testing(labels, domains or one_domain(len(labels)), share)))


def of_rows(table: Table, rows: NDArray[np.int64], form: SampleForm, full_scale: float = 1.0) -> Statistics:
    """Return mean and standard deviation of each channel or feature of some rows, of values divided by `full_scale`.

    They are computed in float64, piece by piece; a constant channel has the deviation 1. Token ids have no mean: 0, 1.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    if form.kind == "tokens":
        return (0.0,), (1.0,)
    channels = form.shape[0]
    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    step = max(1, PIECE_VALUES // form.numbers)
    for first in range(0, len(rows), step):
        values = table.samples(rows[first : first + step]).astype(np.float64) / full_scale
        values = np.moveaxis(values, 1, 0).reshape(channels, -1)
        more, its_mean = values.shape[1], values.mean(axis=1)
        difference = its_mean - mean
        squares += ((values - its_mean[:, None]) ** 2).sum(axis=1) + difference**2 * (count * more / (count + more))
        mean += difference * (more / (count + more))
        count += more
    deviation = np.sqrt(squares / max(count, 1))
    # Rounding leaves a constant channel a deviation of some 1e-16 of its value.
    deviation[deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))] = 1.0
    return tuple(mean.tolist()), tuple(value if math.isfinite(value) else 1.0 for value in deviation.tolist())
