"""Schema 1 of the metrics file: names, dimensions, units and meanings of its arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
# The fields that methods of this program note; a method of a user's own may note them, too.
NOTED = ("loss_private", "loss_seed", "loss_distillation", "gradient_cosine", "conflict_rate")
# (round, participant) of a run whose config has a network with a clock.
SIMULATED_SECONDS = Field(
    "simulated_seconds", "f8", "s", "simulated time at which the participant ended the round, since the run began"
)
# (round, participant) of a run whose participants may be absent.
PRESENT = Field("present", "f8", "1", "1 if the participant took part in the round, 0 if it was absent")
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
DOMAIN_HISTOGRAM = Field("domain_histogram", "i8", "1", "private training samples in each domain")
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
# Written once, at the end of a run that was not stopped, with their dimensions.
AT_END = {
    "accuracy_class": (
        Field("accuracy_class", "f8", "1", "accuracy at the end on the test samples of a class, of all domains"),
        ("participant", "class"),
    ),
    "confusion": (
        Field("confusion", "i4", "1", "test samples of a class at the end, of all domains; -1: not known yet"),
        ("participant", "class", "predicted"),
    ),
}
PREDICTED = Field("predicted", "i8", "1", "class that the model predicts")
# A larger confusion matrix of all participants is left out of the file.
CONFUSION_BYTES = 2**24
# Every array except the scales, with its dimensions.
DIMENSIONS = {
    **{field.name: ("round", "participant") for field in ROW_FIELDS},
    **{field.name: ("round", "participant", "domain") for field in DOMAIN_FIELDS},
    **{field.name: ("round", "participant", "bin") for field in BIN_FIELDS},
    **{field.name: ("participant",) for field in PARTICIPANT_FIELDS},
    "label_histogram": ("participant", "class"),
    "domain_histogram": ("participant", "domain"),
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
        DOMAIN_HISTOGRAM,
        DOMAIN_NAME,
        GRAPH_EDGES,
        GRAPH_SINCE,
    )
}
# Coordinate of a dataset along its rounds, round + 1, and the label of every axis and column of finished rounds.
ROUNDS_DONE = Field("rounds_done", "i8", "1", "rounds done")
# Names that datasets and tables of runs use for something else than an array of the file.
RESERVED = (ROUNDS_DONE.name, "run", "seed", "state", "sample", "label", "logits", "predicted")
# Arrays that the first files of this schema did not have yet.
ADDED = {"calibration_error", *(field.name for field in BIN_FIELDS), "bin", "temperature", "domain_histogram"}
# Arrays of rows that are newer than the first checkpoints, whose digests of rows do not contain them.
NEWER = ("temperature",)
# Arrays over rounds and edges grow by chunks of about 256 KiB, at most 256 rows. Their scales grow by more rows.
CHUNK_BYTES, CHUNK_ROWS = 2**18, 256
SCALE_CHUNKS = {"round": 1024, "edge": 4096}
TIMINGS = tuple(field.name for field in ROW_FIELDS if field.units == "s")


def chunk_rows(shape: Sequence[int]) -> int:
    """Return the number of rows by which an array grows, given the shape of a row."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * max(1, math.prod(shape)))))
