"""A participant's row of a round: the order of its numbers, and the way to named arrays and back.

Shape letters: R rounds, P participants, D domains, K confidence bins.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.metrics.columns import NO_COLUMNS, Columns
from fedh2l_mpi.metrics.schema import BIN_FIELDS, CONFIDENCE_BINS, DOMAIN_FIELDS, NEWER, ROW_FIELDS


def row_width(domains: int, columns: Columns = NO_COLUMNS) -> int:
    """Return how many numbers a participant's row has."""
    own = len(columns.by_participant) + len(columns.by_domain) * domains
    return len(ROW_FIELDS) + len(DOMAIN_FIELDS) * domains + len(BIN_FIELDS) * CONFIDENCE_BINS + own


def pack_row(
    values: Mapping[str, Any],
    accuracy_D: Sequence[float],
    loss_D: Sequence[float],
    calibration_3K: NDArray[np.float64] | None = None,
    columns: Columns = NO_COLUMNS,
) -> NDArray[np.float64]:
    """Return a participant's row, float64 (row_width,). Values that are not given are NaN.

    Parameters
    ----------
    values : mapping
        From the names of ROW_FIELDS, and of the run's own columns, to their values: D of them for one by domain.
    calibration_3K : float64 (3, K) or None
        The three BIN_FIELDS for each of the K confidence bins. None: all NaN.
    """
    if calibration_3K is None:
        calibration_3K = np.full((len(BIN_FIELDS), CONFIDENCE_BINS), math.nan)
    fields = (values.get(field.name, math.nan) for field in ROW_FIELDS)
    own = [values.get(field.name, math.nan) for field in columns.by_participant]
    unknown_D = [math.nan] * len(accuracy_D)
    for field in columns.by_domain:
        own += values.get(field.name, unknown_D)
    return np.array([*fields, *accuracy_D, *loss_D, *calibration_3K.ravel(), *own], dtype=np.float64)


def digested(table_PW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a digest of rows contains of a round's table: all columns but those of NEWER arrays that are all NaN.

    So a run that does not use these arrays has the same digests as before there were such arrays.
    """
    unused = [i for i, field in enumerate(ROW_FIELDS) if field.name in NEWER and np.isnan(table_PW[:, i]).all()]
    return np.ascontiguousarray(np.delete(table_PW, unused, axis=-1))


def unpack_table(
    table: NDArray[np.float64], domains: int, columns: Columns = NO_COLUMNS
) -> dict[str, NDArray[np.float64]]:
    """Return the values of each array by its name, from the rows of a round (P, width) or of several (R, P, width)."""
    arrays = {field.name: table[..., i] for i, field in enumerate(ROW_FIELDS)}
    at = len(ROW_FIELDS)
    for fields, size in ((DOMAIN_FIELDS, domains), (BIN_FIELDS, CONFIDENCE_BINS)):
        for field in fields:
            arrays[field.name] = table[..., at : at + size]
            at += size
    for field in columns.by_participant:
        arrays[field.name] = table[..., at]
        at += 1
    for field in columns.by_domain:
        arrays[field.name] = table[..., at : at + domains]
        at += domains
    return arrays
