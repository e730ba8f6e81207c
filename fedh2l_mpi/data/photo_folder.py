"""Photographs in folders: find them, and count everything that is left out. No picture is opened."""

import itertools
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import paths

# Names of pictures of the formats that `photo_pixels` decodes.
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Names of pictures of other formats, which are left out.
OTHER_PICTURES = (
    *(".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2"),
    *(".jxl", ".jxr", ".nef", ".orf", ".pcx", ".psd", ".raf", ".raw", ".rw2", ".svg", ".svgz", ".tga", ".wmf", ".xcf"),
)
# Folders that systems make next to the user's.
SYSTEM_FOLDERS = ("$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "lost+found")
# Meaning of each level of folders, by layout; `images` is a folder of this name.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "domains": ("domain", "class"),
    "train_test": ("part", "class"),
    "split_domains": ("domain", "part", "class"),
    "office31": ("domain", "images", "class"),
    "classes": ("class",),
}
SHOWN = {"domain": "<domain>", "class": "<class>", "part": "train|test", "images": "images"}
# Names of the folders of a part. Where there is no test part, the pictures for validation are the test part; else they
# are training pictures, because every run holds back its own.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
# Most entries that are looked at to find a picture in deeper folders, for a message.
LOOKED_AT = 10_000


class Picture(NamedTuple):
    """A picture: its path below the root, its domain and class, and True if it is in the test part."""

    source: str
    domain: int
    label: int
    is_test: bool = False


@dataclass(frozen=True)
class Tree:
    """Contents of a folder of pictures.

    Attributes
    ----------
    domains : list of str
        Names of the domains; `all` alone if the layout has none.
    pictures : list of Picture
        Training pictures first, sorted by domain, class and file name.
    ignored : Counter
        Number of ignored entries by kind.
    other_pictures : Counter
        Number of pictures by suffix that were left out because their format cannot be decoded.
    empty : list of str
        Folders below the root from which no picture was taken.
    layout : str
        One of `LAYOUTS`.
    """

    root: Path
    domains: list[str]
    classes: list[str]
    pictures: list[Picture]
    ignored: Counter[str]
    other_pictures: Counter[str]
    empty: list[str]
    layout: str = "domains"

    @property
    def has_domains(self) -> bool:
        """True if its folders are of domains."""
        return "domain" in LAYOUTS[self.layout]

    @property
    def has_test_part(self) -> bool:
        """True if it has pictures for testing."""
        return any(picture.is_test for picture in self.pictures)

    def similar_classes(self) -> list[list[str]]:
        """Return groups of classes that may be one, because their names differ in spelling only.

        Classes that occur in the same domain are different: a user who has `a` and `A` there means two.
        """
        groups = defaultdict(list)
        for name in self.classes:
            groups[_spelling(name)].append(name)
        domains = defaultdict(set)
        for picture in self.pictures:
            domains[self.classes[picture.label]].add(picture.domain)
        return [
            group
            for group in groups.values()
            if len(group) > 1 and not any(domains[a] & domains[b] for a, b in itertools.combinations(group, 2))
        ]


class _Folder(NamedTuple):
    """A folder of pictures of one class: its path below the root, its domain, class and part, and their names."""

    path: str
    place: dict[str, str]
    names: list[str]


def scan(root: Path, layout: str = "domains", key: str = "pack", needs_test: bool = True) -> Tree:
    """List the pictures under `root`, sorted; no picture is opened.

    Parameters
    ----------
    layout : str
        One of `LAYOUTS`.
    key : str
        Start of a message about a path, such as `data.root`.
    needs_test : bool
        Refuse a layout with parts that has no test part.

    Raises
    ------
    UserError
        If there are no pictures where the layout has them, or a part of it has none.
    """
    pattern = pattern_of(layout)
    where = f"{root}: must be a folder of {pattern}, with pictures ending in {', '.join(SUFFIXES)}"
    if not paths.is_folder(key, root):
        arrays = " Arrays are packed with --layout arrays." if root.suffix in (".npz", ".npy") else ""
        raise UserError(f"{where}. It {'is a file' if paths.is_file(key, root) else 'does not exist'}.{arrays}")
    ignored: Counter[str] = Counter()
    try:
        found, empty = _taken(root, "", LAYOUTS[layout], {}, ignored, pattern.removesuffix("/<picture>"))
        if not found:
            raise UserError(f"{where}. It has none there.{_misplaced(root, ignored, layout)}")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}.") from None
    domains = sorted({one.place.get("domain", "all") for one in found})
    class_of = _classes({one.place["class"] for one in found})
    classes = sorted(set(class_of.values()))
    number = {label: index for index, label in enumerate(classes)}
    tests = {"test"} if any(one.place.get("part") == "test" for one in found) else {"validation"}
    folders = [(one.place.get("part") in tests, domains.index(one.place.get("domain", "all")), one) for one in found]
    pictures = [
        Picture(f"{one.path}/{name}", domain, number[class_of[one.place["class"]]], is_test)
        for is_test, domain, one in sorted(folders, key=lambda row: (row[0], row[1], row[2].path))
        for name in one.names
    ]
    if "part" in LAYOUTS[layout] and needs_test:
        _refuse_without_part(where, domains, pictures)
    other_pictures = Counter({kind: n for kind, n in ignored.items() if kind in OTHER_PICTURES})
    empty = sorted(empty)
    return Tree(root, domains, classes, pictures, +(ignored - other_pictures), other_pictures, empty, layout)


def pattern_of(layout: str) -> str:
    """Return the paths of a layout in words, such as `<domain>/<class>/<picture>`."""
    return "/".join([*(SHOWN[level] for level in LAYOUTS[layout]), "<picture>"])


