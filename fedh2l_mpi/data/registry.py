"""A data set's name to its reader."""

from fedh2l_mpi.data import sources
from fedh2l_mpi.data.sources import Source


def open_source(name: str, root: str | None) -> Source:
    """The data set that the config names.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """
    if name == "pack":
        # h5py's 11 MiB are for the ranks that need them.
        from fedh2l_mpi.data.pack_reader import open_pack

        return open_pack(root)
    return sources.digits() if name == "digits" else sources.idx(name, root)
