"""Decode a folder's photographs in worker processes, batch by batch and in order.

The batches do not depend on the number of workers, and only a few of them are in memory at a time.

Shape letters: n pictures, K channels, S side.
"""

import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data.photo_folder import Tree, decode, why_unreadable

BATCH_BYTES = 1 << 22
# Batches under way per worker, so that no worker waits for the writer.
AHEAD = 3


@dataclass(frozen=True)
class Batch:
    """Decoded pictures: pixels uint8 (n, K, S, S) of the readable ones; per picture, the file's SHA-256 or a reason."""

    pixels: NDArray[np.uint8]
    source_sha256: list[str | None]
    reasons: list[str | None]
    image_sha256: list[str]
    enlarged: int


def decoded(tree: Tree, shape: tuple[int, int, int, int], workers: int) -> Generator[Batch, None, None]:
    """Yield all pictures in order, batch by batch. Workers are at most `AHEAD` batches each ahead of the reader."""
    size = batch_size(shape)
    sources = [[p.source for p in tree.pictures[first : first + size]] for first in range(0, len(tree.pictures), size)]
    decode = functools.partial(_decode_batch, str(tree.root), shape[1], shape[2])
    workers = min(workers, len(sources))
    if workers == 1:
        yield from map(decode, sources)
        return
    # A thread of this process (the progress bar has one) may hold a lock, which a forked copy would keep forever.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        pending = deque(pool.submit(decode, batch) for batch in sources[: AHEAD * workers])
        for batch in sources[AHEAD * workers :]:
            yield pending.popleft().result()
            pending.append(pool.submit(decode, batch))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit as soon as it has exited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _decode_batch(root: str, channels: int, side: int, sources: Sequence[str]) -> Batch:
    """Decode the pictures `sources` below `root`, in order."""
    images: list[NDArray[np.uint8]] = []
    digests: list[str | None] = []
    reasons: list[str | None] = []
    enlarged = 0
    for source in sources:
        digest = reason = None
        try:
            raw = Path(root, source).read_bytes()
            digest = hashlib.sha256(raw).hexdigest()
            image, is_enlarged = decode(raw, channels, side)
            images.append(image)
            enlarged += is_enlarged
        except MemoryError:
            raise
        # A damaged file makes decoders raise errors of every kind: OSError, SyntaxError, struct.error, IndexError, ...
        except Exception as error:
            reason = why_unreadable(error)
        digests.append(digest)
        reasons.append(reason)
    pixels = np.stack(images) if images else np.empty((0, channels, side, side), dtype=np.uint8)
    return Batch(pixels, digests, reasons, [hashlib.sha256(image.data).hexdigest() for image in images], enlarged)


def batch_size(shape: tuple[int, ...]) -> int:
    """Return the pictures of a batch, for images of `shape` (n, K, S, S)."""
    return max(1, min(64, BATCH_BYTES // int(np.prod(shape[1:]))))
