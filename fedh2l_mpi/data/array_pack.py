"""Pack of any samples: an npz file, or what a user's own function returns, as one HDF5 file (see `pack_reader`).

Shape letters: N rows, training rows first, X the axes of one sample.
"""

import datetime
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedh2l_mpi.config.data import TEST_SHARE
from fedh2l_mpi.config.data_files import Npz
from fedh2l_mpi.data import pack_reader as packs
from fedh2l_mpi.data.npz_reader import open_npz
from fedh2l_mpi.data.own_data import open_own
from fedh2l_mpi.data.pack_writer import check_out, describe, published, texts, write_attributes
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import hdf5_files

# Bytes of samples that are read and written at a time.
PIECE_BYTES = 1 << 23
# Most bytes that a sample's row needs in addition to its values.
EXTRA = 256


@dataclass(frozen=True)
class PackedArrays:
    """Summary of a pack of arrays that was written."""

    path: Path
    source: Source
    digest: str

    def report(self) -> str:
        """Summarise the pack in a few lines."""
        source = self.source
        counts = [len(table.labels) for table in source.tables]
        lines = [
            f"pack: {self.path}",
            f"{sum(counts):,} {source.form}, {source.classes} classes, {self.path.stat().st_size:,} bytes, digest "
            f"{self.digest[:16]}",
        ]
        if source.domains is not None:
            lines.append(f"{len(source.domains.names)} domains: {', '.join(source.domains.names[:20])}")
        if source.test is not None:
            lines.append(f"{counts[0]:,} samples for training, {counts[1]:,} for testing")
        return "\n".join(lines)


def pack_arrays(root: str, out: Path, progress: Callable[[int, int], None]) -> PackedArrays:
    """Write a pack of an npz file or of a user's own function.

    Parameters
    ----------
    root : str
        Path of the file, or `package.module:function`.
    out : Path
        File to make; must not exist.
    progress : callable
        Called with the number of finished samples and the number of all samples.

    Raises
    ------
    UserError
        If the pack cannot be made; then no file remains.
    """
    check_out(out)
    source = _source(root)
    counts = [len(table.labels) for table in source.tables]
    item = {"tokens": "i4"}.get(source.form.kind, "u1" if source.is_compact else "f4")
    needed = sum(counts) * (source.form.numbers * np.dtype(item).itemsize + EXTRA)
    if shutil.disk_usage(out.parent).free < needed:
        raise UserError(f"{out}: the pack needs about {needed:,} bytes, which its disk does not have.")
    with published(out, f"about {needed:,} bytes") as partial:
        digest = _write(partial, source, root, np.dtype(item), progress)
    return PackedArrays(out, source, digest)


def _source(root: str) -> Source:
    """Open the npz file or call the function."""
    module, colon, name = root.rpartition(":")
    if colon and module and name and not Path(root).exists():
        return open_own("ROOT", root, {}, TEST_SHARE)
    if Path(root).is_dir() or not root.endswith(".npz"):
        raise UserError(f"{root}: the layout arrays packs a .npz file, or a function as package.module:function.")
    return open_npz(Npz(name="npz", root=root))


def _write(
    partial: Path, source: Source, root: str, item: "np.dtype[np.generic]", progress: Callable[[int, int], None]
) -> str:
    """Write the file, and return its digest."""
    tables, natural = source.tables, source.domains
    total = sum(len(table.labels) for table in tables)
    digests: list[str] = []
    with hdf5_files.writing(partial) as file:
        samples = file.create_dataset("sample", shape=(total, *source.form.shape), dtype=item)
        step = max(1, PIECE_BYTES // (source.form.numbers * item.itemsize))
        for table in tables:
            for first in range(0, len(table.labels), step):
                rows = np.arange(first, min(first + step, len(table.labels)))
                values = np.ascontiguousarray(table.samples(rows), dtype=item)
                samples[len(digests) : len(digests) + len(rows)] = values
                digests += [hashlib.sha256(value.data).hexdigest() for value in values]
                progress(len(digests), total)
        names = source.class_names or tuple(map(str, range(source.classes)))
        arrays = {
            "label": np.concatenate([table.labels for table in tables]),
            "class_name": texts(names),
            "sample_sha256": texts(digests),
        }
        if natural is not None:
            parts = [natural.of_row] + ([] if natural.of_test_row is None else [natural.of_test_row])
            arrays |= {"domain": np.concatenate(parts), "domain_name": texts(natural.names)}
        if source.test is not None:
            arrays["part"] = np.repeat(np.array([0, 1], dtype=np.uint8), [len(table.labels) for table in tables])
        # The handles are kept, because h5py reports no failed write of a dataset whose last handle is dropped.
        datasets = {"sample": samples} | {name: file.create_dataset(name, data=array) for name, array in arrays.items()}
        for name, dataset in datasets.items():
            describe(name, dataset)
        facts = {
            "kind": source.form.kind,
            "vocabulary": source.form.vocabulary,
            "full_scale": float(source.full_scale),
            "mean": np.atleast_1d(source.mean),
            "std": np.atleast_1d(source.std),
        }
        write_attributes(file, facts)
        digest = packs.digest(file, packs.facts_of(file.attrs))
        attributes = {
            "format": packs.FORMAT,
            "schema_version": packs.SCHEMA_OF_ANY,
            "layout": "arrays",
            "samples": total,
            "classes": source.classes,
            "domains": 0 if natural is None else len(natural.names),
            "root": root,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "digest": digest,
        }
        write_attributes(file, attributes)
    return digest
