"""Registry of data sets: open the one that the config names."""

from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data import sources
from fedh2l_mpi.data.sources import Source


def open_source(data: DataConfig) -> Source:
    """Open the data set of section `data` of the config.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """
    if data.name == "pack":
        # Only ranks that read a pack should pay for h5py's 11 MiB.
        from fedh2l_mpi.data.pack_reader import open_pack

        return open_pack(data.root)
    return sources.digits() if data.name == "digits" else sources.idx(data.name, data.root)
