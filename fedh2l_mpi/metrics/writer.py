"""Write the metrics file on rank 0 while the run is running.

The file is in single-writer-multiple-reader mode (SWMR), so it can be read while it is written and after a kill. Its
format is that of HDF5 1.10, which Debian's h5dump and xarray can read. It has no compression filter, because one
compressed row per flush would make the file a hundred times larger.

h5py is imported when a file is opened, so only the rank that writes needs its 11 MiB of memory.

Shape letters: R rounds, P participants, D domains, C classes, E edges.
"""

import datetime
import errno
import hashlib
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.metrics import columns
from fedh2l_mpi.metrics.columns import NO_COLUMNS, Columns
from fedh2l_mpi.metrics.digests import content_digest, rows_digest, tables
from fedh2l_mpi.metrics.reader import look
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.metrics.rows import digested, unpack_table
from fedh2l_mpi.metrics.schema import (
    AT_END,
    BIN_FIELDS,
    CONFIDENCE_BINS,
    DOMAIN_FIELDS,
    DOMAIN_HISTOGRAM,
    DOMAIN_NAME,
    FORMAT,
    GRAPH_EDGES,
    GRAPH_SINCE,
    LABEL_HISTOGRAM,
    PARTICIPANT_FIELDS,
    ROW_FIELDS,
    SCALE_CHUNKS,
    SCHEMA_VERSION,
    Field,
    chunk_rows,
)
from fedh2l_mpi.runtime import atomic_files, hdf5_files

if TYPE_CHECKING:
    import h5py

# Attributes that are known only at the end, with the length of their longest text: SWMR allows no new attributes.
LATER = {"state": 16, "ended": 32, "content_digest": 64}
# The same of a run that may end early.
EARLY_STOP, EARLY_STOP_BYTES = "early_stop", 64


@dataclass(frozen=True)
class RunHeader:
    """Header of the metrics file: everything that is known before round 0.

    Attributes
    ----------
    attributes : mapping
        Attributes of the file: config text, seed, versions, revision, start time and so on; text or numbers.
    participants : sequence of mapping
        One mapping for each participant, with a value for each of PARTICIPANT_FIELDS.
    label_histogram : int64 (P, C)
    domain_names : sequence of str, D of them
    columns : Columns
        The run's own arrays.
    may_stop_early : bool
        True if the run has a rule `run.early_stop`.
    domain_histogram : int64 (P, D) or None
        None: the file has none, like the first files of this schema.
    """

    attributes: Mapping[str, str | int]
    participants: Sequence[Mapping[str, Any]]
    label_histogram: NDArray[np.int64]
    domain_names: Sequence[str]
    columns: Columns = NO_COLUMNS
    may_stop_early: bool = False
    domain_histogram: NDArray[np.int64] | None = None


class _Growing:
    """Array that grows by the values of one round at a time.

    It uses HDF5's own calls, which need a fifth of the time of h5py's `array[round] = values`. That time is most of
    the overhead of a round of few, small participants.
    """

    def __init__(self, dataset: "h5py.Dataset") -> None:
        from h5py import h5s

        self._id, self._shape = dataset.id, dataset.shape[1:]
        self._begin = (0,) * len(self._shape)
        self._in_memory = h5s.create_simple((1, *self._shape))

    def put(self, round_index: int, values: NDArray[Any]) -> None:
        """Extend the array to end with this round, and write the round's values."""
        self._id.set_extent((round_index + 1, *self._shape))
        in_file = self._id.get_space()
        in_file.select_hyperslab((round_index, *self._begin), (1, *self._shape))
        self._id.write(self._in_memory, in_file, np.ascontiguousarray(values).reshape(1, *self._shape))


