"""Write and read the metrics file of a run: its schema, its single writer and its readers.

The names of the arrays are defined here. Every room from `evaluation` up may import it.
"""

from fedh2l_mpi.metrics.columns import NO_COLUMNS, Columns
from fedh2l_mpi.metrics.digests import rows_digest
from fedh2l_mpi.metrics.reader import RunMetrics, look, read
from fedh2l_mpi.metrics.rows import pack_row, row_width, unpack_table
from fedh2l_mpi.metrics.run_state import RunState, infer_state
from fedh2l_mpi.metrics.schema import (
    ADDED,
    BIN_FIELDS,
    CONFIDENCE_BINS,
    DIMENSIONS,
    DOMAIN_FIELDS,
    FIELDS,
    FORMAT,
    NOTED,
    PARTICIPANT_FIELDS,
    PRESENT,
    ROUNDS_DONE,
    ROW_FIELDS,
    SCALES,
    SCHEMA_VERSION,
    SIMULATED_SECONDS,
    TEMPERATURES,
    TIMINGS,
    Field,
)
from fedh2l_mpi.metrics.timing import slowest_rank_seconds
from fedh2l_mpi.metrics.writer import MetricsWriter, RunHeader

__all__ = [
    "ADDED",
    "BIN_FIELDS",
    "CONFIDENCE_BINS",
    "DIMENSIONS",
    "DOMAIN_FIELDS",
    "FIELDS",
    "FORMAT",
    "NOTED",
    "NO_COLUMNS",
    "PARTICIPANT_FIELDS",
    "PRESENT",
    "ROUNDS_DONE",
    "ROW_FIELDS",
    "SCALES",
    "SCHEMA_VERSION",
    "SIMULATED_SECONDS",
    "TEMPERATURES",
    "TIMINGS",
    "Columns",
    "Field",
    "MetricsWriter",
    "RunHeader",
    "RunMetrics",
    "RunState",
    "infer_state",
    "look",
    "pack_row",
    "read",
    "row_width",
    "rows_digest",
    "slowest_rank_seconds",
    "unpack_table",
]
