"""Data sets as tables that are read by row, and two readers: scikit-learn's digits, and IDX files.

Shape letters: N rows, C channels, H height, W width.
"""

import csv
import gzip
import importlib.util
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.runtime import libraries, paths
from fedh2l_mpi.sample_form import SampleForm

LARGEST_SIDE = 4096
PIECE_BYTES = 1 << 21


class Table(Protocol):
    """Labelled samples, read by row."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every row, int64 (N,)."""

    @property
    def reads_pieces(self) -> bool:
        """True if many small reads cost about as much as one; False if each call reads the whole file."""

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the samples of `rows` in their order, (len(rows), *shape): uint8 or float32 values, or token ids."""

    def verify(self) -> None:
        """Read all samples once; raise UserError if the file is damaged."""


@dataclass(frozen=True)
class NaturalDomains:
    """Domains of data that have their own.

    Attributes
    ----------
    names : tuple of str
        One name for each domain.
    of_row : int64 (N,)
        Domain of every row of the training table.
    of_test_row : int64 or None
        Domain of every row of the test table; None if there is no test table.
    """

    names: tuple[str, ...]
    of_row: NDArray[np.int64]
    of_test_row: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Source:
    """A data set: labelled samples of one form in a training and a test table, and how they are normalised.

    A value is normalised to `(value / full_scale - mean) / std`. Token ids are not normalised.

    Attributes
    ----------
    mean, std : float, or a tuple with one for each channel (images, series) or feature (vectors)
    test : Table or None
        None: there is no test part, so `data.test_share` of the training table is kept for testing.
    domains : NaturalDomains or None
        None: the data have no domains of their own, so the config's `data.partition` makes them.
    is_compact : bool
        True if the samples stay uint8 in memory, and every minibatch is normalised when it is drawn.
    class_names : tuple of str
        Names of the classes; empty if they have none.
    digest : bytes
        SHA-256 of the content, which all ranks and all resumes compare; empty for data of which the seed set and the
        label counts are compared only.
    details : tuple of (str, str)
        More about the data for `--check`, such as the file and the columns used, each with a name.
    """

    name: str
    classes: int
    form: SampleForm
    full_scale: float
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    train: Table
    test: Table | None
    domains: NaturalDomains | None = None
    is_compact: bool = False
    class_names: tuple[str, ...] = ()
    digest: bytes = b""
    details: tuple[tuple[str, str], ...] = ()

    def without_samples(self) -> "Source":
        """Return the data set with its labels only, so that arrays in memory can be freed once they are read."""
        test = None if self.test is None else LabelTable(self.test.labels)
        return replace(self, train=LabelTable(self.train.labels), test=test)

    @property
    def tables(self) -> list[Table]:
        """The training table, and the test table if there is one."""
        return [self.train] if self.test is None else [self.train, self.test]

    @property
    def sample_bytes(self) -> int:
        """Size of one sample in memory [bytes]: uint8 if compact, else as a model's input."""
        return self.form.numbers if self.is_compact else self.form.input_bytes


@dataclass(frozen=True)
class LabelTable:
    """A table whose samples have been read."""

    labels: NDArray[np.int64]
    reads_pieces = True

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        raise RuntimeError("the samples of this table have been read already")

    def verify(self) -> None:
        """Do nothing: there are no samples."""


