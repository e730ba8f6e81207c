"""Compute the sizes of the files that a run leaves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedh2l_mpi.config import Config
from fedh2l_mpi.metrics import posteriors
from fedh2l_mpi.metrics.columns import NO_COLUMNS, Columns
from fedh2l_mpi.metrics.schema import (
    AT_END,
    BIN_FIELDS,
    CONFIDENCE_BINS,
    DIMENSIONS,
    DOMAIN_FIELDS,
    GRAPH_EDGES,
    GRAPH_SINCE,
    PARTICIPANT_FIELDS,
    ROW_FIELDS,
    SCALE_CHUNKS,
    SCALES,
    chunk_rows,
)
from fedh2l_mpi.planning.memory import average_bytes, optimiser_vectors
from fedh2l_mpi.planning.sizes import ModelSize, SampleCounts
from fedh2l_mpi.planning.traffic import first_participants
from fedh2l_mpi.runtime.hosting import Hosting

# Object headers, attributes and the tables of chunks of an HDF5 file of this schema; measured.
HDF5_FIXED_BYTES, HDF5_CHUNK_BYTES = 42_500, 16
# Object header and attributes of an array of the run's own; measured.
HDF5_ARRAY_BYTES = 900
# Size of an empty torch.save file; of one participant's names, generators and positions; of one tensor's name, shape
# and zip entries.
FILE_BYTES, PARTICIPANT_BYTES, TENSOR_BYTES = 2_000, 1_500, 450
# A manifest has a line with name, size and digest for each file, and the digest of the config and the versions.
MANIFEST_BYTES, MANIFEST_LINE_BYTES = 2_000, 160
# Assumed lengths of the names of host and device, which are not known before the run.
HOST_BYTES, DEVICE_BYTES = 16, 6


@dataclass(frozen=True)
class Files:
    """Files of a finished run: sizes and counts.

    Attributes
    ----------
    metrics_bytes : int
        Size of metrics.h5 after the last round.
    checkpoint_bytes, rank_checkpoint_bytes : int
        Size of one checkpoint of all ranks, and of its largest rank's file.
    checkpoints : int
        Number of checkpoints that are kept.
    predictions_bytes : int
        Size of predictions.h5; 0: the run writes none.
    posteriors_bytes : int
        Size of posteriors.h5; 0: the run keeps none.
    count : int
        Number of files in the run directory. Logs and checkpoints have one file per rank.
    """

    metrics_bytes: int
    checkpoint_bytes: int
    rank_checkpoint_bytes: int
    checkpoints: int
    count: int
    predictions_bytes: int = 0
    posteriors_bytes: int = 0

    @property
    def kept_bytes(self) -> int:
        """Size of all checkpoints that are kept [bytes]."""
        return self.checkpoints * self.checkpoint_bytes


def files(
    config: Config,
    hosting: Hosting,
    counts: SampleCounts,
    sizes: Mapping[str, ModelSize],
    edges: int,
    kept_bytes: int = 0,
    columns: Columns = NO_COLUMNS,
) -> Files:
    """Compute the files of a complete run.

    Parameters
    ----------
    edges : int
        Number of edges of all graphs of the run together.
    kept_bytes : int
        Size of the state that a method or the exchange keeps of each participant between rounds.
    columns : Columns
        The run's own arrays by round.
    """
    longest = max(len(name.encode()) for name in sizes)
    metrics_bytes = metrics_file_bytes(
        hosting.participants,
        counts.domains,
        counts.classes,
        config.rounds,
        edges,
        len(config.to_yaml()),
        longest,
        columns,
    )
    per_rank = checkpoint_bytes(config, hosting, sizes, kept_bytes)
    written = 1 if config.checkpoint.every is None else math.ceil(config.rounds / config.checkpoint.every)
    kept = min(config.checkpoint.keep, written)
    manifest = MANIFEST_BYTES + MANIFEST_LINE_BYTES * hosting.ranks
    # The first three files are metrics.h5, config.yaml and status.
    count = 3 + hosting.ranks + kept * (hosting.ranks + 1)
    predictions = 0
    if config.evaluation.predictions:
        samples, count = sum(counts.tests), count + 1
        predictions = 4 * hosting.participants * samples * counts.classes + 24 * samples + HDF5_CHUNK_BYTES * 500
    every, published = config.exchange.keep_posteriors, 0
    if every is not None:
        rows, count = counts.seed_rows_per_round, count + 1
        published = posteriors.file_bytes(every, config.rounds, hosting.participants, rows, counts.classes)
    rank_bytes = int(per_rank.max())
    return Files(metrics_bytes, int(per_rank.sum()) + manifest, rank_bytes, kept, count, predictions, published)


def metrics_file_bytes(
    participants: int,
    domains: int,
    classes: int,
    rounds: int,
    edges: int,
    config_bytes: int = 2_500,
    architecture_bytes: int = 8,
    columns: Columns = NO_COLUMNS,
) -> int:
    """Return the size of a metrics file after its last round [bytes]. Its arrays grow by whole chunks."""
    sizes = {"participant": participants, "domain": domains, "class": classes, "bin": CONFIDENCE_BINS, "endpoint": 2}
    per_round: list[tuple[int, ...]] = [(participants,)] * (len(ROW_FIELDS) + len(columns.by_participant))
    per_round += [(participants, domains)] * (len(DOMAIN_FIELDS) + len(columns.by_domain))
    per_round += [(participants, CONFIDENCE_BINS)] * len(BIN_FIELDS)
    growing: list[tuple[tuple[int, ...], int, int, int]] = [
        (shape, chunk_rows(shape), rounds, 8) for shape in per_round
    ]
    growing += [((2,), chunk_rows((2,)), edges, int(GRAPH_EDGES.dtype[1:]))]
    growing += [((), chunk_rows(()), edges, int(GRAPH_SINCE.dtype[1:]))]
    growing += [((), SCALE_CHUNKS["round"], rounds, 8), ((), SCALE_CHUNKS["edge"], edges, 8)]
    total, chunks = 0, 0
    for shape, rows, length, item_bytes in growing:
        count = math.ceil(length / rows)
        chunks += count
        total += count * rows * math.prod(shape) * item_bytes
    at_end = {**sizes, "predicted": classes}
    for name in columns.at_end:
        field, dims = AT_END[name]
        total += int(field.dtype[1:]) * math.prod(at_end[dim] for dim in dims)
    texts = architecture_bytes + HOST_BYTES + DEVICE_BYTES
    numbers = 8 * sum(field.dtype != "S" for field in PARTICIPANT_FIELDS)
    fixed = 8 * sum(sizes.get(scale.name, 0) for scale in SCALES)
    fixed += participants * (numbers + texts + 8 * classes) + 16 * domains + config_bytes
    fixed += HDF5_ARRAY_BYTES * (len(columns.dimensions) - len(DIMENSIONS) + len(columns.scales) - len(SCALES))
    return total + fixed + HDF5_FIXED_BYTES + HDF5_CHUNK_BYTES * chunks


def checkpoint_bytes(
    config: Config, hosting: Hosting, sizes: Mapping[str, ModelSize], kept_bytes: int = 0
) -> np.ndarray:
    """Return the size of each rank's file of a checkpoint, int64 (R,) [bytes].

    A participant's part is the state of its model, of its optimiser and of its method, averaged weights, and small
    entries.
    """
    vectors = {name: optimiser_vectors(config.optimizer.for_model(name)) for name in sizes}
    copies = 1 if config.optimizer.average == "none" else 2
    each = [
        size.state_bytes
        + average_bytes(config.optimizer, size)
        + vectors[name] * size.trainable_bytes
        + kept_bytes
        + PARTICIPANT_BYTES
        + TENSOR_BYTES * (copies * size.tensors + vectors[name])
        for name, size in sizes.items()
    ]
    architectures = list(sizes)
    of_P = [architectures.index(config.architecture(index)) for index in range(hosting.participants)]
    return np.add.reduceat(np.array(each, dtype=np.int64)[of_P], first_participants(hosting)) + FILE_BYTES
