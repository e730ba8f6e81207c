"""What a run takes, by arithmetic alone: bytes of memory on every rank, messages between ranks, sizes of files.

Nothing here builds a model, reads data or sends anything; tests hold the numbers equal to what runs really take.
"""

from fedh2l_mpi.footprint.files import Files, checkpoint_bytes, files, metrics_file_bytes
from fedh2l_mpi.footprint.memory import (
    CHANGES_ARRAYS,
    Holdings,
    ModelSize,
    RankMemory,
    optimiser_vectors,
    rank_memory,
)
from fedh2l_mpi.footprint.traffic import Links, MessageSize, expected_links, first_of, links

__all__ = [
    "CHANGES_ARRAYS",
    "Files",
    "Holdings",
    "Links",
    "MessageSize",
    "ModelSize",
    "RankMemory",
    "checkpoint_bytes",
    "expected_links",
    "files",
    "first_of",
    "links",
    "metrics_file_bytes",
    "optimiser_vectors",
    "rank_memory",
]
