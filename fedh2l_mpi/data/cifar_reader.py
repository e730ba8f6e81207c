"""Reader of CIFAR-10 and CIFAR-100 in the files for Python, which are pickles.

A pickle can execute anything when it is loaded, so it is loaded without any code but this module's: names that these
files need stand for small classes here that only keep bytes, and every other name is refused.

Shape letters: N rows.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data.sources import Source, located
from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.runtime import paths
from fedh2l_mpi.sample_form import SampleForm

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
LARGEST_BYTES = 1 << 28


class Layout(NamedTuple):
    """Files and keys of one of the two data sets, and mean and deviation of its training pixels as shares of 255."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_key: str
    names_key: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Layout(
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        "fine_labels",
        "fine_label_names",
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
}
WHERE_TO_GET = {
    "cifar10": "tar xzf of https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz makes it",
    "cifar100": "tar xzf of https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz makes it",
}


class _Kept:
    """Stand-in for an array or a type in a pickle: it keeps what the pickle gives."""

    def __init__(self, *given: Any) -> None:
        self.given: tuple[Any, ...] = given
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    """Return the bytes that Python 3 writes as a text in pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"a text in the encoding {shown(encoding)}")
    return text.encode("latin1")


ALLOWED = {
    ("numpy", "ndarray"): _Kept,
    ("numpy", "dtype"): _Kept,
    ("numpy.core.multiarray", "_reconstruct"): _Kept,
    ("numpy._core.multiarray", "_reconstruct"): _Kept,
    ("_codecs", "encode"): _encoded,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows no name but those of ALLOWED."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could execute code") from None


@dataclass(frozen=True)
class CifarTable:
    """Images in pickled files; each call reads every file that has one of the rows."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    labels: NDArray[np.int64]
    reads_pieces = False

    def samples(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of `rows`, uint8 (len(rows), 3, 32, 32)."""
        picked, first = np.empty((len(rows), *SHAPE), dtype=np.uint8), 0
        for path, count in zip(self.files, self.counts, strict=True):
            own = np.flatnonzero((rows >= first) & (rows < first + count))
            if len(own):
                picked[own] = _pixels(path, _load(path))[rows[own] - first]
            first += count
        return picked

    def verify(self) -> None:
        """Read every file once."""
        self.samples(np.cumsum((0, *self.counts))[:-1])


def open_cifar(name: str, root: str | None) -> Source:
    """Open CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    name : {"cifar10", "cifar100"}
        The data set.
    root : str or None
        The folder of its files, or the one that has this folder; None means `$FEDH2L_DATA/<name>`.

    Raises
    ------
    UserError
        If a file is missing or damaged, or asks for code.
    """
    layout = LAYOUTS[name]
    wanted = f"the folder {layout.folder} ({WHERE_TO_GET[name]})"
    where, folder = located(root, name, wanted)
    if paths.is_folder(where, folder / layout.folder):
        folder = folder / layout.folder
    if not paths.is_folder(where, folder):
        unpack = " Unpack it first." if paths.is_file(where, folder) else ""
        raise UserError(f"{where}: {folder} is not a folder.{unpack} It must be {wanted}.")
    missing = [file for file in (*layout.train, layout.test) if not paths.is_file(where, folder / file)]
    if missing:
        raise UserError(f"{where}: {folder} has no {missing[0]}. It must be {wanted}.")
    train, test = _table(folder, layout.train, layout), _table(folder, (layout.test,), layout)
    names: tuple[str, ...] = ()
    if paths.is_file(where, folder / layout.names):
        given: Any = _load(folder / layout.names).get(layout.names_key)
        values = given if isinstance(given, list) else []
        texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
        if len(texts) != layout.classes or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{folder / layout.names}: {layout.names_key} must be {layout.classes} names.")
        names = tuple(texts)
    return Source(
        name,
        layout.classes,
        SampleForm.image(*SHAPE),
        255.0,
        layout.mean,
        layout.std,
        train=train,
        test=test,
        is_compact=True,
        class_names=names,
        details=(("file", str(folder)),),
    )


def _table(folder: Path, files: tuple[str, ...], layout: Layout) -> CifarTable:
    labels = []
    for path in (folder / file for file in files):
        content = _load(path)
        values: Any = content.get(layout.label_key)
        rows = len(_pixels(path, content))
        in_range = isinstance(values, list) and all(type(one) is int and 0 <= one < layout.classes for one in values)
        if not in_range or len(values) != rows or rows == 0:
            raise UserError(
                f"{path}: {layout.label_key} must be a whole number from 0 to {layout.classes - 1} for each of its "
                f"{rows} images."
            )
        labels.append(np.array(values, dtype=np.int64))
    counts = tuple(len(part) for part in labels)
    return CifarTable(tuple(folder / file for file in files), counts, np.concatenate(labels))


def _load(path: Path) -> Mapping[str, Any]:
    """Return the keys of a file, without executing anything in it.

    Raises
    ------
    UserError
        If it is no such file.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise UserError(f"{path}: has more than {LARGEST_BYTES} bytes, so it is no file of this data set.")
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UserError:
        raise
    # A damaged pickle may fail in any of these ways.
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise UserError(f"{path}: is refused: {str(error)[:200] or type(error).__name__}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no file of this data set: it has a {type(content).__name__}.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _pixels(path: Path, content: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the images of a file, uint8 (N, 3, 32, 32)."""
    kept = content.get("data")
    state: Any = kept.state if isinstance(kept, _Kept) else None
    dtype = state[2] if isinstance(state, tuple) and len(state) == 5 else None
    is_bytes = isinstance(dtype, _Kept) and dtype.given[:1] in (("u1",), (b"u1",))
    if not is_bytes or not isinstance(state[4], bytes) or len(state[4]) % PIXELS or state[3]:
        raise UserError(f"{path}: its data must be an array of unsigned bytes with {PIXELS} in a row.")
    return np.frombuffer(state[4], dtype=np.uint8).reshape(-1, *SHAPE)
