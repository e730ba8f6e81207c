"""The metrics file, schema 1: written by rank 0 while the run goes on, read by whoever opens it.

Nobody else knows a dataset's name. The file is in single-writer-multiple-reader mode (SWMR), so that it can be read
while it is written and after a kill, and in the format of HDF5 1.10, which Debian's h5dump and xarray read. No filter:
a compressed row per flush would make the file a hundred times larger.

h5py is imported where a file is opened: of all ranks, only the one that writes pays its 11 MiB.

Shape letters: R rounds, P participants, D domains, C classes, E edges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    import h5py

SCHEMA_VERSION = 1
FORMAT = "fedh2l_mpi metrics"


@dataclass(frozen=True)
class Field:
    """One array of the file: its name, element type (S: text), unit (as in UDUNITS; 1 is a pure number), meaning."""

    name: str
    dtype: str
    units: str
    long_name: str


# (round, participant): a row of a participant holds these in this order, then accuracy and loss on each domain.
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
)
# (round, participant, domain)
DOMAIN_FIELDS = (
    Field("accuracy", "f8", "1", "accuracy on a domain's test set"),
    Field("loss", "f8", "nats", "cross-entropy on a domain's test set"),
)
# (participant)
PARTICIPANT_FIELDS = (
    Field("architecture", "S", "1", "name of the model's architecture"),
    Field("parameters", "i8", "1", "number of parameters of the model"),
    Field("parameter_bytes", "i8", "byte", "one copy of the model: parameters and floating-point buffers"),
    Field("private_samples", "i8", "1", "private training samples, without validation and seed samples"),
    Field("own_domain", "i8", "1", "domain of the private data; -1: a mix of all"),
    Field("rank", "i8", "1", "MPI rank that hosts the participant"),
    Field("host", "S", "1", "name of the machine"),
    Field("device", "S", "1", "torch device"),
)
TIMINGS = tuple(field.name for field in ROW_FIELDS if field.units == "s")


def row_width(domains: int) -> int:
    """Numbers in a participant's row."""
    return len(ROW_FIELDS) + len(DOMAIN_FIELDS) * domains


def pack_row(values: Mapping[str, float], accuracy_D: Sequence[float], loss_D: Sequence[float]) -> NDArray[np.float64]:
    """A participant's row, float64 (row_width,); what `values` does not name is NaN."""
    return np.array(
        [*(values.get(field.name, math.nan) for field in ROW_FIELDS), *accuracy_D, *loss_D], dtype=np.float64
    )


@dataclass(frozen=True)
class RunHeader:
    """What is known before round 0.

    Attributes
    ----------
    attributes : mapping
        Attributes of the file: config text, seed, versions, revision, start time and so on; text or numbers.
    participants : sequence of mapping
        For each participant a value for each of PARTICIPANT_FIELDS.
    label_histogram : int64 (P, C)
    domain_names : sequence of str, D of them
    """

    attributes: Mapping[str, str | int]
    participants: Sequence[Mapping[str, Any]]
    label_histogram: NDArray[np.int64]
    domain_names: Sequence[str]


