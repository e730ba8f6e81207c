"""Schema 1 of the metrics file: names, dimensions, units and meanings of its arrays.

Shape letters: D domains, K confidence bins.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1
FORMAT = "fedh2l_mpi metrics"


@dataclass(frozen=True)
class Field:
    """One array of the file: name, element type (S: text), unit (as in UDUNITS; 1: a pure number) and meaning."""

    name: str
    dtype: str
    units: str
    long_name: str


# (round, participant): a participant's row has these values in this order, then accuracy and loss on each domain.
ROW_FIELDS = (
    Field("accuracy_own", "f8", "1", "accuracy on the own domain's test set (on all domains, for mixed data)"),
    Field("accuracy_all", "f8", "1", "accuracy, mean over every domain's test set"),
    Field("accuracy_worst", "f8", "1", "accuracy on the domain with the lowest"),
    Field("accuracy_validation", "f8", "1", "accuracy on validation data held back from the private data"),
    Field("loss_private", "f8", "nats", "cross-entropy on private minibatches, mean over the round's steps"),
    Field("loss_seed", "f8", "nats", "cross-entropy on seed minibatches, mean over the mutual steps"),
    Field("loss_distillation", "f8", "nats", "distance from the neighbours on seed minibatches (of logits for fedmd)"),
    Field("gradient_cosine", "f8", "1", "cosine between private and seed gradient, mean over the mutual steps"),
    Field("conflict_rate", "f8", "1", "share of mutual steps whose two gradients have a negative inner product"),
    Field("seconds_publish", "f8", "s", "time for the posteriors on the seed samples, and for starting the exchange"),
    Field("seconds_local", "f8", "s", "time for the local phase"),
    Field("seconds_wait", "f8", "s", "time its rank waited for messages, shared among the participants hosted there"),
    Field("seconds_mutual", "f8", "s", "time for the mutual phase"),
    Field("seconds_evaluate", "f8", "s", "time for evaluation"),
    Field("bytes_sent", "i8", "byte", "sent over the edges of the graph, whether or not they cross a rank"),
    Field("bytes_received", "i8", "byte", "received over the edges of the graph, whether or not they cross a rank"),
    Field("degree", "i8", "1", "number of neighbours"),
    Field("calibration_error", "f8", "1", "expected calibration error on the test sets of all domains"),
    Field("temperature", "f8", "1", "divisor of the logits in loss and calibration, fitted on seed samples"),
)
# (round, participant, domain)
DOMAIN_FIELDS = (
    Field("accuracy", "f8", "1", "accuracy on a domain's test set"),
    Field("loss", "f8", "nats", "cross-entropy on a domain's test set"),
)
# (round, participant, bin): sample shares and means of confidence bin k of K, which is (k/K, (k+1)/K].
BIN_FIELDS = (
    Field("calibration_share", "f8", "1", "share of the test samples of all domains whose confidence is in the bin"),
    Field("calibration_confidence", "f8", "1", "mean confidence (the largest posterior) of the samples in the bin"),
    Field("calibration_accuracy", "f8", "1", "accuracy on the samples in the bin"),
)
CONFIDENCE_BINS = 10
# Lowest and highest fitted temperature.
TEMPERATURES = (1 / 20, 20.0)
# (participant)
PARTICIPANT_FIELDS = (
    Field("architecture", "S", "1", "name of the model's architecture"),
    Field("parameters", "i8", "1", "number of parameters of the model"),
    Field("parameter_bytes", "i8", "byte", "one copy of the model: trainable parameters and floating-point buffers"),
    Field("private_samples", "i8", "1", "private training samples, without validation and seed samples"),
    Field("own_domain", "i8", "1", "domain of the private data; -1: a mix of all"),
    Field("rank", "i8", "1", "MPI rank that hosts the participant"),
    Field("host", "S", "1", "name of the machine"),
    Field("device", "S", "1", "torch device"),
)
DOMAIN_NAME = Field("domain_name", "S", "1", "what the domain is")
LABEL_HISTOGRAM = Field("label_histogram", "i8", "1", "private training samples of each class")
GRAPH_EDGES = Field("graph_edges", "i4", "1", "the two participants that an edge joins")
GRAPH_SINCE = Field("graph_since_round", "i8", "1", "first round of the graph that an edge belongs to")
SCALES = (
    Field("round", "i8", "1", "round, from 0"),
    Field("participant", "i8", "1", "participant, from 0"),
    Field("domain", "i8", "1", "domain, from 0"),
    Field("class", "i8", "1", "class label"),
    Field("bin", "i8", "1", "confidence bin, from 0"),
    Field("edge", "i8", "1", "edge of a graph, counted over all graphs of the run"),
    Field("endpoint", "i8", "1", "end of an edge"),
)
# Every array except the scales, with its dimensions.
DIMENSIONS = {
    **{field.name: ("round", "participant") for field in ROW_FIELDS},
    **{field.name: ("round", "participant", "domain") for field in DOMAIN_FIELDS},
    **{field.name: ("round", "participant", "bin") for field in BIN_FIELDS},
    **{field.name: ("participant",) for field in PARTICIPANT_FIELDS},
    "label_histogram": ("participant", "class"),
    "domain_name": ("domain",),
    "graph_edges": ("edge", "endpoint"),
    "graph_since_round": ("edge",),
}
FIELDS = {
    field.name: field
    for field in (
        *ROW_FIELDS,
        *DOMAIN_FIELDS,
        *BIN_FIELDS,
        *PARTICIPANT_FIELDS,
        LABEL_HISTOGRAM,
        DOMAIN_NAME,
        GRAPH_EDGES,
        GRAPH_SINCE,
    )
}
# Arrays that the first files of this schema did not have yet.
ADDED = {"calibration_error", *(field.name for field in BIN_FIELDS), "bin", "temperature"}
# Arrays of rows that are newer than the first checkpoints, whose digests of rows do not contain them.
NEWER = ("temperature",)
# Arrays over rounds and edges grow by chunks of about 256 KiB, at most 256 rows. Their scales grow by more rows.
CHUNK_BYTES, CHUNK_ROWS = 2**18, 256
SCALE_CHUNKS = {"round": 1024, "edge": 4096}
TIMINGS = tuple(field.name for field in ROW_FIELDS if field.units == "s")


def chunk_rows(shape: Sequence[int]) -> int:
    """Return the number of rows by which an array grows, given the shape of a row."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * max(1, math.prod(shape)))))


