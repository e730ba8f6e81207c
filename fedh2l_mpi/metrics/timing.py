"""How long rounds took, from the seconds of their participants."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def slowest_rank_seconds(seconds_by_phase: Sequence[NDArray[Any]], rank_P: NDArray[Any]) -> NDArray[np.float64]:
    """Seconds of the rank that takes longest, float64 (...).

    The participants of a rank take turns; ranks work side by side.

    Parameters
    ----------
    seconds_by_phase : sequence of float64 (..., P)
        What is not known counts as nothing.
    """
    busy = np.nansum(seconds_by_phase, axis=0)
    by_rank = [busy[..., rank_P == rank].sum(axis=-1) for rank in np.unique(rank_P)]
    return np.max(by_rank, axis=0, initial=0.0)
