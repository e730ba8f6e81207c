"""Pictures in folders of classes as a data set: each is decoded whenever its row is read.

The layout is `train/<class>/<picture>` and `test/<class>/<picture>` if there is a folder `train`, and
`<class>/<picture>` if not. A pack of the same pictures starts faster, and spares the file system.

Shape letters: N rows, K channels, H height, W width.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config.data_sets import ImageFolder
from fedh2l_mpi.data import photo_folder, photo_pixels
from fedh2l_mpi.data.pack_reader import NORMALISATION
from fedh2l_mpi.data.photo_decoding import content
from fedh2l_mpi.data.photo_folder import PARTS, Picture
from fedh2l_mpi.data.sources import Source, located
from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.runtime import libraries, paths
from fedh2l_mpi.sample_form import SampleForm

# Pictures that are decoded at a time to check all of them.
PIECE = 64


@dataclass(frozen=True)
class PictureTable:
    """Pictures below a folder, by their paths; `size` is None if they are not resized, but must all have `shape`."""

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    shape: tuple[int, int, int]
    size: tuple[int, int] | None
    reads_pieces = True

    def samples(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the pictures of `rows`, uint8 (len(rows), K, H, W).

        Raises
        ------
        UserError
            If a picture cannot be read, or has another size than the first.
        """
        pixels = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for index, row in enumerate(rows):
            image = decoded(self.root / self.paths[row], self.shape[0], self.size)
            if image.shape != self.shape:
                (_, height, width), (_, tall, wide) = image.shape, self.shape
                raise UserError(
                    f"{self.root / self.paths[row]}: is {height} x {width} pixels, but the first picture is {tall} x "
                    f"{wide}. Fix: resize all pictures by data.size, such as data.size={tall}x{wide}."
                )
            pixels[index] = image
        return pixels

    def verify(self) -> None:
        """Decode every picture."""
        for piece in np.split(np.arange(len(self.labels)), range(PIECE, len(self.labels), PIECE)):
            self.samples(piece)


def open_folder(data: ImageFolder) -> Source:
    """Open the folder of pictures that a config's section `data` names.

    Raises
    ------
    UserError
        If there are no pictures where they should be, or the first cannot be read.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"data.name: 'image_folder' needs Pillow. Fix: {libraries.fix('PIL')}.")
    where, root = located(data.root, "image_folder", "the folder of <class>/<picture>, or of train/<class>/<picture>")
    if not paths.is_folder(where, root):
        raise UserError(f"{where}: {root} is not a folder. It must hold <class>/<picture> or train/<class>/<picture>.")
    tree = photo_folder.scan(root, _layout(root), where, needs_test=False)
    size = None if data.size is None else _height_and_width(data.size)
    channels = 1 if data.grey else 3
    shape = decoded(root / tree.pictures[0].source, channels, size).shape
    tables = []
    for is_test in (False, True):
        part: list[Picture] = [picture for picture in tree.pictures if picture.is_test == is_test]
        labels = np.array([picture.label for picture in part], dtype=np.int64)
        sources = tuple(picture.source for picture in part)
        tables.append(PictureTable(root, sources, labels, (shape[0], shape[1], shape[2]), size) if part else None)
    train, test = tables
    if train is None:
        raise UserError(f"{where}: {root} has no training picture in train/<class>.")
    if test is not None and (strange := sorted(set(test.labels) - set(train.labels))):
        names = ", ".join(shown(tree.classes[label]) for label in strange[:4])
        raise UserError(
            f"{where}: {root} has test pictures of {names}, but no training picture of that class. "
            "Fix: add some to train/, or remove the class from test/."
        )
    mean, std = NORMALISATION[channels]
    return Source(
        "image_folder",
        len(tree.classes),
        SampleForm("image", train.shape),
        255.0,
        mean,
        std,
        train=train,
        test=test,
        is_compact=True,
        class_names=tuple(tree.classes),
    )


def decoded(path: Path, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Decode one picture, uint8 (K, H, W).

    Raises
    ------
    UserError
        If it cannot be read.
    """
    try:
        return photo_pixels.decode(content(path), channels, size)[0]
    except MemoryError:
        raise
    # A damaged file makes decoders raise errors of every kind.
    except Exception as error:
        why = photo_pixels.why_unreadable(error)
        raise UserError(f"{path}: cannot be read as a picture: {why}. Fix or remove it.") from None


def _layout(root: Path) -> str:
    """Return the layout of a folder: that of its parts if it has one for training, and else that of its classes."""
    try:
        names = [path.name for path in root.iterdir() if path.is_dir()]
    except OSError as error:
        raise UserError(f"{root}: cannot be listed: {error.strerror}.") from None
    return "train_test" if any(PARTS.get(name.casefold()) == "train" for name in names) else "classes"


def _height_and_width(size: str) -> tuple[int, int]:
    height, _, width = size.partition("x")
    return int(height), int(width)
