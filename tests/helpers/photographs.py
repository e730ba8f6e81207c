"""Photographs for packs, and what a pack should hold of them."""

from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageOps

from fedh2l_mpi import config
from fedh2l_mpi.config import loading

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe")
SIDE = 16


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """Blocks of colours, unlike for every number."""
    draw = np.random.default_rng(number)
    blocks = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return blocks.resize((width, height), Image.Resampling.BILINEAR)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: dataset[()] for name, dataset in file.items()}


def expected(path: Path, side: int = SIDE) -> np.ndarray:
    """The pixels of a picture, by Pillow's own way of fitting it into a square."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def settings(path: Path, *overrides: str) -> config.Config:
    given = ["data.name=pack", f"data.root={path}", *overrides]
    return loading.load(None, given).resolved(1, launched=False)