def row_width(domains: int) -> int:
    """Return how many numbers a participant's row has."""
    return len(ROW_FIELDS) + len(DOMAIN_FIELDS) * domains + len(BIN_FIELDS) * CONFIDENCE_BINS


def pack_row(
    values: Mapping[str, float],
    accuracy_D: Sequence[float],
    loss_D: Sequence[float],
    calibration_3K: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return a participant's row, float64 (row_width,). Values that are not given are NaN.

    Parameters
    ----------
    values : mapping
        From the names of ROW_FIELDS to their values.
    calibration_3K : float64 (3, K) or None
        The three BIN_FIELDS for each of the K confidence bins. None: all NaN.
    """
    if calibration_3K is None:
        calibration_3K = np.full((len(BIN_FIELDS), CONFIDENCE_BINS), math.nan)
    fields = (values.get(field.name, math.nan) for field in ROW_FIELDS)
    return np.array([*fields, *accuracy_D, *loss_D, *calibration_3K.ravel()], dtype=np.float64)


def digested(table_PW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a digest of rows contains of a round's table: all columns but those of NEWER arrays that are all NaN.

    So a run that does not use these arrays has the same digests as before there were such arrays.
    """
    unused = [i for i, field in enumerate(ROW_FIELDS) if field.name in NEWER and np.isnan(table_PW[:, i]).all()]
    return np.ascontiguousarray(np.delete(table_PW, unused, axis=-1))


def unpack_table(table: NDArray[np.float64], domains: int) -> dict[str, NDArray[np.float64]]:
    """Return the values of each array by its name, from the rows of a round (P, width) or of several (R, P, width)."""
    columns = {field.name: table[..., i] for i, field in enumerate(ROW_FIELDS)}
    at = len(ROW_FIELDS)
    for fields, size in ((DOMAIN_FIELDS, domains), (BIN_FIELDS, CONFIDENCE_BINS)):
        for field in fields:
            columns[field.name] = table[..., at : at + size]
            at += size
    return columns


def domains_of(table: NDArray[np.float64]) -> int:
    """Return the number of domains, from the width of a round's rows."""
    return (table.shape[-1] - row_width(0)) // len(DOMAIN_FIELDS)
