"""Writer of a pack (see `pack_reader`): worker processes decode photographs, one process writes them.

The rows do not depend on the number of workers, and only a few batches of images are in memory at a time. The file is
OUT.partial-<pid> until it is complete; then it gets its name.

Shape letters: N rows, K channels, S side.
"""

import contextlib
import datetime
import errno
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data import pack_reader as packs
from fedh2l_mpi.data import photo_decoding
from fedh2l_mpi.data.photo_folder import Picture, Tree, scan
from fedh2l_mpi.data.sources import LARGEST_SIDE
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import libraries, paths

LAYOUTS = ("domains",)
# Most bytes that a picture's row needs in addition to its pixels: labels, digests and a long path.
EXTRA = 1024
# Number of unreadable pictures that the report lists; the file lists all of them.
LISTED = 5

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """Summary of a pack that was written.

    Attributes
    ----------
    counts : int64 (D, classes)
        Images of each domain and class.
    skipped : list of (path below the root, reason)
    enlarged : int
        Images whose shorter side was smaller than `side`.
    repeated : int
        Images whose pixels equal those of an earlier image.
    """

    path: Path
    tree: Tree
    shape: tuple[int, int, int, int]
    counts: NDArray[np.int64]
    skipped: list[tuple[str, str]]
    enlarged: int
    repeated: int
    digest: str

    def report(self) -> str:
        """Summarise the pack in a few lines."""
        count, channels, side, _ = self.shape
        lines = [
            f"pack: {self.path}",
            f"{count:,} images of {channels} x {side} x {side}, {len(self.tree.classes)} classes, "
            f"{self.path.stat().st_size:,} bytes, digest {self.digest[:16]}",
            f"{len(self.tree.domains)} domains: "
            + ", ".join(f"{name} {n:,}" for name, n in zip(self.tree.domains, self.counts.sum(axis=1), strict=True)),
        ]
        if (lacking := int((self.counts == 0).sum())) > 0:
            lines.append(f"{lacking} pairs of a domain and a class have no image")
        if self.enlarged:
            lines.append(f"{self.enlarged:,} were smaller than {side} x {side} and were enlarged")
        if self.repeated:
            lines.append(
                f"{self.repeated:,} repeat another image's pixels. Copies may be in training and in test data; remove "
                "them if that matters."
            )
        if self.tree.ignored:
            lines.append("ignored: " + ", ".join(f"{n:,} {what}" for what, n in sorted(self.tree.ignored.items())))
        if self.skipped:
            lines.append(f"skipped {len(self.skipped):,} unreadable; the file's `skipped` lists them all:")
            lines += [f"  {source}: {reason}" for source, reason in self.skipped[:LISTED]]
        # Names that are not text would break a terminal or a log.
        return _encoded("\n".join(lines)).decode(errors="replace")


def pack(
    root: Path,
    out: Path,
    layout: str = "domains",
    side: int = 224,
    grey: bool = False,
    workers: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Write a pack of the pictures under `root`.

    Parameters
    ----------
    root : Path
        Folder of the layout `<domain>/<class>/<picture>`.
    out : Path
        File to make; must not exist.
    layout : str
        `domains`, the only layout.
    side : int
        Side S of the images [pixels]; a picture's middle square is resized to it.
    grey : bool
        Store one channel, the luminance, instead of red, green and blue.
    workers : int or None
        Number of processes that decode; None: one for every CPU that this process may use.
    strict : bool
        Raise an error for an unreadable picture instead of skipping it.
    progress : callable or None
        Called with the number of finished pictures and the number of all pictures.

    Raises
    ------
    UserError
        If the pack cannot be made; then no file remains.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"pack: Pillow is not installed. Fix: {libraries.fix('PIL')}.")
    if layout not in LAYOUTS:
        raise UserError(f"--layout: got {layout!r}. Known: {', '.join(LAYOUTS)}.")
    if not 1 <= side <= LARGEST_SIDE:
        raise UserError(f"--side: got {side}. Allowed: 1 to {LARGEST_SIDE} pixels.")
    if workers is not None and workers < 1:
        raise UserError(f"--workers: got {workers}. Use 1 or more.")
    _check_out(out)
    tree = scan(root)
    shape = (len(tree.pictures), 1 if grey else 3, side, side)
    _check_space(out, shape)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    spare = partial.with_name(partial.name + "-spare")
    try:
        written = _write_images(partial, spare, tree, shape, workers or _cpus(), strict, progress or _ignore)
        packed = _describe(partial, out, tree, written, side)
        _publish(partial, out)
    except (OSError, RuntimeError) as error:
        # HDF5 raises either for a failed write, with the system's error text in the message.
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "pack: a worker process was killed, perhaps because memory ran out. Use fewer --workers."
            ) from None
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise UserError(f"{out}: no space left on the disk. The pack needs {_needed(shape)}.") from None
        if isinstance(error, OSError):
            raise UserError(f"{out}: cannot be written: {error.strerror or error}.") from None
        raise
    finally:
        for path in (partial, spare):
            # A failure to remove a file, such as one with a name that is too long, would hide the original error.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return packed


@dataclass(frozen=True)
class _Written:
    """Facts about the rows that were written, and about skipped pictures."""

    kept: list[Picture]
    source_sha256: list[str]
    image_sha256: list[str]
    skipped: list[tuple[str, str]]
    enlarged: int