class MetricsWriter:
    """The single writer of a run's metrics file, on rank 0.

    Parameters
    ----------
    kept : int or None
        Number of rounds of the file at `path` after which to resume. A new file that begins with these rounds replaces
        it, and equals the file of an uninterrupted run. None: a new run.

    Raises
    ------
    FileExistsError
        If the file exists and `kept` is None: a run never overwrites another.
    ValueError
        If the file at `path` does not hold `kept` rounds.
    """

    def __init__(self, path: Path, header: RunHeader, kept: int | None = None) -> None:
        # The file has another name until other programs can read it.
        growing = path.with_name(path.name + ".new")
        if kept is None and path.exists():
            raise FileExistsError(f"{path} already exists, and a run never overwrites another")
        # A process that was killed here left it. The run's lock excludes any other writer, so it can be removed.
        growing.unlink(missing_ok=True)
        self._path, self._domains, self._columns = path, len(header.domain_names), header.columns
        self._rounds, self._rows, self._graphs = kept or 0, hashlib.sha256(), hashlib.sha256()
        self._is_open = True
        # Every array's handle is kept, because HDF5 cannot report a failed write of a handle that is dropped.
        self._arrays: dict[str, h5py.Dataset] = {}
        # By default, HDF5 keeps up to 1 MiB of every array in memory, and writes 256 rounds again with every round.
        self.file = hdf5_files.create(growing, rdcc_nbytes=0)
        # A writer that is dropped, or alive when the process exits, leaves its file like a killed process.
        weakref.finalize(self, hdf5_files.abandon, self.file)
        try:
            self._create_arrays(header, None if kept is None else path)
            if kept is not None:
                self._copy(path, kept)
            by_round = [name for name, dims in header.columns.dimensions.items() if dims[0] == "round"]
            self._growing = {name: _Growing(self._arrays[name]) for name in ("round", *by_round)}
            self.file.flush()
            if kept is not None:
                # Sync the new file before it replaces the old one; otherwise a crash of the machine could lose both.
                with growing.open("rb") as file:
                    atomic_files.sync_file(file)
            # From here on HDF5 allows new values and changes of fixed-size attributes, but no new arrays.
            self.file.swmr_mode = True
            atomic_files.move(growing, path)
        except BaseException:
            self._abandon()
            growing.unlink(missing_ok=True)
            raise

    def _create_arrays(self, header: RunHeader, resumed: Path | None) -> None:
        """Create attributes and arrays, without any round yet; a resumed run keeps some attributes of its old file."""
        own = {columns.ATTRIBUTE: header.columns.to_text()} if header.columns else {}
        kept = {} if resumed is None else _kept_attributes(resumed)
        self._attributes({**header.attributes, **own, **kept})
        if header.may_stop_early:
            self.file.attrs[EARLY_STOP] = np.array(b"", dtype=f"S{EARLY_STOP_BYTES}")
        sizes = {
            "participant": len(header.participants),
            "domain": self._domains,
            "class": header.label_histogram.shape[1],
            "predicted": header.label_histogram.shape[1],
            "bin": CONFIDENCE_BINS,
            "endpoint": 2,
        }
        for scale in header.columns.scales:
            chunk = SCALE_CHUNKS.get(scale.name)
            layout = {"maxshape": (None,), "chunks": (chunk,)} if chunk else {}
            self._scale(scale, sizes.get(scale.name, 0), **layout)
        for field in PARTICIPANT_FIELDS:
            given = [row[field.name] for row in header.participants]
            values = _texts(given) if field.dtype.startswith("S") else np.array(given, dtype=field.dtype)
            self._array(field, values)
        self._array(LABEL_HISTOGRAM, header.label_histogram)
        if header.domain_histogram is not None:
            self._array(DOMAIN_HISTOGRAM, header.domain_histogram)
        self._array(DOMAIN_NAME, _texts(header.domain_names))
        for name in header.columns.at_end:
            field, dims = AT_END[name]
            shape = tuple(sizes[dim] for dim in dims)
            self._array(field, np.full(shape, -1 if field.dtype.startswith("i") else math.nan, dtype=field.dtype))
        by_round = (*ROW_FIELDS, *DOMAIN_FIELDS, *BIN_FIELDS, *header.columns.by_participant, *header.columns.by_domain)
        for field in (*by_round, GRAPH_EDGES, GRAPH_SINCE):
            self._empty(field, tuple(sizes[name] for name in header.columns.dimensions[field.name][1:]))

    def _copy(self, path: Path, rounds: int) -> None:
        """Copy the first rounds of another file. Graphs are not copied: `add_graph` adds them again."""
        first, theirs = 0, look(path).columns
        if theirs.names != self._columns.names:
            raise ValueError(f"{path} has the columns {theirs.names}, but the run has {self._columns.names}")
        for tables_RPW in tables(path, rounds):
            past = first + len(tables_RPW)
            for name, values in unpack_table(tables_RPW, self._domains, self._columns).items():
                self._arrays[name].resize(past, axis=0)
                self._arrays[name][first:past] = values
            for table_PW in tables_RPW:
                self._rows.update(digested(table_PW).data)
            first = past
        self._arrays["round"].resize(rounds, axis=0)
        self._arrays["round"][:] = np.arange(rounds)

    def add_graph(self, since_round: int, edges_E2: Sequence[tuple[int, int]]) -> None:
        """Add the graph that is used from round `since_round` until the next graph is added.

        Raises
        ------
        OSError, RuntimeError
            If it cannot be written. HDF5 raises either of them if the disk is full.
        """
        first = len(self._arrays["edge"])
        total = first + len(edges_E2)
        new: dict[str, NDArray[Any]] = {
            GRAPH_EDGES.name: np.array(edges_E2, dtype=np.int32).reshape(-1, 2),
            GRAPH_SINCE.name: np.full(len(edges_E2), since_round, dtype=np.int64),
            "edge": np.arange(first, total),
        }
        for name, values in new.items():
            self._arrays[name].resize(total, axis=0)
            if edges_E2:
                self._arrays[name][first:] = values
        self._graphs.update(_graph_rows(new[GRAPH_EDGES.name], new[GRAPH_SINCE.name]).data)

    def append(self, round_index: int, table: NDArray[np.float64]) -> str:
        """Write and flush a round. After this call, its rows survive a kill of the process.

        Parameters
        ----------
        table : float64 (P, row_width)
            Every participant's row, from `pack_row`.

        Returns
        -------
        str
            SHA-256 of all tables up to this one, equal to `rows_digest` of the file.

        Raises
        ------
        OSError, RuntimeError
            If they cannot be written. HDF5 raises either of them if the disk is full.
        """
        table = _storable(table)
        for name, values in unpack_table(table, self._domains, self._columns).items():
            self._growing[name].put(round_index, values)
        self.file.flush()
        # The scale comes last, in its own flush, because within one flush a reader may see an array's new length before
        # its values. A reader that reads the scale first therefore finds the values of all its rounds.
        self._growing["round"].put(round_index, np.array(round_index))
        self.file.flush()
        self._rows.update(digested(table).data)
        self._rounds = round_index + 1
        return self._rows.hexdigest()

    def write_end(self, participant: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a participant's part of the arrays that describe the end of the run; the file may lack some of them.

        Raises
        ------
        OSError, RuntimeError
            If they cannot be written. HDF5 raises either of them if the disk is full.
        """
        for name in self._columns.at_end:
            self._arrays[name][participant] = arrays[name]

    def close(self, state: str, early_stop: str = "") -> None:
        """Close the file, which any HDF5 reader can then open like an ordinary file. A second call does nothing.

        Parameters
        ----------
        state : {"complete", "stopped", "failed"}
            Final state of the run.
        early_stop : str
            How `run.early_stop` ended the run; empty if it did not.

        Raises
        ------
        OSError, RuntimeError
            If the rest cannot be written, or what was written cannot be read back. The file is closed all the same,
            and can be read like that of a killed run. HDF5 raises either of them if the disk is full.
        """
        if not self._is_open:
            return
        try:
            self.file.flush()
            if state != "failed":
                self._read_back()
            ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            for name, value in {"state": state, "ended": ended, "content_digest": self._content_digest()}.items():
                self.file.attrs.modify(name, np.array(value.encode(), dtype=f"S{LATER[name]}"))
            if early_stop:
                self.file.attrs.modify(EARLY_STOP, np.array(early_stop.encode(), dtype=f"S{EARLY_STOP_BYTES}"))
            hdf5_files.finish(self.file)
        finally:
            self._abandon()

    def _read_back(self) -> None:
        """Compare rounds and graphs of the file with what was given to this writer."""
        got, _ = open_for_reading(self._path)
        with got:
            graphs = _graph_rows(got[GRAPH_EDGES.name][()], got[GRAPH_SINCE.name][()])
        is_same = hashlib.sha256(graphs.data).digest() == self._graphs.digest()
        if not is_same or rows_digest(self._path, self._rounds) != self._rows.hexdigest():
            raise OSError(errno.EIO, "the file system does not return what was written", str(self._path))

    def _content_digest(self) -> str:
        """Return the digest of what a reader finds in the file, not of what HDF5 has in memory."""
        file, _ = open_for_reading(self._path)
        with file:
            return content_digest(file)

    def _abandon(self) -> None:
        """Close the file without writing to it any more, unless it is closed."""
        hdf5_files.abandon(self.file)
        self._is_open = False
        self._arrays.clear()
        self._growing = {}

    def _attributes(self, attributes: Mapping[str, str | int]) -> None:
        given: dict[str, str | int] = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **attributes}
        for name, value in given.items():
            # SWMR allows fixed-length strings only.
            self.file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)
        for name, length in LATER.items():
            self.file.attrs[name] = np.array(b"running" if name == "state" else b"", dtype=f"S{length}")

    def _scale(self, field: Field, size: int, **layout: Any) -> None:
        scale = self.file.create_dataset(field.name, data=np.arange(size), dtype=field.dtype, **layout)
        self._arrays[field.name] = scale
        scale.make_scale(field.name)
        self._describe(scale, field)

    def _empty(self, field: Field, shape: tuple[int, ...]) -> None:
        empty = np.empty((0, *shape), dtype=field.dtype)
        fill = math.nan if field.dtype.startswith("f") else None
        self._array(field, empty, maxshape=(None, *shape), chunks=(chunk_rows(shape), *shape), fillvalue=fill)

    def _array(self, field: Field, values: NDArray[Any], **layout: Any) -> None:
        dataset = self._arrays[field.name] = self.file.create_dataset(field.name, data=values, **layout)
        for axis, name in enumerate(self._columns.dimensions[field.name]):
            dataset.dims[axis].attach_scale(self._arrays[name])
        self._describe(dataset, field)

    def _describe(self, dataset: "h5py.Dataset", field: Field) -> None:
        dataset.attrs["units"] = np.bytes_(field.units.encode())
        dataset.attrs["long_name"] = np.bytes_(field.long_name.encode())


def _kept_attributes(path: Path) -> dict[str, str | int]:
    """Return the attributes that a resumed run keeps from its old file: its start time."""
    return {name: value for name, value in look(path).attributes.items() if name == "started"}


def _storable(table_PW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a round's table as it is read back: an array of whole numbers has no NaN, so an unknown one is 0."""
    whole = [i for i, field in enumerate(ROW_FIELDS) if field.dtype.startswith("i")]
    if np.isnan(table_PW[:, whole]).any():
        table_PW = table_PW.copy()
        table_PW[:, whole] = np.nan_to_num(table_PW[:, whole])
    return table_PW


def _graph_rows(edges_E2: NDArray[Any], since_E: NDArray[Any]) -> NDArray[np.int64]:
    """Return edges and their first rounds as int64 (E, 3), for a digest."""
    return np.column_stack([edges_E2, since_E]).astype(np.int64)


def _texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """Encode texts as UTF-8 of a fixed length, that of the longest: SWMR allows no other strings."""
    return np.array([value.encode() for value in values], dtype=np.bytes_)