def _taken(
    root: Path, below: str, levels: tuple[str, ...], place: dict[str, str], ignored: Counter[str], pattern: str
) -> tuple[list[_Folder], list[str]]:
    """Return the folders with pictures below a folder, and the highest folders from which none was taken."""
    if not levels:
        names = _pictures(root / below, ignored, pattern)
        return ([_Folder(below, place, names)] if names else []), []
    found: list[_Folder] = []
    empty: list[str] = []
    for name in _folders(root / below, ignored, pattern):
        level, path = levels[0], f"{below}/{name}" if below else name
        value = {"part": PARTS.get(name.casefold()), "images": "images" if name.casefold() == "images" else None}
        meaning = value.get(level, name)
        if meaning is None:
            ignored[f"folders that are not {SHOWN[level]}"] += 1
            continue
        inside, empty_inside = _taken(root, path, levels[1:], {**place, level: meaning}, ignored, pattern)
        found += inside
        empty += empty_inside if inside else [path]
    return found, empty


def _refuse_without_part(where: str, domains: list[str], pictures: list[Picture]) -> None:
    """Raise UserError unless every domain has training pictures and pictures for testing."""
    for index, domain in enumerate(domains):
        for is_test, names in ((False, "train"), (True, "test or val")):
            if not any(picture.domain == index and picture.is_test == is_test for picture in pictures):
                of = f" of {domain!r}" if len(domains) > 1 or domain != "all" else ""
                raise UserError(f"{where}. There is no picture{of} in a folder {names}.")


def _classes(labels: Iterable[str]) -> dict[str, str]:
    """Map each folder's name to its class: names that differ in Unicode composition only look the same, and are one.

    Source: Unicode Standard Annex 15; macOS writes accents decomposed, Linux and Windows composed.
    """
    composed = defaultdict(list)
    for label in labels:
        composed[unicodedata.normalize("NFC", label)].append(label)
    return {label: name if len(same) > 1 else label for name, same in composed.items() for label in same}


def _spelling(name: str) -> str:
    """Return a name without what people spell differently: case, separators of words, zeros in front of numbers."""
    name = unicodedata.normalize("NFKC", name).casefold().strip()
    name = re.sub(r"(?<=\d)[\s_.-]+(?=\d)", "/", name)
    name = re.sub(r"(?<=\w)[\s_.-]+(?=\w)", "", name)
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


def _misplaced(root: Path, ignored: Counter[str], layout: str) -> str:
    """Return a hint where the pictures are instead, for the end of a message."""
    pattern = pattern_of(layout).removesuffix("/<picture>")
    first = next(_below(root), None)
    if first is not None and layout != "classes" and (meant := _layout_of(first)) not in (None, layout):
        return f" It has pictures such as {first}. Fix: use the layout {meant}, {pattern_of(str(meant))}."
    if higher := ignored[f"pictures not in {pattern}"]:
        return f" {higher} pictures lie higher up: a folder for their domain is missing."
    if deeper := first:
        return (
            f" Pictures lie deeper, such as {deeper}. Fix: give the folder above the {LAYOUTS[layout][0]} folders, or "
            f"move each class folder to {pattern}."
        )
    left_out = Counter({kind: n for kind, n in ignored.items() if kind in OTHER_PICTURES})
    return f" Left out: {counts(left_out)}; convert them." if left_out else ""


def _layout_of(path: str) -> str | None:
    """Return the layout that the path of a picture below the root follows; None if several may be meant."""
    folders = [name.casefold() for name in path.split(os.sep)[:-1]]
    if len(folders) == 3 and folders[1] == "images":
        return "office31"
    if len(folders) == 3 and folders[1] in PARTS:
        return "split_domains"
    return "train_test" if len(folders) == 2 and folders[0] in PARTS else None


def _below(root: Path) -> Iterator[str]:
    """Yield the paths of pictures anywhere below `root`, for as long as few entries were looked at."""
    looked_at = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in sorted(names) if _is_picture(name))
        looked_at += len(folders) + len(names)
        if looked_at > LOOKED_AT:
            return


def counts(kinds: Counter[str], most: int = 8) -> str:
    """Write the most frequent kinds with their numbers, and the number of all others."""
    listed = sorted(kinds.most_common(most))
    rest = kinds.total() - sum(n for _, n in listed)
    return ", ".join([f"{n:,} {kind}" for kind, n in listed] + [f"{rest:,} others"] * (rest > 0))


def _folders(folder: Path, ignored: Counter[str], pattern: str) -> list[str]:
    """Return the names of the folders in a folder; count everything else."""
    names = []
    for entry in _visible(folder, ignored):
        if _is_folder(entry):
            names.append(entry.name)
        else:
            ignored[f"pictures not in {pattern}" if _is_picture(entry.name) else _kind(entry.name)] += 1
    return names


def _pictures(folder: Path, ignored: Counter[str], pattern: str) -> list[str]:
    """Return the sorted names of the pictures in a folder; count everything else."""
    names = []
    for entry in _visible(folder, ignored):
        if _is_folder(entry):
            ignored[f"folders below {pattern}"] += 1
        elif not _is_picture(entry.name):
            ignored[_kind(entry.name)] += 1
        elif _is_file_or_broken(entry):
            names.append(entry.name)
        else:
            ignored["pipes and devices"] += 1
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
    visible = [entry for entry in every if not _is_hidden(entry.name)]
    ignored["hidden"] += len(every) - len(visible)
    return visible


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _kind(name: str) -> str:
    """Return the kind of a file that is no picture: its suffix, unless that is long or not plain text."""
    suffix = Path(name).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9_+-]{1,10}", suffix) else "files without a suffix"
