"""Atomic file writes: write to a temporary name, fsync, rename. No other module of the package calls fsync or renames.

A file system may store a name before the content of its file. If the machine loses power in between, the file is empty.
It imports the standard library only, because the small watchdog process uses it, too.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Errors of file systems without hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace a file atomically: a reader finds the whole old content or the whole new one, even after a kill.

    Parameters
    ----------
    durable : bool
        True: wait until the content is on the disk, so that it survives a crash of the machine.

    Raises
    ------
    OSError
        If it cannot be written; the old content is unchanged.
    """
    new = _temporary(path)
    try:
        with new.open("wb") as file:
            file.write(content)
            if durable:
                sync_file(file)
        move(new, path, durable)
    except OSError:
        # A failure to remove it would hide the original error.
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace a small text file like `write_bytes`.

    On a full disk, the new text overwrites the old one in place, which needs no space if the old one is longer.

    Raises
    ------
    OSError
        If neither works.
    """
    content = text.encode()
    try:
        write_bytes(path, content, durable)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
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


def create(path: Path, content: bytes) -> None:
    """Create a file that has its whole content as soon as it has its name, even after a crash of the machine.

    If several processes create the same file, one of them succeeds.

    Raises
    ------
    FileExistsError
        If the name is taken.
    OSError
        If the file cannot be written.
    """
    new = _temporary(path)
    try:
        # Remove the file first, because a killed process with this pid may have left it as a link to the final file.
        new.unlink(missing_ok=True)
        with new.open("wb") as file:
            file.write(content)
            sync_file(file)
        try:
            os.link(new, path)
        except FileExistsError:
            # Count the links, because NFS reports this also after success, if the answer was lost and the client
            # asked again. Source: open(2), O_EXCL.
            if new.stat().st_nlink != 2:
                raise
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with path.open("xb") as file:
                file.write(content)
                sync_file(file)
    finally:
        new.unlink(missing_ok=True)


def publish(source: Path, target: Path) -> None:
    """Give a complete file or folder its final name, once its content is on the disk. A file replaces an older one.

    Raises
    ------
    OSError
        If the disk is full or fails, or the name is that of another folder.
    """
    for path in (*source.rglob("*"), source):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                sync_file(file)
    move(source, target)


def move(source: Path, target: Path, durable: bool = True) -> Path:
    """Rename a file or folder whose content is on the disk already, or does not matter; return its new path.

    Parameters
    ----------
    durable : bool
        True: wait until the new name is on the disk.

    Raises
    ------
    OSError
        If it cannot be renamed, or the disk fails.
    """
    source.rename(target)
    if durable:
        for folder in {source.parent, target.parent}:
            sync_folder(folder)
    return target


def _temporary(path: Path) -> Path:
    # The host is part of the name, because processes of several machines may write into a folder. The run's lock
    # removes such files of killed processes.
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.new")


def sync_file(file: IO[bytes]) -> None:
    """Wait until the content of an open file is on the disk.

    Raises
    ------
    OSError
        If the disk is full or fails.
    """
    file.flush()
    sync_descriptor(file.fileno())


def sync_descriptor(descriptor: int) -> None:
    """Wait until the content of an open file is on the disk, as `sync_file`, for a file without a Python object."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> bool:
    """Wait until files that were created, renamed or removed in a folder are so on the disk, too.

    Returns
    -------
    bool
        False if the file system has no fsync of a folder: some network file systems send names to the server at once.

    Raises
    ------
    OSError
        If the folder cannot be opened, or the disk fails.
    """
    with open_folder(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
            return False
    return True


@contextlib.contextmanager
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