def _write_images(
    partial: Path,
    spare: Path,
    tree: Tree,
    shape: tuple[int, int, int, int],
    workers: int,
    strict: bool,
    progress: Progress,
) -> _Written:
    """Decode all pictures into the dataset `image` of a new file, without gaps."""
    kept: list[Picture] = []
    skipped: list[tuple[str, str]] = []
    source_sha256: list[str] = []
    image_sha256: list[str] = []
    enlarged = done = 0
    with (
        h5py.File(partial, "x", libver=("v110", "v110")) as file,
        contextlib.closing(photo_decoding.decoded(tree, shape, workers)) as batches,
    ):
        images = file.create_dataset("image", shape=shape, dtype="u1")
        for batch in batches:
            of_batch = tree.pictures[done : done + len(batch.reasons)]
            for picture, source, reason in zip(of_batch, batch.source_sha256, batch.reasons, strict=True):
                if reason is None:
                    kept.append(picture)
                    source_sha256.append(str(source))
                elif strict:
                    raise UserError(
                        f"{tree.root / picture.source}: cannot be read as a picture: {reason}. Fix or remove it, or "
                        "omit --strict to skip such pictures."
                    )
                else:
                    skipped.append((picture.source, reason))
            if len(batch.pixels):
                images[len(image_sha256) : len(image_sha256) + len(batch.pixels)] = batch.pixels
            image_sha256 += batch.image_sha256
            enlarged += batch.enlarged
            done += len(of_batch)
            progress(done, len(tree.pictures))
    written = _Written(kept, source_sha256, image_sha256, skipped, enlarged)
    if empty := sorted(set(range(len(tree.domains))) - {picture.domain for picture in kept}):
        source, reason = next(one for one in skipped if one[0].startswith(tree.domains[empty[0]] + "/"))
        raise UserError(
            f"{tree.root / tree.domains[empty[0]]}: no picture can be read. The first is {source}: {reason}."
        )
    if skipped:
        # A contiguous array cannot shrink, and the number of readable pictures is known only now.
        _shorten(partial, spare, len(kept))
    return written


def _shorten(partial: Path, spare: Path, rows: int) -> None:
    """Keep only the first `rows` images of the file."""
    with h5py.File(partial, "r") as longer, h5py.File(spare, "x", libver=("v110", "v110")) as file:
        old = longer["image"]
        new = file.create_dataset("image", shape=(rows, *old.shape[1:]), dtype="u1")
        piece = photo_decoding.batch_size(old.shape)
        for first in range(0, rows, piece):
            end = min(rows, first + piece)
            new[first:end] = old[first:end]
    spare.replace(partial)


def _describe(partial: Path, out: Path, tree: Tree, written: _Written, side: int) -> Packed:
    """Add everything except the images to the file."""
    import PIL

    kept, skipped = written.kept, written.skipped
    labels = np.array([picture.label for picture in kept], dtype=np.int64)
    domains = np.array([picture.domain for picture in kept], dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "label": labels,
        "domain": domains,
        "class_name": _texts(tree.classes),
        "domain_name": _texts(tree.domains),
        "source": _texts([picture.source for picture in kept]),
        "source_sha256": _texts(written.source_sha256),
        "image_sha256": _texts(written.image_sha256),
        "skipped": _texts([source for source, _ in skipped]),
        "skipped_reason": _texts([reason for _, reason in skipped]),
    }
    with h5py.File(partial, "r+", libver=("v110", "v110")) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
        for name, meaning in packs.ARRAYS.items():
            file[name].attrs["units"] = np.bytes_(b"1")
            file[name].attrs["long_name"] = np.bytes_(meaning.encode())
        shape, digest = file["image"].shape, packs.digest(file)
        attributes: dict[str, str | int] = {
            "format": packs.FORMAT,
            "schema_version": packs.SCHEMA_VERSION,
            "layout": "domains",
            "side": side,
            "channels": shape[1],
            "images": len(kept),
            "classes": len(tree.classes),
            "domains": len(tree.domains),
            "skipped": len(skipped),
            "ignored": tree.ignored.total(),
            "enlarged": written.enlarged,
            "root": str(tree.root.absolute()),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": f"Pillow {PIL.__version__}",
            "digest": digest,
        }
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(_encoded(value)) if isinstance(value, str) else np.int64(value)
    counts = np.zeros((len(tree.domains), len(tree.classes)), dtype=np.int64)
    np.add.at(counts, (domains, labels), 1)
    repeated = len(kept) - len(set(written.image_sha256))
    return Packed(out, tree, shape, counts, skipped, written.enlarged, repeated, digest)


def _check_out(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already. Give a different name, or remove it.")
    if not paths.is_folder("pack", out.parent):
        raise UserError(f"{out}: its folder {out.parent} does not exist. Make it, or give a different name.")


def _check_space(out: Path, shape: tuple[int, int, int, int]) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < shape[0] * int(np.prod(shape[1:])):
        raise UserError(
            f"{out}: the pack needs {_needed(shape)}, but its disk has {free:,} free. Use another disk or a smaller "
            "--side."
        )


def _needed(shape: tuple[int, int, int, int]) -> str:
    return f"about {shape[0] * (int(np.prod(shape[1:])) + EXTRA):,} bytes"


def _publish(partial: Path, out: Path) -> None:
    """Rename the complete file to its final name once it is on the disk."""
    for path in (partial, partial.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _check_out(out)
    partial.rename(out)


def _cpus() -> int:
    """Return the number of CPUs that this process may use; a batch system may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """Encode texts as UTF-8 of a fixed length that fits the longest."""
    return np.array([_encoded(value) for value in values], dtype=np.bytes_)


def _encoded(value: str) -> bytes:
    # The bytes of a file's name are stored unchanged, because they need not be UTF-8.
    return value.encode(errors="surrogateescape")


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """Show a progress bar if standard output is a terminal."""
    if quiet or not sys.stdout.isatty():
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(MofNCompleteColumn(), TextColumn("pictures"), BarColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ignore(done: int, total: int) -> None:
    """Ignore the progress."""