@dataclass(frozen=True)
class ReadTable:
    """A table of which some rows have been read: `values` of `rows`, which ascend."""

    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[Any]
    reads_pieces = False

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the samples of `rows`, which must have been read."""
        return self.values[np.searchsorted(self.rows, rows)]

    def verify(self) -> None:
        """Do nothing: the reader has done it."""


@dataclass(frozen=True)
class ArrayTable:
    """A table in memory."""

    labels: NDArray[np.int64]
    values: NDArray[Any]
    reads_pieces = True

    def samples(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.values[rows]

    def verify(self) -> None:
        """Do nothing: the table is in memory already."""


def digits() -> Source:
    """Read the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn includes (UCI, Alpaydin and Kaynak).

    They have no training and test part. Every fifth sample is a test sample, for any seed of the run.
    """
    # The table is read from the installed package's file. Importing sklearn.datasets would cost every rank 1.9 CPU
    # seconds and 130 MiB (SciPy, joblib, pandas) for 1,797 lines of text. A test compares it with load_digits().
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "data.name: scikit-learn, which ships the images of 'digits', is not installed. "
            f"Fix: {libraries.fix('sklearn')}."
        )
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt", newline="") as text:
            table = np.array([[int(float(cell)) for cell in row] for row in csv.reader(text)], dtype=np.int64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: scikit-learn's digits cannot be read: {error}") from None
    pixels, labels = table[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, 64]
    is_test = np.arange(len(labels)) % 5 == 4
    train, test = (ArrayTable(labels[part], pixels[part]) for part in (~is_test, is_test))
    form = SampleForm.image(1, 8)
    return Source("digits", 10, form, full_scale=16.0, mean=0.3058, std=0.3764, train=train, test=test)


IDX_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
WHERE_TO_GET = {
    "mnist": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz, each under https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist has the four files; Debian's package "
    "dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist",
}
# Folder of a data set below the root that torchvision is given.
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
NORMALISATION = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}


def located(root: str | None, usual: str, wanted: str) -> tuple[str, Path]:
    """Return a name for messages and the path of the data: `data.root`, or `$FEDH2L_DATA/usual` if that is null.

    Parameters
    ----------
    wanted : str
        Description of `data.root` for the message if neither is given.

    Raises
    ------
    UserError
        If neither is given, or its home folder is unknown.
    """
    base = os.environ.get("FEDH2L_DATA")
    if root is not None:
        return "data.root", paths.expand_home("data.root", root)
    if base is None:
        raise UserError(f"data.root: got null, and FEDH2L_DATA is not set. Give {wanted}.")
    where = f"data.root (null, so $FEDH2L_DATA/{usual})"
    return where, paths.expand_home(where, Path(base, usual))


def idx(name: str, root: str | None) -> Source:
    """Open MNIST or a data set in its format: four IDX files, plain or gzipped, in one folder.

    Parameters
    ----------
    name : str
        `mnist` or `fashion_mnist`.
    root : str or None
        The folder; None means `$FEDH2L_DATA/<name>`.
    """
    where, folder = located(root, name, f"the folder of the IDX files ({WHERE_TO_GET[name]})")
    if not paths.is_folder(where, folder):
        raise UserError(f"{where}: {folder} is not a folder. It must contain the IDX files ({WHERE_TO_GET[name]}).")
    tables = {part: _idx_table(folder, name, *files) for part, files in IDX_PARTS.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) != 1:
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(shapes))
        raise UserError(f"data.root: {folder}: training and test images differ in size: {sizes}.")
    classes = 1 + max(int(table.labels.max()) for table in tables.values())
    mean, std = NORMALISATION[name]
    form = SampleForm.image(1, *shapes.pop())
    return Source(name, classes, form, 255.0, mean, std, train=tables["train"], test=tables["test"])


@dataclass(frozen=True)
class IdxTable:
    """Images in an IDX file; reading streams the file and keeps only the requested rows."""

    path: Path
    labels: NDArray[np.int64]
    shape: tuple[int, int]
    reads_pieces = False

    def samples(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of `rows`, uint8 (len(rows), 1, H, W).

        Each call reads the whole file, because only its end shows whether it is complete.
        """
        order = np.argsort(rows, kind="stable")
        picked, pixels = np.empty((len(rows), 1, *self.shape), dtype=np.uint8), math.prod(self.shape)
        chunk = max(1, PIECE_BYTES // pixels)
        with _open_idx(self.path) as file:
            file.read(16)
            taken = 0
            for first in range(0, len(self.labels), chunk):
                count = min(chunk, len(self.labels) - first)
                block = np.frombuffer(_read_exactly(file, count * pixels, self.path), dtype=np.uint8)
                until = int(np.searchsorted(rows[order], first + count))
                chosen = order[taken:until]
                picked[chosen, 0] = block.reshape(count, *self.shape)[rows[chosen] - first]
                taken = until
            _check_end(file, self.path)
        return picked

    def verify(self) -> None:
        """Read the whole file once, which checks it."""
        self.samples(np.zeros(1, dtype=np.int64))


def _idx_table(folder: Path, name: str, images_name: str, labels_name: str) -> IdxTable:
    images_path, labels_path = (_find(folder, file, name) for file in (images_name, labels_name))
    with _open_idx(images_path) as file:
        count, height, width = _idx_header(file, images_path, dimensions=3)
    with _open_idx(labels_path) as file:
        (label_count,) = _idx_header(file, labels_path, dimensions=1)
        labels = np.frombuffer(_read_exactly(file, label_count, labels_path), dtype=np.uint8).astype(np.int64)
        _check_end(file, labels_path)
    if count != label_count or count == 0:
        raise UserError(f"{images_path}: has {count} images, but {labels_path} has {label_count} labels.")
    # A damaged header can claim images that exceed any memory, or images without pixels.
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise UserError(f"{images_path}: images are {height} x {width} pixels. Allowed: 1 to {LARGEST_SIDE}.")
    return IdxTable(images_path, labels, (height, width))


def _find(folder: Path, file: str, name: str) -> Path:
    """Return the path of an IDX file in a folder, or below it where torchvision puts it.

    Some programs that unpack or mirror the files replace the first hyphen by the dot of a suffix.
    """
    spellings = [file, file.replace("-idx", ".idx")]
    for place in (folder, folder / "raw", folder / TORCHVISION[name] / "raw"):
        for candidate in (place / f"{spelling}{suffix}" for spelling in spellings for suffix in ("", ".gz")):
            if paths.is_file("data.root", candidate):
                return candidate
    raise UserError(
        f"data.root: {folder} has neither {file} nor {file}.gz. It has {_listed(folder)}. Source: {WHERE_TO_GET[name]}."
    )


def _listed(folder: Path, most: int = 6) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f"names that cannot be read ({error.strerror})"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more if names else "no files"


@contextmanager
def _open_idx(path: Path) -> Iterator[BinaryIO]:
    """Open the uncompressed bytes of an IDX file; any error in reading them becomes a UserError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except EOFError:
        raise UserError(f"{path}: ends before its gzip stream. Download it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the gzip file is damaged: {error}. Download it again.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None


def _read_exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise UserError(f"{path}: ends {size - len(content)} bytes too early. Download it again.")
    return content


def _check_end(file: BinaryIO, path: Path) -> None:
    # The checksum at the end of a gzip stream is verified only when the end is read.
    if file.read(1):
        raise UserError(f"{path}: is longer than its header says. Download it again.")


def _idx_header(file: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    zeros, kind, got = struct.unpack(">HBB", _read_exactly(file, 4, path))
    if zeros != 0 or kind != 0x08 or got != dimensions:
        raise UserError(
            f"{path}: not an IDX file of unsigned bytes with {dimensions} dimensions "
            f"(its first bytes are {struct.pack('>HBB', zeros, kind, got).hex()})."
        )
    return struct.unpack(f">{dimensions}I", _read_exactly(file, 4 * dimensions, path))
