"""Reader of a pack: samples in one HDF5 file, read by row. `pack_writer` and `array_pack` write it.

Schema 1: photographs of natural domains. `image` uint8 (N, K, S, S) is stored contiguously, so a row is one seek and
one read. `label` and `domain` int64 (N,) index `class_name` and `domain_name`. `source` (N,) is each picture's path
below the packed folder. `source_sha256` is the digest of its file, `image_sha256` that of its row of `image`. `skipped`
and `skipped_reason` name the pictures that could not be read. Strings are UTF-8 of a fixed length.

Schema 2: the same, but it may lack the arrays of domains, and may have `part` uint8 (N,), 1 in the rows for testing.
Instead of photographs, it may have `sample` (N, X) with `sample_sha256`: uint8, float32, or int32 token ids. Then the
attributes `kind` and `vocabulary` are those of the samples' form, and `full_scale`, `mean` and `std` normalise them.

The attribute `digest` covers all arrays, and the attributes of schema 2; samples are covered through their digests.
Opening a pack checks everything except the samples, and reading a row checks this row.

Shape letters: N rows, K channels, S side, X the axes of one sample.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data.sources import LARGEST_SIDE, NaturalDomains, Source, located
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import paths, safe_hdf5
from fedh2l_mpi.sample_form import SampleForm

if TYPE_CHECKING:
    import h5py

SCHEMA_VERSION = 1
# With a test part, without domains, or with other samples than photographs.
SCHEMA_OF_ANY = 2
FORMAT = "fedh2l_mpi pack"
# Name and meaning of every array.
ARRAYS = {
    "image": "pixels, rows from the top",
    "label": "class of the image, an index into class_name",
    "domain": "domain of the image, an index into domain_name",
    "class_name": "what the class is",
    "domain_name": "what the domain is",
    "source": "path of the picture below the packed folder",
    "source_sha256": "SHA-256 of the picture's file",
    "image_sha256": "SHA-256 of the image's pixels in this file",
    "skipped": "path of a picture that could not be read",
    "skipped_reason": "why it could not be read",
}
# Arrays that only schema 2 has.
ADDED = {
    "part": "1 in the rows for testing, 0 in the others",
    "sample": "samples",
    "sample_sha256": "SHA-256 of the sample in this file",
}
MEANINGS = {**ARRAYS, **ADDED}
# Arrays without which there is no pack of schema 2.
NEEDED = ("label", "class_name")
# Attributes of schema 2 that the digest covers.
FACTS = ("kind", "vocabulary", "full_scale", "mean", "std")
HOW_TO_MAKE = "python -m fedh2l_mpi pack FOLDER OUT.h5 makes one of FOLDER/<domain>/<class>/*.jpg"
REPAIR = "Copy the pack again, or make a new one."
PIECE = 1 << 16
# Mean and deviation by number of channels: ImageNet's, with which pretrained weights were trained, and those of its
# luminance.
NORMALISATION = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.459,), (0.226,)),
}


def digest(file: "Mapping[str, h5py.Dataset]", facts: tuple[object, ...] = ()) -> str:
    """Return the SHA-256 of a pack's content; packs of the same samples have equal digests.

    Parameters
    ----------
    facts : tuple
        Values of the attributes FACTS in schema 2; empty for schema 1.
    """
    values = file["image" if "image" in file else "sample"]
    schema = SCHEMA_OF_ANY if facts else SCHEMA_VERSION
    sha = hashlib.sha256(repr((FORMAT, schema, values.shape, values.dtype.str, *facts)).encode())
    names = [name for name in MEANINGS if name in file] if facts else list(ARRAYS)
    for name in names:
        if name not in ("image", "sample"):
            array = file[name]
            sha.update(repr((name, array.shape, array.dtype.str)).encode())
            # Reading in pieces spares every rank the paths of half a million pictures.
            for first in range(0, len(array), PIECE):
                sha.update(array[first : first + PIECE].tobytes())
    return sha.hexdigest()


def facts_of(attributes: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the values of the attributes FACTS of a pack of schema 2, as texts and Python numbers."""
    found = []
    for name in FACTS:
        value = attributes[name]
        found.append(_text(value) if isinstance(value, bytes) else np.asarray(value).tolist())
    return tuple(found)


