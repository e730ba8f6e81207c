"""Read a metrics file's first rounds as the tables they were written from, to check them or to resume after them.

Shape letters: R rounds, P participants, D domains, K confidence bins, W width of a row.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.metrics.reader import look
from fedh2l_mpi.metrics.rows import digested, row_width
from fedh2l_mpi.metrics.schema import BIN_FIELDS, DOMAIN_FIELDS, NEWER, ROW_FIELDS

if TYPE_CHECKING:
    from fedh2l_mpi.runtime.safe_hdf5 import SafeFile

BLOCK_BYTES = 2**24


def tables(path: Path, rounds: int) -> Iterator[NDArray[np.float64]]:
    """Yield the tables of rounds 0 to `rounds` - 1 in blocks, float64 (R, P, W), each as it was appended.

    Arrays of NEWER that an earlier version did not record are NaN.

    Raises
    ------
    ValueError
        If a round is missing or an array is damaged.
    UserError
        If the file is not a metrics file.
    """
    run = look(path)
    with run.opened():
        if run.rounds < rounds or run["round"][:rounds].tolist() != list(range(rounds)):
            raise ValueError(f"holds {run.rounds} rounds, but the first {rounds} are needed")
        participants = len(run["participant"])
        row_bytes = 8 * participants * row_width(len(run["domain"]), run.columns)
        fields = (*ROW_FIELDS, *DOMAIN_FIELDS, *BIN_FIELDS, *run.columns.by_participant, *run.columns.by_domain)
        names = [field.name for field in fields]
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for first in range(0, rounds, step):
            rows = (slice(first, min(first + step, rounds)),)
            arrays = [run.part(name, rows) for name in names]
            columns = [values if values.ndim == 3 else values[..., None] for values in arrays]
            unknown = {name for name in NEWER if run.is_unknown(name)}
            damaged = [
                name for name in (field.name for field in fields) if name not in unknown and not run.is_whole(name)
            ]
            if damaged:
                raise ValueError(f"array {damaged[0]!r} is missing or damaged")
            yield np.concatenate(columns, axis=-1, dtype=np.float64)


def rows_digest(path: Path, rounds: int) -> str:
    """Return the SHA-256, in hexadecimal, of the tables of the first `rounds` rounds. Raises like `tables`."""
    sha = hashlib.sha256()
    for tables_RPW in tables(path, rounds):
        for table_PW in tables_RPW:
            sha.update(digested(table_PW).data)
    return sha.hexdigest()


def content_digest(file: "SafeFile") -> str:
    """Return the SHA-256, in hexadecimal, of every array's name, type, shape and values, in the order of names.

    The digest does not depend on the layout that HDF5 chose, so a copy by `h5repack` has the same digest.
    """
    sha = hashlib.sha256()
    for name in sorted(file):
        dataset = file[name]
        sha.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode())
        rows = max(1, BLOCK_BYTES // max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))))
        for first in range(0, dataset.shape[0], rows):
            sha.update(np.ascontiguousarray(dataset[first : first + rows]).data)
    return sha.hexdigest()
