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
# Most entries that are looked at to find a picture in deeper folders, for a message.
LOOKED_AT = 10_000


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
    other_pictures : Counter
        Number of pictures by suffix that were left out because their format cannot be decoded.
    empty : list of str
        Folders of a domain or of a class of a domain, below the root, from which no picture was taken.
    """

    root: Path
    domains: list[str]
    classes: list[str]
    pictures: list[Picture]
    ignored: Counter[str]
    other_pictures: Counter[str]
    empty: list[str]

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
    empty: list[str] = []
    try:
        for domain in _folders(root, ignored):
            labels = {label: _pictures(root / domain / label, ignored) for label in _folders(root / domain, ignored)}
            taken = {label: names for label, names in labels.items() if names}
            if taken:
                found[domain] = taken
                empty += [f"{domain}/{label}" for label in labels if label not in taken]
            else:
                empty.append(domain)
        if not found:
            raise UserError(f"{where}. It has none there.{_misplaced(root, ignored)}")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}.") from None
    domains = sorted(found)
    class_of = _classes({label for labels in found.values() for label in labels})
    classes = sorted(set(class_of.values()))
    number = {label: index for index, label in enumerate(classes)}
    pictures = [
        Picture(f"{domain}/{label}/{name}", index, number[class_of[label]])
        for index, domain in enumerate(domains)
        for label in sorted(found[domain])
        for name in found[domain][label]
    ]
    other_pictures = Counter({kind: n for kind, n in ignored.items() if kind in OTHER_PICTURES})
    return Tree(root, domains, classes, pictures, +(ignored - other_pictures), other_pictures, sorted(empty))


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


def _misplaced(root: Path, ignored: Counter[str]) -> str:
    """Return a hint where the pictures are instead, for the end of a message."""
    if higher := ignored["pictures not in <domain>/<class>"]:
        return f" {higher} pictures lie higher up: a folder for their domain is missing."
    if deeper := next(_below(root), None):
        return (
            f" Pictures lie deeper, such as {deeper}. Fix: give the folder above the domains as ROOT, or move each "
            "class folder to <domain>/<class>."
        )
    left_out = Counter({kind: n for kind, n in ignored.items() if kind in OTHER_PICTURES})
    return f" Left out: {counts(left_out)}; convert them." if left_out else ""


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


def _folders(folder: Path, ignored: Counter[str]) -> list[str]:
    """Return the names of the folders in a folder; count everything else."""
    names = []
    for entry in _visible(folder, ignored):
        if _is_folder(entry):
            names.append(entry.name)
        else:
            ignored["pictures not in <domain>/<class>" if _is_picture(entry.name) else _kind(entry.name)] += 1
    return names


def _pictures(folder: Path, ignored: Counter[str]) -> list[str]:
    """Return the sorted names of the pictures in a folder; count everything else."""
    names = []
    for entry in _visible(folder, ignored):
        if _is_folder(entry):
            ignored["folders below <domain>/<class>"] += 1
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
