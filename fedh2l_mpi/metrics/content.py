"""What a closed metrics file holds, as one digest: it tells of a changed bit in an array, as HDF5 itself would not."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import h5py

BLOCK_BYTES = 2**24


def content_digest(file: "h5py.File") -> str:
    """SHA-256, in hexadecimal, of every array's name, type, shape and values, in the order of names.

    Independent of how HDF5 lays the arrays out: a copy by `h5repack` has the same.
    """
    sha = hashlib.sha256()
    for name in sorted(file):
        dataset = file[name]
        sha.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode())
        rows = max(1, BLOCK_BYTES // max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))))
        for first in range(0, dataset.shape[0], rows):
            sha.update(np.ascontiguousarray(dataset[first : first + rows]).data)
    return sha.hexdigest()
