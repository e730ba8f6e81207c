"""Summary of a pack that was written: what it holds, and everything about its pictures that its user should know."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.data.photo_folder import Tree, counts, pattern_of

# Number of names that a line of the report lists; unreadable pictures are all in the file.
LISTED = 5
DOMAINS_LISTED = 20


@dataclass(frozen=True)
class Packed:
    """Summary of a pack that was written.

    Attributes
    ----------
    classes : list of str
        Classes with an image, by index.
    counts : Counter of (domain, class)
        Images of each pair of indices that has one.
    empty : list of str
        Folders of a domain or of a class of a domain, below the root, from which the pack has no image.
    skipped : list of (path below the root, reason)
    enlarged : int
        Images whose shorter side was smaller than `side`.
    transparent : int
        Images that had transparent parts.
    background : str
        Name of the colour that is behind them.
    several : int
        Images that are the first of several frames or pages.
    flat : list of str
        Paths of the images that are of one colour.
    repeated : int
        Images whose pixels equal those of an earlier image.
    disputed : int
        Those of them whose class differs from the earlier image's.
    notes : list of str
        Sentences about how the pack was made.
    tested : int
        Images of the test part.
    """

    path: Path
    tree: Tree
    shape: tuple[int, int, int, int]
    classes: list[str]
    counts: Counter[tuple[int, int]]
    empty: list[str]
    skipped: list[tuple[str, str]]
    enlarged: int
    transparent: int
    background: str
    several: int
    flat: list[str]
    repeated: int
    disputed: int
    digest: str
    notes: list[str]
    tested: int = 0

    def report(self) -> str:
        """Summarise the pack in a few lines."""
        lines = [*self._content(), *self._pixels(), *self._left_out()]
        # Names with line breaks, or that are not text, would break a log.
        lines = [line.replace("\n", "\\n").replace("\r", "\\r") for line in lines]
        return encoded("\n".join(lines)).decode(errors="replace")

    def _content(self) -> list[str]:
        """Describe what the pack holds."""
        count, channels, side, _ = self.shape
        per_domain: Counter[int] = Counter()
        for (domain, _), n in self.counts.items():
            per_domain[domain] += n
        domains = [f"{name} {per_domain[index]:,}" for index, name in enumerate(self.tree.domains)]
        lines = [
            f"pack: {self.path}",
            f"{count:,} images of {channels} x {side} x {side}, {len(self.classes)} classes, "
            f"{self.path.stat().st_size:,} bytes, digest {self.digest[:16]}",
        ]
        if self.tree.has_domains:
            lines.append(f"{len(domains)} domains: {listed(domains, DOMAINS_LISTED)}")
        if self.tested:
            lines.append(f"{count - self.tested:,} images for training, {self.tested:,} for testing")
        suffixes = Counter(Path(picture.source).suffix.lower() for picture in self.tree.pictures)
        if len(suffixes) > 1:
            lines.append(f"pictures: {counts(suffixes, len(suffixes))}")
        if len(self.classes) == 1:
            lines.append(f"only one class, {self.classes[0]}: check that ROOT holds {pattern_of(self.tree.layout)}")
        elif len(domains) > 1 and len(self.counts) == len(self.classes):
            lines.append(f"no class is in two domains: check that ROOT holds {pattern_of(self.tree.layout)}")
        if (lacking := len(domains) * len(self.classes) - len(self.counts)) > 0:
            lines.append(f"{lacking:,} pairs of a domain and a class have no image")
        for group in self.tree.similar_classes()[:LISTED]:
            lines.append(f"{name_similar(group)}. If they are one, rename the folders.")
        return [*lines, *self.notes]

    def _pixels(self) -> list[str]:
        """Describe images that differ from what a viewer would show, or that may harm training."""
        lines = []
        if self.enlarged:
            side = self.shape[2]
            lines.append(f"{self.enlarged:,} were smaller than {side} x {side} and were enlarged")
        if self.transparent:
            lines.append(f"{self.transparent:,} had transparent parts, which are {self.background} in the pack")
        if twins := self._twins():
            lines.append(
                f"{len(twins):,} pairs of pictures differ in their suffix only, such as {' and '.join(twins[0])}. "
                "Remove masks, and copies in another format."
            )
        if self.several:
            lines.append(f"{self.several:,} have several frames or pages, of which the pack holds the first")
        # An image of one pixel is always of one colour.
        if self.flat and self.shape[2] > 1:
            hint = " Drawings in the colour of the background need another --background." if self.transparent else ""
            lines.append(f"{len(self.flat):,} are of one flat colour: {listed(self.flat)}.{hint}")
        if self.repeated:
            other = f", {self.disputed:,} of them under another class" if self.disputed else ""
            lines.append(
                f"{self.repeated:,} repeat another image's pixels{other}. Copies may be in training and in test data; "
                "remove them if that matters."
            )
        return lines

    def _twins(self) -> list[tuple[str, str]]:
        """Return the pairs of pictures of one folder whose names differ in the suffix only."""
        sources = [picture.source for picture in self.tree.pictures]
        # The pictures of a folder are sorted, but `a-1.png` lies between `a.gif` and `a.png`.
        first: dict[str, str] = {}
        pairs = [(first.setdefault(source.rpartition(".")[0], source), source) for source in sources]
        return [pair for pair in pairs if pair[0] != pair[1]]

    def _left_out(self) -> list[str]:
        """Describe what is not in the pack."""
        lines = []
        if empty := [name for name in self.tree.classes if name not in set(self.classes)]:
            names = listed([f"class {name!r}" for name in empty])
            lines.append(
                f"{names} has no image that can be read, and is left out"
                if len(empty) == 1
                else f"{names} have no image that can be read, and are left out"
            )
        if self.empty:
            lines.append(name_empty(self.empty))
        if self.tree.other_pictures:
            lines.append(f"left out: {counts(self.tree.other_pictures)} pictures. Convert them to PNG or JPEG.")
        if self.tree.ignored:
            lines.append(f"ignored: {counts(self.tree.ignored)}")
        if self.skipped:
            lines.append(f"skipped {len(self.skipped):,} unreadable; the file's `skipped` lists them all:")
            lines += [f"  {source}: {reason}" for source, reason in self.skipped[:LISTED]]
        return lines


def listed(names: Iterable[str], most: int = LISTED) -> str:
    """Join the first names, and say how many more there are."""
    names = list(names)
    more = [f"and {len(names) - most:,} more"] * (len(names) > most)
    return ", ".join([*names[:most], *more])


def name_empty(folders: list[str]) -> str:
    """Name the folders from which no picture was taken."""
    return f"nothing was taken from {listed(folders)}"


def name_similar(group: list[str]) -> str:
    """Name classes that may be one."""
    return f"classes that differ in spelling only, and never in one domain: {listed(group)}"


def encoded(value: str) -> bytes:
    """Encode a text as UTF-8; the bytes of a file's name are unchanged, because they need not be UTF-8."""
    return value.encode(errors="surrogateescape")
