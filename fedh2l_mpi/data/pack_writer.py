"""Writer of a pack (see `pack_reader`): worker processes decode photographs, one process writes them.

The rows do not depend on the number of workers, and only a few batches of images are in memory at a time. The file is
OUT.partial-<pid> until it is complete; then it gets its name.

Shape letters: N rows, K channels, S side.
"""

import contextlib
import datetime
import errno
import functools
import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data import pack_reader as packs
from fedh2l_mpi.data import photo_decoding
from fedh2l_mpi.data.pack_report import Packed, encoded, name_empty, name_similar
from fedh2l_mpi.data.photo_folder import LAYOUTS, PARTS, Picture, Tree, scan
from fedh2l_mpi.data.photo_pixels import BACKGROUNDS, Findings
from fedh2l_mpi.data.sources import LARGEST_SIDE
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.runtime import atomic_files, hdf5_files, libraries, paths

# Most bytes that a picture's row needs in addition to its pixels: labels, digests and a long path.
EXTRA = 1024

Progress = Callable[[int, int], None]


def pack(
    root: Path,
    out: Path,
    layout: str | None = None,
    side: int = 224,
    grey: bool = False,
    workers: int | None = None,
    strict: bool = False,
    background: str = "white",
    progress: Progress | None = None,
) -> Packed:
    """Write a pack of the pictures under `root`.

    Parameters
    ----------
    root : Path
        Folder of pictures.
    out : Path
        File to make; must not exist.
    layout : str or None
        One of `photo_folder.LAYOUTS`; None: `domains`, unless its folders are named like parts.
    side : int
        Side S of the images [pixels]; a picture's middle square is resized to it.
    grey : bool
        Store one channel, the luminance, instead of red, green and blue.
    workers : int or None
        Number of processes that decode; None: one for every CPU that this process may use.
    strict : bool
        Raise an error for an unreadable picture instead of skipping it, for a folder from which nothing is taken, and
        for classes that differ in spelling only.
    background : str
        Colour behind transparent parts of pictures, one of `photo_pixels.BACKGROUNDS`.
    progress : callable or None
        Called with the number of finished pictures and the number of all pictures.

    Raises
    ------
    UserError
        If the pack cannot be made; then no file remains.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"pack: Pillow is not installed. Fix: {libraries.fix('PIL')}.")
    if layout is not None and layout not in LAYOUTS:
        known = [*LAYOUTS, "arrays"]
        raise UserError(f"--layout: got {layout!r}{did_you_mean(layout, known)}. Known: {', '.join(known)}.")
    if not 1 <= side <= LARGEST_SIDE:
        raise UserError(f"--side: got {side}. Allowed: 1 to {LARGEST_SIDE} pixels.")
    if workers is not None and workers < 1:
        raise UserError(f"--workers: got {workers}. Use 1 or more.")
    if background not in BACKGROUNDS:
        raise UserError(f"--background: got {background!r}. Known: {', '.join(BACKGROUNDS)}.")
    check_out(out)
    tree = scan(root, layout or "domains")
    if layout is None:
        _refuse_parts_as_domains(tree)
    if strict:
        _refuse_doubtful(tree)
    shape = (len(tree.pictures), 1 if grey else 3, side, side)
    _check_space(out, shape)
    decode = functools.partial(photo_decoding.decoded, tree, shape, workers or _cpus(), BACKGROUNDS[background])
    with published(out, _needed(shape)) as partial:
        spare = partial.with_name(partial.name + "-spare")
        try:
            written = _write_images(partial, spare, tree, shape, decode, strict, progress or _ignore)
            return _describe(partial, out, tree, written, side, background)
        finally:
            _remove(spare)


@dataclass(frozen=True)
class _Written:
    """Facts about the rows that were written, and about skipped pictures."""

    kept: list[Picture]
    source_sha256: list[str]
    image_sha256: list[str]
    skipped: list[tuple[str, str]]
    findings: list[Findings]
    notes: list[str]


def _refuse_parts_as_domains(tree: Tree) -> None:
    """Raise UserError if all domains are named like parts of a data set, such as train and test."""
    if len(tree.domains) > 1 and all(name.casefold() in PARTS for name in tree.domains):
        raise UserError(
            f"{tree.root}: its folders {', '.join(tree.domains)} are named like parts of a data set, not like domains. "
            "Use --layout train_test, or --layout domains if they are domains."
        )


def _refuse_doubtful(tree: Tree) -> None:
    """Raise what the report would only mention."""
    if tree.empty:
        raise UserError(
            f"{tree.root}: {name_empty(tree.empty)}. Remove such folders, convert their pictures, or omit --strict."
        )
    for group in tree.similar_classes():
        raise UserError(f"{tree.root}: {name_similar(group)}. Rename the folders, or omit --strict.")


def _write_images(
    partial: Path,
    spare: Path,
    tree: Tree,
    shape: tuple[int, int, int, int],
    decode: Callable[..., Generator[photo_decoding.Batch, None, None]],
    strict: bool,
    progress: Progress,
) -> _Written:
    """Decode all pictures into the dataset `image` of a new file, without gaps."""
    kept: list[Picture] = []
    skipped: list[tuple[str, str]] = []
    source_sha256: list[str] = []
    image_sha256: list[str] = []
    findings: list[Findings] = []
    notes: list[str] = []
    done = 0
    with (
        hdf5_files.writing(partial) as file,
        contextlib.closing(decode(note=notes.append)) as batches,
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
            findings += batch.findings
            done += len(of_batch)
            progress(done, len(tree.pictures))
    written = _Written(kept, source_sha256, image_sha256, skipped, findings, notes)
    if empty := sorted(set(range(len(tree.domains))) - {picture.domain for picture in kept}):
        folder = tree.root / tree.domains[empty[0]] if tree.has_domains else tree.root
        inside = f"{tree.domains[empty[0]]}/" if tree.has_domains else ""
        source, reason = next(one for one in skipped if one[0].startswith(inside))
        raise UserError(f"{folder}: no picture can be read. The first is {source}: {reason}.")
    for is_test in (False, True) if tree.has_test_part else ():
        for index, name in enumerate(tree.domains):
            if not any(picture.domain == index and picture.is_test == is_test for picture in kept):
                part = "test" if is_test else "train"
                raise UserError(f"{tree.root}: no picture of {name!r} for {part} can be read.")
    if skipped:
        # A contiguous array cannot shrink, and the number of readable pictures is known only now.
        _shorten(partial, spare, len(kept))
    return written


def _shorten(partial: Path, spare: Path, rows: int) -> None:
    """Keep only the first `rows` images of the file."""
    with h5py.File(partial, "r", locking=False) as longer, hdf5_files.writing(spare) as file:
        old = longer["image"]
        new = file.create_dataset("image", shape=(rows, *old.shape[1:]), dtype="u1")
        piece = photo_decoding.batch_size(old.shape)
        for first in range(0, rows, piece):
            end = min(rows, first + piece)
            new[first:end] = old[first:end]
    atomic_files.move(spare, partial, durable=False)


def _describe(partial: Path, out: Path, tree: Tree, written: _Written, side: int, background: str) -> Packed:
    """Add everything except the images to the file."""
    kept, skipped, findings = written.kept, written.skipped, written.findings
    # A class without any readable picture would give every model an output that is never trained.
    used, labels = np.unique(np.array([picture.label for picture in kept], dtype=np.int64), return_inverse=True)
    classes = [tree.classes[label] for label in used]
    domains = np.array([picture.domain for picture in kept], dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "label": labels,
        **({"domain": domains} if tree.has_domains else {}),
        "class_name": texts(classes),
        **({"domain_name": texts(tree.domains)} if tree.has_domains else {}),
        "source": texts([picture.source for picture in kept]),
        "source_sha256": texts(written.source_sha256),
        "image_sha256": texts(written.image_sha256),
        "skipped": texts([source for source, _ in skipped]),
        "skipped_reason": texts([reason for _, reason in skipped]),
    }
    if tree.has_test_part:
        arrays["part"] = np.array([picture.is_test for picture in kept], dtype=np.uint8)
    with hdf5_files.writing(partial, "r+") as file:
        # The handles are kept, because h5py reports no failed write of a dataset whose last handle is dropped.
        datasets = {"image": file["image"]}
        datasets |= {name: file.create_dataset(name, data=values) for name, values in arrays.items()}
        for name, dataset in datasets.items():
            describe(name, dataset)
        shape, facts = file["image"].shape, {} if tree.has_domains and not tree.has_test_part else _facts(file["image"])
        write_attributes(file, facts)
        digest = packs.digest(file, packs.facts_of(file.attrs) if facts else ())
        packed = Packed(
            path=out,
            tree=tree,
            shape=shape,
            classes=classes,
            counts=Counter(zip(domains.tolist(), labels.tolist(), strict=True)),
            empty=sorted({*tree.empty, *(_folders(tree.pictures) - _folders(kept))}),
            skipped=skipped,
            enlarged=sum(one.enlarged for one in findings),
            transparent=sum(one.transparent for one in findings),
            background=background,
            several=sum(one.several for one in findings),
            flat=[picture.source for picture, one in zip(kept, findings, strict=True) if one.flat],
            digest=digest,
            notes=written.notes,
            tested=sum(picture.is_test for picture in kept),
            **_repeated(written.image_sha256, labels.tolist()),
        )
        schema = packs.SCHEMA_OF_ANY if facts else packs.SCHEMA_VERSION
        write_attributes(file, {**_attributes(packed, side, len(kept)), "schema_version": schema})
    return packed


def describe(name: str, dataset: h5py.Dataset) -> None:
    """Give an array of a pack its unit and its meaning as attributes."""
    dataset.attrs["units"] = np.bytes_(b"1")
    dataset.attrs["long_name"] = np.bytes_(packs.MEANINGS[name].encode())


def write_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Write attributes of a pack: texts of a fixed length, int64 and float64."""
    for name, value in attributes.items():
        if isinstance(value, str):
            file.attrs[name] = np.bytes_(encoded(value))
        else:
            file.attrs[name] = np.int64(value) if isinstance(value, int) else np.asarray(value, dtype=np.float64)


