"""Export a run for other programs: tidy tables as CSV or Parquet, or labelled arrays as netCDF.

Shape letters: R rounds of a block, P participants, D domains, K confidence bins.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.csv_lines import CsvLines
from fedh2l_mpi.analysis.dataset import attributes_of, run_dataset
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import BIN_FIELDS, DOMAIN_FIELDS, FIELDS, PARTICIPANT_FIELDS, ROW_FIELDS, Field
from fedh2l_mpi.runtime import atomic_files, hdf5_files
from fedh2l_mpi.runtime.libraries import require

# Rows of a table in memory at a time; one round of many participants and domains may have more.
BLOCK_ROWS = 2**16
# Size of the arrays in memory at a time for netCDF; a larger array is written alone.
BATCH_BYTES = 2**26
PLAIN_NAME = re.compile("[a-z][a-z0-9_]*")
ROUND = Field("round", "i8", "1", "round, from 0")
PARTICIPANT = Field("participant", "i8", "1", "participant, from 0")
DOMAIN = Field("domain", "i8", "1", "domain, from 0")
DOMAIN_NAME = FIELDS["domain_name"]
BIN = Field("bin", "i8", "1", "confidence bin k of 10, from 0: confidences in (k/10, (k+1)/10]")

Block = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class _Table:
    """Table of one kind of observation: a column for each field, and blocks of rows; texts are str."""

    name: str
    meaning: str
    fields: Sequence[Field]
    blocks: Callable[[], Iterator[Block]]


def export(run: Run, to: str, out: Path | None = None) -> list[Path]:
    """Write a run in another format, and return the files that were written.

    CSV and Parquet are a folder with one table for each kind of observation: `rounds`, `domains`, `participants`,
    `labels`, `calibration` and `edges`. Its `about.json` has the run's attributes, and units and meaning of every
    column. A row without any known value is left out, such as a round without evaluation in `domains`. An unknown
    value is an empty cell, or a null in Parquet. Numbers are exact. In CSV, a text that a spreadsheet would run as a
    formula has an apostrophe in front. netCDF is one file, as `open_run` shows the run.

    Parameters
    ----------
    to : {"csv", "parquet", "netcdf"}
    out : path or None
        Folder or file to make; None: next to the metrics file, with its name.

    Raises
    ------
    UserError
        If `out` exists or cannot be written, or the library that writes the format is missing.
    """
    known: dict[str, Callable[[Run, Path], None]] = {"csv": _to_csv, "parquet": _to_parquet, "netcdf": _to_netcdf}
    if to not in known:
        raise UserError(f"export: got the format {to!r}. Known: {', '.join(known)}.")
    if out is None:
        out = run.file.with_suffix(".nc") if to == "netcdf" else run.file.with_name(f"{run.file.stem}-{to}")
    if out.exists():
        raise UserError(f"{out}: it exists already. Choose another name with --out, or remove it.")
    # The export has a temporary name until it is complete, so a file with the right name is always whole.
    growing = out.with_name(f"{out.name}.new-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        known[to](run, growing)
        atomic_files.publish(growing, out)
    except (OSError, RuntimeError) as error:
        if why := hdf5_files.reason(error):
            raise UserError(f"{out}: cannot be written: {why}.") from None
        raise
    finally:
        # The temporary name still exists only after a failure.
        shutil.rmtree(growing, ignore_errors=True)
        with contextlib.suppress(OSError):
            growing.unlink()
    return sorted(out.iterdir()) if out.is_dir() else [out]


def _to_csv(run: Run, folder: Path) -> None:
    def write(table: _Table) -> int:
        rows = 0
        with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
            lines = CsvLines(file)
            lines.write([[field.name for field in table.fields]])
            for block in table.blocks():
                lines.write(zip(*map(_cells, block), strict=True))
                rows += len(block[0])
        return rows

    folder.mkdir()
    _write_about(run, folder, {table: write(table) for table in _tables(run)})


def _cells(column: NDArray[Any]) -> list[Any]:
    """Return a column as Python values, whose text is exact; NaN becomes an empty text."""
    values: list[Any] = column.tolist()
    if column.dtype.kind == "f" and np.isnan(column).any():
        return ["" if math.isnan(value) else value for value in values]
    return values


def _to_parquet(run: Run, folder: Path) -> None:
    pyarrow = require("pyarrow", "--to parquet")
    require("pyarrow.parquet", "--to parquet")
    types = {"i": pyarrow.int64(), "f": pyarrow.float64(), "S": pyarrow.string()}

    def write(table: _Table) -> int:
        rows = 0
        columns = [
            pyarrow.field(
                field.name, types[field.dtype[0]], metadata={"units": field.units, "long_name": field.long_name}
            )
            for field in table.fields
        ]
        schema = pyarrow.schema(columns)
        with pyarrow.parquet.ParquetWriter(folder / f"{table.name}.parquet", schema) as writer:
            for block in table.blocks():
                # from_pandas=True turns NaN into null.
                arrays = [
                    pyarrow.array(values, column.type, from_pandas=True)
                    for values, column in zip(block, columns, strict=True)
                ]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
                rows += len(block[0])
        return rows

    folder.mkdir()
    _write_about(run, folder, {table: write(table) for table in _tables(run)})


def _to_netcdf(run: Run, file: Path) -> None:
    xarray = require("xarray", "--to netcdf")
    h5netcdf, h5py = require("h5netcdf", "--to netcdf"), require("h5py", "--to netcdf")
    dataset = run_dataset(run)
    arrays = {name: dataset[name].variable for name in dataset.data_vars}
    # netCDF needs the order in which its dimensions were made.
    with hdf5_files.writing(file, track_order=True) as written, h5netcdf.File(written, "w") as netcdf:
        store = xarray.backends.H5NetCDFStore(netcdf)
        xarray.Dataset(coords=dataset.coords).dump_to_store(store)
        # xarray loads all arrays of one call into memory, so each call gets only a few.
        for names in _batches(arrays):
            # Reading may reveal damage, which turns whole numbers into floats; `compute` settles the type first.
            some = xarray.Dataset({name: arrays[name].compute() for name in names})
            compressed = {name: {"zlib": True, "complevel": 1, "shuffle": True} for name in names if arrays[name].size}
            some.dump_to_store(store, encoding=compressed)
        # Attributes come last, because reading the arrays may reveal more problems.
        # HDF5 and netCDF reserve names, which begin with an underscore or have capitals; a run's attributes have none.
        named = {name: value for name, value in attributes_of(run).items() if PLAIN_NAME.fullmatch(name)}
        xarray.Dataset(attrs=named).dump_to_store(store)
    # h5netcdf drops each array's handle at once, and HDF5 cannot report a write that fails then.
    with (
        h5py.File(file, "r", locking=False) as written,
        xarray.open_dataset(written, engine="h5netcdf") as back,
    ):
        for name, variable in {**dataset.coords.variables, **arrays}.items():
            if not back[name].variable.equals(variable):
                raise OSError(errno.EIO, "the file system does not return what was written", str(file))


def _batches(arrays: Mapping[Any, Any]) -> Iterator[list[Any]]:
    """Yield names of arrays that fit into BATCH_BYTES together, or of a single larger one."""
    batch: list[Any] = []
    for name, array in arrays.items():
        if batch and sum(arrays[other].nbytes for other in batch) + array.nbytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(name)
    yield batch


def _write_about(run: Run, folder: Path, rows_by_table: Mapping[_Table, int]) -> None:
    """Write the description of the tables. Call it last, because reading the arrays may reveal damage."""
    about = {
        "source": str(run.file.absolute()),
        "attributes": attributes_of(run),
        "tables": {
            table.name: {
                "meaning": table.meaning,
                "rows": rows,
                "columns": {field.name: {"units": field.units, "long_name": field.long_name} for field in table.fields},
            }
            for table, rows in rows_by_table.items()
        },
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    # A folder's name may contain bytes that are not UTF-8.
    (folder / "about.json").write_text(text, encoding="utf-8", errors="replace")


def _tables(run: Run) -> list[_Table]:
    edges = (
        Field("since_round", "i8", "1", FIELDS["graph_since_round"].long_name),
        Field("a", "i8", "1", "the one participant that the edge joins"),
        Field("b", "i8", "1", "the other"),
    )
    labels = (PARTICIPANT, Field("class", "i8", "1", "class label"), _named(FIELDS["label_histogram"], "samples"))
    columns = run.metrics.columns
    by_participant = (*ROW_FIELDS, *columns.by_participant)
    by_domain = (*DOMAIN_FIELDS, *columns.by_domain)
    return [
        _Table(
            "rounds",
            "a participant in a round",
            (ROUND, PARTICIPANT, *by_participant),
            lambda: _long(run, by_participant, known_only=False),
        ),
        _Table(
            "domains",
            "a participant on a domain's test set after a round",
            (ROUND, PARTICIPANT, DOMAIN, DOMAIN_NAME, *by_domain),
            lambda: _domains(run, by_domain),
        ),
        _Table("participants", "a participant", (PARTICIPANT, *PARTICIPANT_FIELDS), lambda: _participants(run)),
        _Table("labels", "a participant's private samples of a class", labels, lambda: _labels(run)),
        _Table(
            "calibration",
            "a participant's test samples, of all domains after a round, in a confidence bin",
            (ROUND, PARTICIPANT, BIN, *BIN_FIELDS),
            lambda: _long(run, BIN_FIELDS),
        ),
        _Table("edges", "an edge of a graph", edges, lambda: _edges(run)),
    ]


def _named(field: Field, name: str) -> Field:
    return Field(name, field.dtype, field.units, field.long_name)


def _domains(run: Run, fields: Sequence[Field]) -> Iterator[Block]:
    names_D = np.array(run.metrics.texts("domain_name"), dtype=object)
    for round_, participant, domain, *values in _long(run, fields):
        yield [round_, participant, domain, names_D[domain], *values]


def _participants(run: Run) -> Iterator[Block]:
    metrics = run.metrics
    texts = [field.dtype == "S" for field in PARTICIPANT_FIELDS]
    columns = [
        np.array(metrics.texts(field.name), dtype=object) if is_text else metrics[field.name]
        for field, is_text in zip(PARTICIPANT_FIELDS, texts, strict=True)
    ]
    yield [metrics["participant"], *columns]


def _labels(run: Run) -> Iterator[Block]:
    samples_PC = run.metrics["label_histogram"]
    participant, label = np.indices(samples_PC.shape)
    yield [participant.ravel(), label.ravel(), samples_PC.ravel()]


def _edges(run: Run) -> Iterator[Block]:
    ends_E2 = run.metrics["graph_edges"]
    yield [run.metrics["graph_since_round"], ends_E2[:, 0], ends_E2[:, 1]]


def _long(run: Run, fields: Sequence[Field], known_only: bool = True) -> Iterator[Block]:
    """Yield arrays of the same dimensions in long form: one index column per dimension, one column per array.

    Parameters
    ----------
    known_only : bool
        True: leave out rows in which every value is NaN.
    """
    metrics = run.metrics
    dims = metrics.dimensions[fields[0].name]
    inner = [len(metrics[dim]) for dim in dims[1:]]
    step = max(1, BLOCK_ROWS // max(1, math.prod(inner)))
    for first in range(0, metrics.rounds, step):
        rounds_R = metrics["round"][first : first + step]
        values = [metrics.part(field.name, (slice(first, first + step),)).ravel() for field in fields]
        index = np.indices((len(rounds_R), *inner)).reshape(len(dims), -1)
        columns = [rounds_R[index[0]], *index[1:], *values]
        if known_only:
            known = ~np.logical_and.reduce([np.isnan(column) for column in values])
            columns = [column[known] for column in columns]
        yield columns
