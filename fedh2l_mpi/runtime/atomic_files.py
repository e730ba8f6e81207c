"""Files that are whole whatever happens: written under another name, durable to the disk, then renamed.

Imports nothing but the standard library: a process that only watches over a run uses it, too.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Put a small text in a file's place: a reader finds the old one or the new one, whole, also after a kill.

    On a full disk it is written over the old one in place, which needs no room, if that is long enough.

    Parameters
    ----------
    durable : bool
        Whether it has to be on the disk when this returns: then it survives the loss of the machine, too.

    Raises
    ------
    OSError
        If neither works.
    """
    new = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    content = text.encode()
    try:
        with new.open("wb") as file:
            file.write(content)
            if durable:
                sync_file(file)
        new.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        new.unlink(missing_ok=True)
        _overwrite(path, content, durable, error)


def _overwrite(path: Path, content: bytes, durable: bool, full: OSError) -> None:
    try:
        with path.open("rb+") as file:
            room = os.fstat(file.fileno()).st_size
            # The rest of a longer old text would follow the new one: blank lines are no lines of a status.
            file.write(content + b"\n" * max(0, room - len(content)))
            if durable:
                sync_file(file)
    except OSError:
        raise full from None


def sync_file(file: IO[bytes]) -> None:
    """Wait until what was written into a file is on the disk.

    Raises
    ------
    OSError
        If it cannot get there: the disk is full, or fails.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until what was created, renamed and removed in a folder is on the disk.

    Raises
    ------
    OSError
        If the folder cannot be opened, or it cannot get there.
    """
    with open_folder(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems know no fsync of a folder: they send names to the server at once.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """A descriptor of a folder; not for files, which it would open for reading alone.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
