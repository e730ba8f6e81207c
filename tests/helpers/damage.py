"""Damage to files, and disks that fail."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import h5py


@contextlib.contextmanager
def failing_writes(file: h5py.File, path: Path) -> Iterator[None]:
    """Let every write of HDF5 to this open file fail (EBADF), while reads work."""
    descriptor = file.id.get_vfd_handle()
    sound, read_only = os.dup(descriptor), os.open(path, os.O_RDONLY)
    os.dup2(read_only, descriptor)
    try:
        yield
    finally:
        if file.id.valid and not file.id.locked:
            os.dup2(sound, descriptor)
        os.close(sound)
        os.close(read_only)


def flip_a_byte(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)
