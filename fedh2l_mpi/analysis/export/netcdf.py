"""Write a run as netCDF, as `open_run` shows it."""

import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedh2l_mpi.analysis.dataset import attributes_of, run_dataset
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.runtime import hdf5_files
from fedh2l_mpi.runtime.libraries import require

# Size of the arrays in memory at a time; a larger array is written alone.
BATCH_BYTES = 2**26
PLAIN_NAME = re.compile("[a-z][a-z0-9_]*")


def write_netcdf(run: Run, file: Path) -> None:
    """Write one file, and read it again to see that it has everything."""
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
