"""Decode a folder's photographs in worker processes, batch by batch and in order.

The batches do not depend on the number of workers, and only a few of them are in memory at a time.

Shape letters: n pictures, K channels, S side.
"""

import contextlib
import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.data import photo_pixels
from fedh2l_mpi.data.photo_folder import Tree
from fedh2l_mpi.data.photo_pixels import Findings
from fedh2l_mpi.errors import UserError

BATCH_BYTES = 1 << 22
# Batches under way per worker, so that no worker waits for the writer.
AHEAD = 3


@dataclass(frozen=True)
class Batch:
    """Decoded pictures: pixels uint8 (n, K, S, S) of the readable ones; per picture, the file's SHA-256 or a reason.

    `image_sha256` and `findings` are those of the readable ones, too.
    """

    pixels: NDArray[np.uint8]
    source_sha256: list[str | None]
    reasons: list[str | None]
    image_sha256: list[str]
    findings: list[Findings]


def decoded(
    tree: Tree,
    shape: tuple[int, int, int, int],
    workers: int,
    background: int = 255,
    note: Callable[[str], None] = print,
) -> Generator[Batch, None, None]:
    """Yield all pictures in order, batch by batch. Workers are at most `AHEAD` batches each ahead of the reader.

    Parameters
    ----------
    background : int
        Grey level behind transparent parts.
    note : callable
        Called with a sentence if worker processes cannot be started, so that this process decodes all pictures.

    Raises
    ------
    UserError
        If a worker process is killed, or memory runs out.
    """
    size = batch_size(shape)
    sources = [[p.source for p in tree.pictures[first : first + size]] for first in range(0, len(tree.pictures), size)]
    decode = functools.partial(_decode_batch, str(tree.root.absolute()), shape[1], shape[2], background)
    workers = min(workers, len(sources))
    pool = None if workers == 1 else _start_pool(workers, note)
    if pool is None:
        for batch in sources:
            with _workers_mistakes():
                result = decode(batch)
            yield result
        return
    try:
        pending: deque[Future[Batch]] = deque()
        for batch in sources:
            if len(pending) == AHEAD * workers:
                yield _result(pending)
            with _workers_mistakes():
                pending.append(pool.submit(decode, batch))
        while pending:
            yield _result(pending)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_pool(workers: int, note: Callable[[str], None]) -> ProcessPoolExecutor | None:
    """Start worker processes; if the system does not allow it, say why and return None."""
    # A thread of this process (the progress bar has one) may hold a lock, which a forked copy would keep forever.
    # "forkserver" needs a socket in TMPDIR, whose path may be too long for one.
    context = multiprocessing.get_context("spawn")
    pool = None
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
        # The first process and the semaphores are made here, not when the pool is.
        pool.submit(os.getpid).result()
        return pool
    # For example, /dev/shm is missing or full, or the limit of processes, threads or memory is reached.
    except (OSError, RuntimeError, ImportError, NotImplementedError) as error:
        # A script without `if __name__ == "__main__"` runs again in its own worker. There, Python raises a RuntimeError
        # of another text, and the worker must end; otherwise it would make the pack, too.
        is_known = not isinstance(error, RuntimeError) or isinstance(error, BrokenProcessPool | NotImplementedError)
        if not is_known and "thread" not in str(error):
            raise
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        note(f"worker processes cannot be started ({error}), so one process decodes all pictures")
        return None


def _result(pending: "deque[Future[Batch]]") -> Batch:
    with _workers_mistakes():
        return pending.popleft().result()


@contextlib.contextmanager
def _workers_mistakes() -> Iterator[None]:
    """Turn errors of the worker processes into UserErrors: they are not errors of the file that is written."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "pack: a worker process was killed, perhaps because memory ran out. Use fewer --workers."
        ) from None
    except MemoryError:
        raise UserError("pack: memory ran out while a picture was decoded. Use fewer --workers.") from None
    except OSError as error:
        raise UserError(f"pack: a worker process failed: {error}. Use --workers 1.") from None


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit as soon as it has exited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _decode_batch(root: str, channels: int, side: int, background: int, sources: Sequence[str]) -> Batch:
    """Decode the pictures `sources` below `root`, in order."""
    images: list[NDArray[np.uint8]] = []
    digests: list[str | None] = []
    reasons: list[str | None] = []
    found: list[Findings] = []
    for source in sources:
        digest = reason = None
        try:
            raw = content(Path(root, source))
            digest = hashlib.sha256(raw).hexdigest()
            image, findings = photo_pixels.decode(raw, channels, side, background)
            images.append(image)
            found.append(findings)
        except MemoryError:
            raise
        # A damaged file makes decoders raise errors of every kind: OSError, SyntaxError, struct.error, IndexError, ...
        except Exception as error:
            reason = photo_pixels.why_unreadable(error)
        digests.append(digest)
        reasons.append(reason)
    pixels = np.stack(images) if images else np.empty((0, channels, side, side), dtype=np.uint8)
    return Batch(pixels, digests, reasons, [hashlib.sha256(image.data).hexdigest() for image in images], found)


def content(path: Path) -> bytes:
    """Return the bytes of a picture's file, unless there are too many for the memory of a worker."""
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > photo_pixels.LARGEST_BYTES:
            raise photo_pixels.TooLargeError(f"{size:,} bytes; at most {photo_pixels.LARGEST_BYTES:,} are read")
        # A file that grows meanwhile is cut off, not read on.
        return file.read(photo_pixels.LARGEST_BYTES)


def batch_size(shape: tuple[int, ...]) -> int:
    """Return the pictures of a batch, for images of `shape` (n, K, S, S)."""
    return max(1, min(64, BATCH_BYTES // int(np.prod(shape[1:]))))
