"""Export runs for other programs: tidy tables as CSV or Parquet, labelled arrays as netCDF, events for TensorBoard."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.csv_lines import CsvLines
from fedh2l_mpi.analysis.dataset import attributes_of
from fedh2l_mpi.analysis.export.netcdf import write_netcdf
from fedh2l_mpi.analysis.export.tables import Table, joined, tables_of
from fedh2l_mpi.analysis.export.tensorboard import write_events
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import atomic_files, hdf5_files
from fedh2l_mpi.runtime.libraries import require

FORMATS = ("csv", "parquet", "netcdf", "tensorboard")


def export(runs: Mapping[str, Run], to: str, out: Path | None = None) -> list[Path]:
    """Write runs in another format, and return the files that were written.

    CSV and Parquet are a folder with one table for each kind of observation: `rounds`, `domains`, `participants`,
    `labels`, `calibration`, `edges` and, at the end of a run, `classes` and `confusion`. Its `about.json` has the runs'
    attributes, and units and meaning of every column. A row without any known value is left out, such as a round
    without evaluation in `domains`. An unknown value is an empty cell, or a null in Parquet. Numbers are exact. In CSV,
    a text that a spreadsheet would run as a formula has an apostrophe in front. Tables of several runs begin with the
    run's name and the config keys in which the runs differ.

    netCDF is one file of one run, as `open_run` shows it. TensorBoard gets a folder for each run in `out`, which may
    have other runs already.

    Parameters
    ----------
    runs : mapping
        Runs by their names, at least one.
    to : {"csv", "parquet", "netcdf", "tensorboard"}
    out : path or None
        Folder or file to make; None: next to the metrics file of the only run, with its name.

    Raises
    ------
    UserError
        If `out` exists or cannot be written, the format cannot hold several runs, or the library that writes the
        format is missing.
    """
    if to not in FORMATS:
        raise UserError(f"export: got the format {to!r}. Known: {', '.join(FORMATS)}.")
    if len(runs) > 1 and to == "netcdf":
        raise UserError(
            f"--to netcdf: a file has one run, but {len(runs)} were named. Fix: name one run, or write all of them in "
            "Python by fh.open_runs(...).to_netcdf(...)."
        )
    if len(runs) > 1 and out is None:
        raise UserError(f"--out: {len(runs)} runs were named, and no folder for them. Fix: give --out FOLDER.")
    (first, *_) = runs.values()
    if out is None:
        ending = ".nc" if to == "netcdf" else f"-{to}"
        out = first.file.with_name(f"{first.file.stem}{ending}")
    if to == "tensorboard":
        folders = {name: out / name for name in runs}
        _refuse_present(folders.values())
        return [file for name, run in runs.items() for file in _publish(_events_of(run), folders[name])]
    _refuse_present([out])
    if to == "netcdf":
        return _publish(lambda growing: write_netcdf(first, growing), out)
    writers = {"csv": _csv_writer, "parquet": _parquet_writer}
    return _publish(lambda growing: _write_tables(runs, growing, writers[to](growing)), out)


def _refuse_present(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: it exists already. Choose another name with --out, or remove it.")


def _events_of(run: Run) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with run.metrics.opened():
            write_events(run, folder)

    return write


def _publish(write: Callable[[Path], None], out: Path) -> list[Path]:
    """Write under a temporary name and rename it, so that a file or folder with the right name is always whole."""
    growing = out.with_name(f"{out.name}.new-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(growing)
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


def _write_tables(runs: Mapping[str, Run], folder: Path, write: Callable[[Table], int]) -> None:
    """Write all tables into a new folder, by a function that writes one and returns its number of rows."""
    folder.mkdir()
    if len(runs) > 1:
        rows_by_table = {table: write(table) for table in joined(runs)}
    else:
        (run,) = runs.values()
        with run.metrics.opened():
            rows_by_table = {table: write(table) for table in tables_of(run)}
    _write_about(runs, folder, rows_by_table)


def _csv_writer(folder: Path) -> Callable[[Table], int]:
    def write(table: Table) -> int:
        rows = 0
        with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
            lines = CsvLines(file)
            lines.write([[field.name for field in table.fields]])
            for block in table.blocks():
                lines.write(zip(*map(_cells, block), strict=True))
                rows += len(block[0])
        return rows

    return write


def _cells(column: NDArray[Any]) -> list[Any]:
    """Return a column as Python values, whose text is exact; NaN becomes an empty text."""
    values: list[Any] = column.tolist()
    if column.dtype.kind == "f" and np.isnan(column).any():
        return ["" if math.isnan(value) else value for value in values]
    return values


def _parquet_writer(folder: Path) -> Callable[[Table], int]:
    pyarrow = require("pyarrow", "--to parquet")
    require("pyarrow.parquet", "--to parquet")
    types = {"i": pyarrow.int64(), "f": pyarrow.float64(), "S": pyarrow.string()}

    def write(table: Table) -> int:
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

    return write


def _write_about(runs: Mapping[str, Run], folder: Path, rows_by_table: Mapping[Table, int]) -> None:
    """Write the description of the tables. Call it last, because reading the arrays may reveal damage."""
    sources = {
        name: {"source": str(run.file.absolute()), "attributes": attributes_of(run)} for name, run in runs.items()
    }
    about: dict[str, Any] = {"runs": sources} if len(runs) > 1 else dict(*sources.values())
    about["tables"] = {
        table.name: {
            "meaning": table.meaning,
            "rows": rows,
            "columns": {field.name: {"units": field.units, "long_name": field.long_name} for field in table.fields},
        }
        for table, rows in rows_by_table.items()
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    # A folder's name may contain bytes that are not UTF-8.
    (folder / "about.json").write_text(text, encoding="utf-8", errors="replace")
