"""Atomic file writes: write to a temporary name, fsync, rename.

It imports the standard library only, because the small watchdog process uses it, too.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace a small text file atomically: a reader finds the whole old text or the whole new text, even after a kill.

    On a full disk, the new text overwrites the old one in place, which needs no space if the old one is longer.

    Parameters
    ----------
    durable : bool
        True: wait until the text is on the disk, so that it survives a crash of the machine.

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
            # Overwrite the rest of a longer old text with blank lines, which readers of a status ignore.
            file.write(content + b"\n" * max(0, room - len(content)))
            if durable:
                sync_file(file)
    except OSError:
        raise full from None


def sync_file(file: IO[bytes]) -> None:
    """Wait until the content of an open file is on the disk.

    Raises
    ------
    OSError
        If the disk is full or fails.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until files that were created, renamed or removed in a folder are so on the disk, too.

    Raises
    ------
    OSError
        If the folder cannot be opened, or the disk fails.
    """
    with open_folder(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems do not support fsync of a folder. They send names to the server at once.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open a folder, and yield its file descriptor.

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