def _facts(image: h5py.Dataset) -> dict[str, Any]:
    """Return the attributes that a pack of schema 2 has in addition."""
    mean, std = packs.NORMALISATION[image.shape[1]]
    return {"kind": "image", "vocabulary": 0, "full_scale": 255.0, "mean": mean, "std": std}


def _attributes(packed: Packed, side: int, images: int) -> dict[str, str | int]:
    """Return the file's attributes."""
    import PIL

    return {
        "format": packs.FORMAT,
        "schema_version": packs.SCHEMA_VERSION,
        "layout": packed.tree.layout,
        "side": side,
        "channels": packed.shape[1],
        "images": images,
        "classes": len(packed.classes),
        "domains": len(packed.tree.domains),
        "skipped": len(packed.skipped),
        "ignored": packed.tree.ignored.total(),
        "left_out": packed.tree.other_pictures.total(),
        "enlarged": packed.enlarged,
        "transparent": packed.transparent,
        "background": packed.background,
        "several_frames": packed.several,
        "flat": len(packed.flat),
        "root": str(packed.tree.root.absolute()),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": f"Pillow {PIL.__version__}",
        "digest": packed.digest,
    }


def _folders(pictures: Iterable[Picture]) -> set[str]:
    return {picture.source.rpartition("/")[0] for picture in pictures}