class MetricsWriter:
    """The one writer of a run's file, on rank 0.

    Raises
    ------
    FileExistsError
        If the file exists: a run is never written over another.
    """

    def __init__(self, path: Path, header: RunHeader) -> None:
        import h5py

        participants, domains = len(header.participants), len(header.domain_names)
        classes = header.label_histogram.shape[1]
        if path.exists():
            raise FileExistsError(f"{path} exists: a run is never written over another")
        # Under another name until it can be read by others.
        growing = path.with_name(path.name + ".new")
        self.file = h5py.File(growing, "x", libver=("v110", "v110"))
        self._domains = domains
        self._attributes(header.attributes)
        self._scale("round", 0, "round, from 0", maxshape=(None,), chunks=(1024,))
        self._scale("participant", participants, "participant, from 0")
        self._scale("domain", domains, "domain, from 0")
        self._scale("class", classes, "class label")
        self._scale("edge", 0, "edge of a graph, counted over all graphs of the run", maxshape=(None,), chunks=(4096,))
        self._scale("endpoint", 2, "end of an edge")
        for field in PARTICIPANT_FIELDS:
            given = [row[field.name] for row in header.participants]
            values = _texts(given) if field.dtype.startswith("S") else np.array(given, dtype=field.dtype)
            self._array(field, ("participant",), values)
        histogram = Field("label_histogram", "i8", "1", "private training samples of each class")
        self._array(histogram, ("participant", "class"), header.label_histogram)
        self._array(Field("domain_name", "S", "1", "what the domain is"), ("domain",), _texts(header.domain_names))
        for field in ROW_FIELDS:
            self._growing(field, ("round", "participant"), (participants,))
        for field in DOMAIN_FIELDS:
            self._growing(field, ("round", "participant", "domain"), (participants, domains))
        edges = Field("graph_edges", "i4", "1", "the two participants that an edge joins")
        self._growing(edges, ("edge", "endpoint"), (2,))
        since = Field("graph_since_round", "i8", "1", "first round of the graph that an edge belongs to")
        self._growing(since, ("edge",), ())
        self.file.flush()
        # From here on nothing may be created; values may be added and fixed-size attributes changed.
        self.file.swmr_mode = True
        growing.rename(path)

    def add_graph(self, since_round: int, edges_E2: Sequence[tuple[int, int]]) -> None:
        """The graph that holds from `since_round` until the next one is added."""
        first = self.file["edge"].shape[0]
        total = first + len(edges_E2)
        new: dict[str, Any] = {
            "graph_edges": np.array(edges_E2, dtype=np.int32).reshape(-1, 2),
            "graph_since_round": since_round,
            "edge": np.arange(first, total),
        }
        for name, values in new.items():
            self.file[name].resize(total, axis=0)
            if edges_E2:
                self.file[name][first:] = values

    def append(self, round_index: int, table: NDArray[np.float64]) -> None:
        """Write and flush a round: its rows survive a kill from here on.

        Parameters
        ----------
        table : float64 (P, row_width)
            Every participant's row, from `pack_row`.
        """
        columns: dict[str, Any] = {field.name: table[:, i] for i, field in enumerate(ROW_FIELDS)}
        by_domain = table[:, len(ROW_FIELDS) :].reshape(len(table), len(DOMAIN_FIELDS), self._domains)
        columns |= {field.name: by_domain[:, i] for i, field in enumerate(DOMAIN_FIELDS)}
        # The scale comes last: a reader that sees the round's number finds its values.
        columns["round"] = round_index
        for name, values in columns.items():
            dataset = self.file[name]
            dataset.resize(round_index + 1, axis=0)
            dataset[round_index] = values
        self.file.flush()

    def close(self) -> None:
        """Close the file: every reader can open it as an ordinary one from here on."""
        self.file.close()

    def _attributes(self, attributes: Mapping[str, str | int]) -> None:
        given: dict[str, str | int] = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **attributes}
        for name, value in given.items():
            # Fixed-length strings: SWMR forbids the others.
            self.file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)

    def _scale(self, name: str, size: int, long_name: str, **layout: Any) -> None:
        scale = self.file.create_dataset(name, data=np.arange(size), dtype="i8", **layout)
        scale.make_scale(name)
        self._describe(scale, Field(name, "i8", "1", long_name))

    def _growing(self, field: Field, dims: tuple[str, ...], shape: tuple[int, ...]) -> None:
        row_bytes = 8 * max(1, math.prod(shape))
        rows = max(1, min(256, 2**18 // row_bytes))
        empty = np.empty((0, *shape), dtype=field.dtype)
        fill = math.nan if field.dtype.startswith("f") else None
        layout = {"maxshape": (None, *shape), "chunks": (rows, *shape), "fillvalue": fill}
        self._array(field, dims, empty, **layout)

    def _array(self, field: Field, dims: tuple[str, ...], values: NDArray[Any], **layout: Any) -> None:
        dataset = self.file.create_dataset(field.name, data=values, **layout)
        for axis, name in enumerate(dims):
            dataset.dims[axis].attach_scale(self.file[name])
        self._describe(dataset, field)

    def _describe(self, dataset: "h5py.Dataset", field: Field) -> None:
        dataset.attrs["units"] = np.bytes_(field.units.encode())
        dataset.attrs["long_name"] = np.bytes_(field.long_name.encode())


@dataclass(frozen=True)
class RunMetrics:
    """What a metrics file holds: its attributes, and its arrays by name, all with the same number of rounds."""

    attributes: dict[str, str | int]
    arrays: dict[str, NDArray[Any]]
    closed: bool

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    @property
    def rounds(self) -> int:
        """Finished rounds."""
        return len(self.arrays["round"])


def read(path: Path) -> RunMetrics:
    """The whole of a metrics file, also of one that is being written or whose writer was killed.

    Raises
    ------
    UserError
        If it is not a metrics file, or of another schema.
    """
    file, closed = _open(path)
    with file:
        if file.attrs.get("format") != FORMAT.encode():
            raise UserError(f"{path}: not a metrics file of fedh2l_mpi")
        schema = file.attrs.get("schema_version")
        if schema != SCHEMA_VERSION:
            raise UserError(f"{path}: has schema {schema}, this version reads schema {SCHEMA_VERSION}")
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        growing = [field.name for field in ROW_FIELDS + DOMAIN_FIELDS]
        # A kill inside a flush may leave the arrays a round apart: what all of them have is the truth.
        rounds = min(file[name].shape[0] for name in ["round", *growing])
        edges = min(file[name].shape[0] for name in ("graph_edges", "graph_since_round"))
        arrays = {name: dataset[()] for name, dataset in file.items()}
    for name in ["round", *growing]:
        arrays[name] = arrays[name][:rounds]
    for name in ("edge", "graph_edges", "graph_since_round"):
        arrays[name] = arrays[name][:edges]
    return RunMetrics(attributes, arrays, closed)


def _open(path: Path) -> tuple["h5py.File", bool]:
    """The file, opened for reading, and whether its writer closed it."""
    import h5py

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return h5py.File(path, "r"), True
    except OSError:
        try:
            return h5py.File(path, "r", swmr=True), False
        except OSError as error:
            raise UserError(f"{path}: cannot be read as HDF5: {error}") from None


def _texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """UTF-8 of a fixed length that holds the longest: SWMR allows no other strings."""
    return np.array([value.encode() for value in values], dtype=np.bytes_)


def _plain(value: Any) -> str | int:
    return value.decode() if isinstance(value, bytes) else int(value)
