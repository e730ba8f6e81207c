"""Split MNIST's training images, so that settings can be tuned without seeing the test images.

    python -m benchmarks.validation_split MNIST_FOLDER OUT_FOLDER

The last sixth of the training images become the test files of OUT_FOLDER, the others its training files.
"""

import argparse
import struct
from pathlib import Path

import numpy as np

from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.sources import IDX_PARTS, ImageTable
from fedh2l_mpi.errors import UserError


def write(folder: Path, part: str, table: ImageTable, rows: np.ndarray) -> None:
    """Write rows to two uncompressed IDX files."""
    images_name, labels_name = IDX_PARTS[part]
    images = table.samples(rows)[:, 0]
    (folder / images_name).write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    labels = table.labels[rows].astype(np.uint8)
    (folder / labels_name).write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())


def main() -> None:
    """Read the training images, split them, and write both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of the four IDX files")
    parser.add_argument("out", type=Path, help="a new folder")
    options = parser.parse_args()
    try:
        table = open_source(DataConfig(name="mnist", root=options.root)).train
        options.out.mkdir(parents=True)
    except (UserError, FileExistsError) as error:
        parser.error(f"out: {options.out} exists" if isinstance(error, FileExistsError) else str(error))
    kept = len(table.labels) * 5 // 6
    write(options.out, "train", table, np.arange(kept))
    write(options.out, "test", table, np.arange(kept, len(table.labels)))


if __name__ == "__main__":
    main()
