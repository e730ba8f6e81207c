"""Photographs in folders: find them, and decode each to a square array.

Pillow is imported where a picture is decoded, because it is an optional dependency that nothing else needs.

Shape letters: K channels, S side.
"""

import io
import os
import stat
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import paths

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# Formats that Pillow may recognise in a file of any name; some others that it knows are not safe to open.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")


class Picture(NamedTuple):
    """A picture to pack: its path below the root, and its domain and class."""

    source: str
    domain: int
    label: int


@dataclass(frozen=True)
class Tree:
    """Contents of a folder of the layout `domains`.

    Attributes
    ----------
    pictures : list of Picture
        Sorted by domain, class and file name.
    ignored : Counter
        Number of ignored entries by kind.
    """

    root: Path
    domains: list[str]
    classes: list[str]
    pictures: list[Picture]
    ignored: Counter[str]


def scan(root: Path) -> Tree:
    """List the pictures under `root`, sorted; no picture is opened.

    Raises
    ------
    UserError
        If there are no pictures at `<domain>/<class>/<picture>`.
    """
    where = f"{root}: must be a folder of <domain>/<class>/<picture>, with pictures ending in {', '.join(SUFFIXES)}"
    if not paths.is_folder("pack", root):
        raise UserError(f"{where}. It {'is a file' if paths.is_file('pack', root) else 'does not exist'}.")
    ignored: Counter[str] = Counter()
    found: dict[str, dict[str, list[str]]] = {}
    try:
        for domain in _folders(root, ignored):
            for label in _folders(root / domain, ignored):
                names = _pictures(root / domain / label, ignored)
                if names:
                    found.setdefault(domain, {})[label] = names
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}.") from None
    if not found:
        misplaced = ignored["pictures not in <domain>/<class>"]
        hint = f" {misplaced} pictures lie higher up: a folder for their domain is missing." if misplaced else ""
        raise UserError(f"{where}. It has none there.{hint}")
    domains = sorted(found)
    classes = sorted({label for labels in found.values() for label in labels})
    number = {label: index for index, label in enumerate(classes)}
    pictures = [
        Picture(f"{domain}/{label}/{name}", index, number[label])
        for index, domain in enumerate(domains)
        for label in sorted(found[domain])
        for name in found[domain][label]
    ]
    return Tree(root, domains, classes, pictures, +ignored)


def _folders(folder: Path, ignored: Counter[str]) -> list[str]:
    """Return the names of the folders in a folder; count everything else."""
    names = []
    for entry in _visible(folder, ignored):
        if _is_folder(entry):
            names.append(entry.name)
        else:
            misplaced = _is_named_a_picture(entry)
            ignored["pictures not in <domain>/<class>" if misplaced else "other files"] += 1
    return names


def _pictures(folder: Path, ignored: Counter[str]) -> list[str]:
    """Return the sorted names of the pictures in a folder; count everything else."""
    names = []
    for entry in _visible(folder, ignored):
        if _is_folder(entry):
            ignored["folders below <domain>/<class>"] += 1
        elif not _is_named_a_picture(entry):
            ignored["other files"] += 1
        elif _is_file_or_broken(entry):
            names.append(entry.name)
    return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # A link can lead to itself, or into a folder without permission.
    except OSError:
        return False


def _is_file_or_broken(entry: os.DirEntry[str]) -> bool:
    """Return True for a file, and for a broken link, which is an unreadable picture; a pipe would never end."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _visible(folder: Path, ignored: Counter[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name; count hidden ones instead."""
    with os.scandir(folder) as entries:
        every = sorted(entries, key=lambda entry: entry.name)
    visible = [entry for entry in every if not entry.name.startswith(".")]
    ignored["hidden"] += len(every) - len(visible)
    return visible


def _is_named_a_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES)


def decode(raw: bytes, channels: int, side: int) -> tuple[NDArray[np.uint8], bool]:
    """Decode the middle square of a picture and resize it.

    Parameters
    ----------
    raw : bytes
        Content of the picture's file.
    channels : int
        3: red, green, blue; 1: luminance.
    side : int
        S.

    Returns
    -------
    uint8 (K, S, S), C order, and bool
        The pixels, and True if they were enlarged.
    """
    from PIL import Image, ImageOps

    if not raw:
        raise ValueError("an empty file")
    # Pillow warns about odd metadata and large pictures, and refuses pictures twice as large. Where it only warns, the
    # pixels are correct.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):
            # Converting 16 bits of grey would clip all but the darkest 256 values to white.
            picture = Image.fromarray((np.asarray(picture, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
        picture = picture.convert("RGB" if channels == 3 else "L")
        width, height = picture.size
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        # Only the square is resized, because the rest of a very wide picture could fill the memory.
        box = (left, top, left + short, top + short)
        square = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(square, dtype=np.uint8).reshape(side, side, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), short < side


def why_unreadable(error: Exception) -> str:
    """Return the reason for which a picture cannot be read, in the same words in every run."""
    if type(error).__name__ == "UnidentifiedImageError":
        # Its text contains the address of an object, which differs between runs.
        return f"not a picture of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" or type(error).__name__
