"""Registry of data sets: open one by its name."""

from fedh2l_mpi.data import sources
from fedh2l_mpi.data.sources import Source


def open_source(name: str, root: str | None) -> Source:
    """Open the data set that the config names.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """
    if name == "pack":
        # Only ranks that read a pack should pay for h5py's 11 MiB.
        from fedh2l_mpi.data.pack_reader import open_pack

        return open_pack(root)
    return sources.digits() if name == "digits" else sources.idx(name, root)
