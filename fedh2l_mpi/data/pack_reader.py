"""Reader of a pack: photographs of natural domains in one HDF5 file, read by row. `pack_writer` writes it.

Schema 1. `image` uint8 (N, K, S, S) is stored contiguously, so a row is one seek and one read. `label` and `domain`
int64 (N,) index `class_name` and `domain_name`. `source` (N,) is each picture's path below the packed folder.
`source_sha256` is the digest of its file, `image_sha256` that of its row of `image`. `skipped` and `skipped_reason`
name the pictures that could not be read. Strings are UTF-8 of a fixed length.

The attribute `digest` covers side, channels and all arrays; images are covered through `image_sha256`. Opening a pack
checks everything except the images, and reading a row checks this row.

Shape letters: N rows, K channels, S side.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data.sources import LARGEST_SIDE, NaturalDomains, Source, located
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import paths, safe_hdf5
from fedh2l_mpi.sample_form import SampleForm

if TYPE_CHECKING:
    import h5py

SCHEMA_VERSION = 1
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
HOW_TO_MAKE = "python -m fedh2l_mpi pack FOLDER OUT.h5 makes one of FOLDER/<domain>/<class>/*.jpg"
REPAIR = "Copy the pack again, or make a new one."
PIECE = 1 << 16
# Mean and deviation by number of channels: ImageNet's, with which pretrained weights were trained, and those of its
# luminance.
NORMALISATION = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.459,), (0.226,)),
}


def digest(file: "Mapping[str, h5py.Dataset]") -> str:
    """Return the SHA-256 of a pack's content; packs of the same pictures at the same size have equal digests."""
    image = file["image"]
    sha = hashlib.sha256(repr((FORMAT, SCHEMA_VERSION, image.shape, image.dtype.str)).encode())
    for name in ARRAYS:
        if name != "image":
            array = file[name]
            sha.update(repr((name, array.shape, array.dtype.str)).encode())
            # Reading in pieces spares every rank the paths of half a million pictures.
            for first in range(0, len(array), PIECE):
                sha.update(array[first : first + PIECE].tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class PackTable:
    """The images of a pack; its file is open only while rows are read."""

    path: Path
    labels: NDArray[np.int64]
    image_sha256: NDArray[np.bytes_]
    shape: tuple[int, int, int]
    reads_pieces = True

    def samples(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of `rows`, uint8 (len(rows), K, S, S); neighbouring rows are read together."""
        ordered, where = np.unique(rows, return_inverse=True)
        pixels = np.empty((len(ordered), *self.shape), dtype=np.uint8)
        # Bounds of the groups of neighbouring rows.
        bounds = [0, *(np.flatnonzero(np.diff(ordered) != 1) + 1).tolist(), len(ordered)] if len(ordered) else [0]
        with _opened(self.path) as file:
            for begin, end in itertools.pairwise(bounds):
                source = np.s_[int(ordered[begin]) : int(ordered[end - 1]) + 1]
                file["image"].read_direct(pixels, source, np.s_[begin:end])
        for row, image in zip(ordered, pixels, strict=True):
            if hashlib.sha256(image.data).hexdigest().encode() != self.image_sha256[row]:
                raise UserError(f"{self.path}: the image in row {row} is damaged. {REPAIR}")
        return pixels if np.array_equal(where, np.arange(len(rows))) else pixels[where]

    def verify(self) -> None:
        """Read and check every image."""
        for piece in np.split(np.arange(len(self.labels)), range(256, len(self.labels), 256)):
            self.samples(piece)


def open_pack(root: str | None) -> Source:
    """Open the pack at `root`; it has no test part, so the config's `data.test_share` of it is kept for testing.

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
        _check_format(path, file)
        missing = [name for name in ARRAYS if name not in file]
        if missing:
            raise UserError(f"{path}: the pack is damaged: it has no {', '.join(missing)}. {REPAIR}")
        if file.attrs["digest"] != digest(file).encode():
            raise UserError(f"{path}: the pack is damaged: its digest does not match its content. {REPAIR}")
        _check_arrays(path, file)
        labels, domains = file["label"][()], file["domain"][()]
        count, channels, side, _ = file["image"].shape
        names = [_text(name) for name in file["domain_name"][()]]
        table = PackTable(path, labels, file["image_sha256"][()], (channels, side, side))
        classes = len(file["class_name"])
    if count == 0:
        raise UserError(f"{path}: the pack has no images. Make a new one.")
    mean, std = NORMALISATION[channels]
    natural = NaturalDomains(tuple(names), domains)
    form = SampleForm.image(channels, side)
    return Source("pack", classes, form, 255.0, mean, std, train=table, test=None, domains=natural, is_compact=True)


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


def _check_arrays(path: Path, file: safe_hdf5.SafeFile) -> None:
    """Refuse a pack whose digest is right but whose arrays do not fit together: another program wrote it."""
    image = file["image"]
    count, channels, side, other_side = image.shape
    wrong = []
    if image.dtype != np.uint8 or channels not in NORMALISATION or side != other_side or side > LARGEST_SIDE:
        wrong.append(f"image is {image.dtype} {image.shape}")
    for name, names in (("label", "class_name"), ("domain", "domain_name")):
        # The lengths first: they bound what is read.
        if file[name].shape != (count,) or file[name].dtype != np.int64 or file[names].ndim != 1:
            wrong.append(f"{name} is {file[name].dtype} {file[name].shape}")
        elif count and not 0 <= (numbers := file[name][()]).min() <= numbers.max() < len(file[names]):
            wrong.append(f"{name} has a number that is no index into {names}")
    if file["image_sha256"].shape != (count,):
        wrong.append(f"image_sha256 is {file['image_sha256'].shape}")
    if wrong:
        raise UserError(f"{path}: the pack is damaged: {', '.join(wrong)}. {REPAIR}")


def _check_format(path: Path, file: safe_hdf5.SafeFile) -> None:
    got = file.attrs.get("format")
    if got != FORMAT.encode():
        why = f"its format is {_text(got)!r}" if isinstance(got, bytes) else "it has no attribute `format`"
        raise UserError(f"{path}: an HDF5 file, but not a pack: {why}. {HOW_TO_MAKE}.")
    schema = file.attrs.get("schema_version")
    if schema != SCHEMA_VERSION:
        raise UserError(
            f"{path}: has schema {schema}, but this version reads schema {SCHEMA_VERSION}. Make a new pack."
        )


def _text(value: bytes) -> str:
    # A folder's name need not be UTF-8.
    return value.decode(errors="replace")