@dataclass(frozen=True)
class PackTable:
    """Samples of a pack; its file is open only while rows are read.

    Attributes
    ----------
    sha256 : bytes (N,)
        Digest of every row of the file.
    array : str
        Name of the array in the file.
    in_file : int64 (rows of the table,) or None
        Row of the file of each row of the table; None: the same.
    """

    path: Path
    labels: NDArray[np.int64]
    sha256: NDArray[np.bytes_]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    array: str
    in_file: NDArray[np.int64] | None = None
    reads_pieces = True

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the samples of `rows`, (len(rows), X); neighbouring rows are read together."""
        ordered, where = np.unique(rows if self.in_file is None else self.in_file[rows], return_inverse=True)
        samples = np.empty((len(ordered), *self.shape), dtype=self.dtype)
        # Bounds of the groups of neighbouring rows.
        bounds = [0, *(np.flatnonzero(np.diff(ordered) != 1) + 1).tolist(), len(ordered)] if len(ordered) else [0]
        with _opened(self.path) as file:
            dataset = file[self.array]
            for begin, end in itertools.pairwise(bounds):
                source = np.s_[int(ordered[begin]) : int(ordered[end - 1]) + 1]
                dataset.read_direct(samples, source, np.s_[begin:end])
        for row, sample in zip(ordered, samples, strict=True):
            if hashlib.sha256(sample.data).hexdigest().encode() != self.sha256[row]:
                raise UserError(f"{self.path}: the {self.array} in row {row} is damaged. {REPAIR}")
        return samples if np.array_equal(where, np.arange(len(rows))) else samples[where]

    def verify(self) -> None:
        """Read and check every sample."""
        for piece in np.split(np.arange(len(self.labels)), range(256, len(self.labels), 256)):
            self.samples(piece)


def open_pack(root: str | None) -> Source:
    """Open the pack at `root`; without a test part, the config's `data.test_share` of it is kept for testing.

    Parameters
    ----------
    root : str or None
        The file; None means `$FEDH2L_DATA/pack.h5`.

    Raises
    ------
    UserError
        If there is no such file, or it is not a pack, or it is damaged.
    """
    path = _path(root)
    with _opened(path) as file:
        schema = _schema(path, file)
        is_any = schema == SCHEMA_OF_ANY
        array = "sample" if "sample" in file else "image"
        missing = [name for name in ((*NEEDED, array, f"{array}_sha256") if is_any else ARRAYS) if name not in file]
        missing += [f"attribute {name}" for name in (FACTS if is_any else ()) if name not in file.attrs]
        if missing:
            raise UserError(f"{path}: the pack is damaged: it has no {', '.join(missing)}. {REPAIR}")
        facts = facts_of(file.attrs) if is_any else ()
        if file.attrs["digest"] != digest(file, facts).encode():
            raise UserError(f"{path}: the pack is damaged: its digest does not match its content. {REPAIR}")
        _check_arrays(path, file, array)
        values = file[array]
        if len(values) == 0:
            raise UserError(f"{path}: the pack has no images. Make a new one.")
        form, full_scale, mean, std = _meaning(path, values.shape[1:], values.dtype, facts)
        labels, part = file["label"][()], file["part"][()] if is_any and "part" in file else None
        table = PackTable(path, labels, file[f"{array}_sha256"][()], form.shape, values.dtype, array)
        domains = file["domain"][()] if "domain" in file else None
        domain_names = tuple(map(_text, file["domain_name"][()])) if domains is not None else ()
        class_names = tuple(map(_text, file["class_name"][()]))
        content = bytes.fromhex(_text(file.attrs["digest"])) if is_any else b""
    train, test = table, None
    of_test_row = None
    if part is not None:
        rows = [np.flatnonzero(part == number) for number in (0, 1)]
        train, test = (replace(table, labels=labels[one], in_file=one) for one in rows)
        if domains is not None:
            domains, of_test_row = (domains[one] for one in rows)
    return Source(
        "pack",
        len(class_names),
        form,
        full_scale,
        mean,
        std,
        train=train,
        test=test,
        domains=None if domains is None else NaturalDomains(domain_names, domains, of_test_row),
        is_compact=form.kind == "image" and table.dtype == np.uint8,
        class_names=class_names,
        digest=content,
    )


def _meaning(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], facts: tuple[Any, ...]
) -> tuple[SampleForm, float, tuple[float, ...], tuple[float, ...]]:
    """Return the form of a pack's samples, their full scale, mean and deviation.

    Raises
    ------
    UserError
        If they do not fit the samples.
    """
    if not facts:
        return (SampleForm("image", shape), 255.0, *NORMALISATION[shape[0]])
    kind, vocabulary, full_scale, mean, std = facts
    try:
        form = SampleForm(kind, shape, vocabulary)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: the pack is damaged: {error}. {REPAIR}") from None
    wanted = {"tokens": "i4"}.get(kind, "u1" if kind == "image" and dtype == np.uint8 else "f4")
    numbers = [mean, std] if isinstance(mean, list) and isinstance(std, list) else [[]]
    fit = all(len(one) in (1, shape[0]) and np.isfinite(one).all() for one in numbers)
    if dtype != np.dtype(wanted) or not fit or not full_scale > 0 or min(numbers[-1]) <= 0:
        raise UserError(
            f"{path}: the pack is damaged: {dtype} {kind} with full scale, mean and std {facts[2:]}. {REPAIR}"
        )
    return form, float(full_scale), tuple(mean), tuple(std)


def _path(root: str | None) -> Path:
    where, path = located(root, "pack.h5", f"the path of a pack ({HOW_TO_MAKE})")
    if paths.is_folder(where, path):
        raise UserError(f"{where}: {path} is a folder. Make a pack of it: python -m fedh2l_mpi pack {path} OUT.h5")
    if not paths.is_file(where, path):
        raise UserError(f"{where}: there is no file {path}. It must be a pack: {HOW_TO_MAKE}.")
    return path


@contextmanager
def _opened(path: Path) -> Iterator[safe_hdf5.SafeFile]:
    """Open the file; any error in reading it becomes a UserError."""
    try:
        # A pack never changes once it has its name, so it needs no lock, which some cluster file systems lack.
        with safe_hdf5.open_file(path) as file:
            yield file
    except UserError:
        raise
    # HDF5 has no error of its own for a damaged file.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a pack. It is incomplete or damaged: {error}") from None


def _check_arrays(path: Path, file: safe_hdf5.SafeFile, array: str) -> None:
    """Refuse a pack whose digest is right but whose arrays do not fit together: another program wrote it."""
    values = file[array]
    count = values.shape[0] if values.ndim else 0
    wrong = []
    if array == "image":
        is_square = values.ndim == 4 and values.shape[2] == values.shape[3] <= LARGEST_SIDE
        if values.dtype != np.uint8 or not is_square or values.shape[1] not in NORMALISATION:
            wrong.append(f"image is {values.dtype} {values.shape}")
    elif values.ndim < 2 or values.dtype.kind not in "uif":
        wrong.append(f"sample is {values.dtype} {values.shape}")
    for name, names in (("label", "class_name"), ("domain", "domain_name")):
        if name == "domain" and "domain" not in file:
            continue
        # The lengths first: they bound what is read.
        if file[name].shape != (count,) or file[name].dtype != np.int64 or names not in file or file[names].ndim != 1:
            wrong.append(f"{name} is {file[name].dtype} {file[name].shape}")
        elif count and not 0 <= (numbers := file[name][()]).min() <= numbers.max() < len(file[names]):
            wrong.append(f"{name} has a number that is no index into {names}")
    if file[f"{array}_sha256"].shape != (count,):
        wrong.append(f"{array}_sha256 is {file[f'{array}_sha256'].shape}")
    if "part" in file and (
        file["part"].shape != (count,) or file["part"].dtype != np.uint8 or set(np.unique(file["part"][()])) != {0, 1}
    ):
        wrong.append(f"part is {file['part'].dtype} {file['part'].shape}, without rows of both parts")
    if wrong:
        raise UserError(f"{path}: the pack is damaged: {', '.join(wrong)}. {REPAIR}")


def _schema(path: Path, file: safe_hdf5.SafeFile) -> int:
    """Return the schema of a pack; raise UserError if it is no pack, or one that cannot be read."""
    got = file.attrs.get("format")
    if got != FORMAT.encode():
        why = f"its format is {_text(got)!r}" if isinstance(got, bytes) else "it has no attribute `format`"
        raise UserError(f"{path}: an HDF5 file, but not a pack: {why}. {HOW_TO_MAKE}.")
    schema = file.attrs.get("schema_version")
    if schema not in (SCHEMA_VERSION, SCHEMA_OF_ANY):
        raise UserError(
            f"{path}: has schema {schema}, but this version reads schema {SCHEMA_VERSION} and {SCHEMA_OF_ANY}. Make a "
            "new pack."
        )
    return int(schema)


def _text(value: bytes) -> str:
    # A folder's name need not be UTF-8.
    return value.decode(errors="replace")
