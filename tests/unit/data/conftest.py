"""A folder of photographs, and the pack of it."""

from pathlib import Path

import pytest
from helpers.photographs import CLASSES, DOMAINS, SIDE, picture

from fedh2l_mpi.data import pack_writer


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures in the layout of PACS: 4 domains of 3 classes of 10, but no giraffe among the sketches."""
    number = 0
    for domain in DOMAINS:
        for label in CLASSES[: 2 if domain == "sketch" else 3]:
            folder = tmp_path / "PACS" / domain / label
            folder.mkdir(parents=True)
            for index in range(10):
                picture(number, 20 + number % 23, 18 + number % 17).save(folder / f"pic_{index:03d}.jpg")
                number += 1
    return tmp_path / "PACS"


@pytest.fixture
def packed(tree: Path, tmp_path: Path) -> Path:
    pack_writer.pack(tree, tmp_path / "pack.h5", side=SIDE, workers=1)
    return tmp_path / "pack.h5"