def _repeated(image_sha256: list[str], labels: list[int]) -> dict[str, int]:
    """Count the images with an earlier one's pixels, and those of them with another class than the first."""
    first: dict[str, int] = {}
    classes = [(first.setdefault(sha, label), label) for sha, label in zip(image_sha256, labels, strict=True)]
    return {"repeated": len(classes) - len(first), "disputed": sum(one != other for one, other in classes)}


def check_out(out: Path) -> None:
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


@contextlib.contextmanager
def published(out: Path, needed: str) -> Iterator[Path]:
    """Give the path of an unfinished file, and rename the complete one, which is on the disk, to its final name.

    Parameters
    ----------
    out : Path
        The final name, which nothing has yet.
    needed : str
        Size of the file, for a message.

    Raises
    ------
    UserError
        If the file cannot be written; then no file remains.
    """
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        yield partial
        check_out(out)
        atomic_files.move(partial, out)
    except (OSError, RuntimeError) as error:
        why = hdf5_files.reason(error)
        if why == os.strerror(errno.ENOSPC):
            raise UserError(f"{out}: no space left on the disk. The pack needs {needed}.") from None
        if why:
            raise UserError(f"{out}: cannot be written: {why}.") from None
        raise
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    # A failure to remove a file, such as one with a name that is too long, would hide the original error.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _cpus() -> int:
    """Return the number of CPUs that this process may use; a batch system may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """Encode texts as UTF-8 of a fixed length that fits the longest."""
    return np.array([encoded(value) for value in values], dtype=np.bytes_)


@contextlib.contextmanager
def progress_bar(quiet: bool, noun: str = "pictures") -> Iterator[Progress]:
    """Show a progress bar if standard output is a terminal."""
    if quiet or not sys.stdout.isatty():
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(MofNCompleteColumn(), TextColumn(noun), BarColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ignore(done: int, total: int) -> None:
    """Ignore the progress."""
