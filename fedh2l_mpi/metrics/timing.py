"""Compute the duration of rounds from the seconds of their participants."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def slowest_rank_seconds(seconds_by_phase: Sequence[NDArray[Any]], rank_P: NDArray[Any]) -> NDArray[np.float64]:
    """Return the seconds of the slowest rank, float64 (...).

    The participants of one rank run one after another; the ranks run in parallel.

    Parameters
    ----------
    seconds_by_phase : sequence of float64 (..., P)
        NaN counts as 0.
    """
    busy = np.nansum(seconds_by_phase, axis=0)
    by_rank = [busy[..., rank_P == rank].sum(axis=-1) for rank in np.unique(rank_P)]
    return np.max(by_rank, axis=0, initial=0.0)
