"""Files of a checkpoint: written by every rank, committed by rank 0, verified before they are loaded."""

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import atomic_files

FORMAT, VERSION = "fedh2l_mpi checkpoint", 1


MANIFEST = "manifest.json"


# A file system's client may not see yet what another has made.
PATIENCE_S = 1.0


# A file's size [bytes] and its SHA-256, as a message.
REPORT = np.dtype([("size", "<i8"), ("sha256", "u1", 32)])


States = Mapping[int, Mapping[str, Any]]


class DamagedError(Exception):
    """A checkpoint cannot be gone on from; the text says which file, and what is wrong with it."""


def commit(directory: RunDirectory, folder: Path, manifest: Mapping[str, Any], keep: int) -> None:
    """Make a checkpoint of the files in `folder`: add its manifest, give it its name, remove the oldest ones.

    Raises
    ------
    OSError
        If that fails; the checkpoints before stay.
    """
    final = directory.checkpoint(manifest["round"])
    # The rows that belong to it must not be lost with the machine if it is not.
    with directory.metrics.open("rb") as rows:
        atomic_files.sync_file(rows)
    with (folder / MANIFEST).open("wb") as file:
        file.write(_sealed({"format": FORMAT, "version": VERSION, **manifest}).encode())
        atomic_files.sync_file(file)
    atomic_files.sync_folder(folder)
    folder.rename(final)
    atomic_files.sync_folder(directory.checkpoints)
    for old in directory.committed()[keep:]:
        # Under a name that says that it is to go; if it cannot go now, since somebody reads in it, then later.
        with contextlib.suppress(OSError):
            shutil.rmtree(old.rename(old.with_name(f"{old.name}.old.tmp")), ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what a killed process has left half-written; for whoever holds the run."""
    for path in folder.glob("round-*.tmp") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises
    ------
    DamagedError
        If there is no manifest, it has been changed, or it is another checkpoint's.
    """
    path = folder / MANIFEST
    content = _content(path)
    try:
        sealed = json.loads(content)
        manifest, told = sealed["checkpoint"], sealed["sha256"]
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{path}: is no manifest any more") from None
    if told != _digest_of(manifest):
        raise DamagedError(f"{path}: has been changed since it was written")
    if manifest["format"] != FORMAT or manifest["version"] > VERSION:
        raise DamagedError(f"{path}: of format {manifest['version']}, this version of fedh2l_mpi reads {VERSION}")
    # Of a copied folder: the checkpoint that belongs there could not take its name.
    if int(folder.name.partition("-")[2]) != manifest["round"]:
        raise DamagedError(f"{path}: is that of the checkpoint after {manifest['round']} rounds")
    return dict(manifest)


def load(folder: Path, manifest: Mapping[str, Any], participants: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The states of some participants, from files of which size and digest are checked first.

    Raises
    ------
    DamagedError
        If a file is missing, cut, or changed.
    """
    wanted, states = set(participants), dict[int, dict[str, Any]]()
    for file in manifest["files"]:
        if wanted.isdisjoint(range(file["first"], file["first"] + file["participants"])):
            continue
        path = folder / file["name"]
        content = _content(path)
        if len(content) != file["bytes"]:
            raise DamagedError(f"{path}: has {len(content)} bytes, must have {file['bytes']}")
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise DamagedError(f"{path}: its content has changed since it was written")
        # Tensors and plain containers only: whatever a file says, nothing of it is run.
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        states |= {index: state for index, state in loaded["participants"].items() if index in wanted}
    missing = sorted(wanted - set(states))
    if missing:
        raise DamagedError(f"{folder}: has no participant {missing[0]}")
    return states


def set_aside(folders: Sequence[Path]) -> None:
    """Give checkpoints that cannot be used a name under which nobody looks for them."""
    for folder in folders:
        aside = folder.with_name(f"{folder.name}.damaged")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(aside)
        folder.rename(aside)


def write_states(path: Path, rounds: int, states: States) -> NDArray[Any]:
    """Write one rank's file; its report."""
    content = io.BytesIO()
    torch.save({"round": rounds, "participants": dict(states)}, content)
    report = np.zeros(1, REPORT)
    report["size"] = content.getbuffer().nbytes
    report["sha256"] = np.frombuffer(hashlib.sha256(content.getbuffer()).digest(), dtype=np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content.getbuffer())
            atomic_files.sync_file(file)
    except OSError as error:
        # Of a full disk, the error itself names no file.
        raise OSError(error.errno, error.strerror, str(path)) from None
    return report


def _content(path: Path) -> bytes:
    """What a file of a checkpoint holds; a file that is not there is damage, one that cannot be read now is not."""
    until = time.monotonic() + PATIENCE_S
    try:
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.1)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; the checkpoint was left as it is: try again"
        ) from None


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:04d}.pt"


def unfinished_folder(final: Path, attempt: str) -> Path:
    return final.with_name(f"{final.name}.{attempt}.tmp")


def _sealed(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, with a digest of its own."""
    return json.dumps({"checkpoint": manifest, "sha256": _digest_of(manifest)}, indent=1) + "\n"


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
