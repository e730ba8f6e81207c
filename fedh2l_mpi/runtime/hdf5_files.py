"""Write HDF5 files so that every failed write raises an error, and none of them crashes the process.

HDF5 keeps values in memory until it flushes them. If a write fails while a dataset's last handle is dropped, h5py can
only print a warning, and the values are lost. A writer therefore keeps the handles of its datasets until `finish`.

If a write fails while the file is closed, HDF5 keeps a handle to freed memory, and the process is killed at its next
use. `finish` therefore flushes the file and then lets HDF5 close onto a scratch file in memory, where no write fails.
After a flush, closing only clears the consistency flags of the superblock, and this module writes these itself.

h5py is imported when a file is opened, because not every process needs its 11 MiB of memory.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedh2l_mpi.runtime import atomic_files, hdf5_superblock

if TYPE_CHECKING:
    import h5py


def create(path: Path, mode: str = "x", **options: Any) -> "h5py.File":
    """Open an HDF5 file for writing, in the format of HDF5 1.10 and without a lock. Close it by `finish` or `abandon`.

    No lock is needed, because every file is written under a temporary name or the run's own lock. HDF5 would ask for
    one by flock, which some network file systems refuse.

    Parameters
    ----------
    mode : {"x", "r+"}
        Create a new file, or change one.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    import h5py

    return h5py.File(path, mode, libver=("v110", "v110"), locking=False, **options)


@contextlib.contextmanager
def writing(path: Path, mode: str = "x", **options: Any) -> Iterator["h5py.File"]:
    """Open a file for writing like `create`, and finish it; after an error inside the context, abandon it.

    Raises
    ------
    OSError, RuntimeError
        If it cannot be written. HDF5 raises either of them if the disk is full.
    """
    file = create(path, mode, **options)
    try:
        yield file
    except BaseException:
        abandon(file)
        raise
    finish(file)


def finish(file: "h5py.File") -> None:
    """Write everything to the disk, and close the file. After an error, it is closed, too.

    Raises
    ------
    OSError, RuntimeError
        If something cannot be written. HDF5 raises either of them if the disk is full.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(abandon, file)
        file.flush()
        own = stack.enter_context(os.fdopen(os.dup(file.id.get_vfd_handle()), "r+b", buffering=0))
        # The values come first, because a file with cleared flags counts as whole.
        atomic_files.sync_file(own)
        abandon(file)
        _clear_flags(own.fileno())
        atomic_files.sync_file(own)


def reason(error: OSError | RuntimeError) -> str:
    """Return the system's text for a failed write, such as `No space left on device`; empty for any other error.

    HDF5's own message has several lines, and HDF5 raises a RuntimeError for some of its writes.
    """
    found = re.search(r"error message = '([^']*)'", str(error))
    if found is not None:
        return found[1]
    return (error.strerror or str(error)) if isinstance(error, OSError) else ""


def abandon(file: "h5py.File") -> None:
    """Close the file without writing to it any more. It can be read as if the process had been killed here.

    It never raises, and a closed file stays as it is.
    """
    if not file.id.valid or file.id.locked:
        return
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        scratch = _scratch()
        os.dup2(scratch, file.id.get_vfd_handle(), inheritable=False)
        os.close(scratch)
    # A flush that failed leaves HDF5's cache in a state in which closing fails, even though every write works.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        file.close()
    if file.id.valid:
        # HDF5 has freed the file, but not its identifier, so h5py must never close it again.
        file.id.locked = True


def _scratch() -> int:
    """Return the descriptor of an empty file without a name, in memory if the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("closed HDF5 file")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _clear_flags(descriptor: int) -> None:
    superblock = os.pread(descriptor, hdf5_superblock.SUPERBLOCK_BYTES, 0)
    if superblock[hdf5_superblock.VERSION_AT] < hdf5_superblock.VERSION_WITH_FLAGS:
        return
    # HDF5 records the end of the file only when it closes it, and refuses to read behind the recorded end.
    cleared = hdf5_superblock.clear_flags(superblock, os.fstat(descriptor).st_size)
    written = 0
    while written < len(cleared):
        written += os.pwrite(descriptor, cleared[written:], written)
