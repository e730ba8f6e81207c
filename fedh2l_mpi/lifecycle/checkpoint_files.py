"""Files of a checkpoint: written by every rank, committed by rank 0, verified before they are loaded."""

import contextlib
import hashlib
import io
import json
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_form
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.clocks import Patience

FORMAT, VERSION = "fedh2l_mpi checkpoint", 1
MANIFEST = "manifest.json"
# A client of a shared file system may see a new file of another client only after a moment.
PATIENCE_S = 1.0
# A message about a written file: its size [bytes] and its SHA-256.
REPORT = np.dtype([("size", "<i8"), ("sha256", "u1", 32)])
States = Mapping[int, Mapping[str, Any]]


class DamagedError(Exception):
    """Error of a checkpoint that cannot be resumed. Its text names the file and the damage."""


def commit(directory: RunDirectory, folder: Path, manifest: Mapping[str, Any], keep: int) -> None:
    """Make the files in `folder` a checkpoint: add its manifest, rename the folder, and remove the oldest checkpoints.

    Raises
    ------
    OSError
        If that fails. The earlier checkpoints are unchanged.
    """
    final = directory.checkpoint(manifest["round"])
    # Force its rows to the disk first; otherwise a power failure could leave a checkpoint without its rows.
    with directory.metrics.open("rb") as rows:
        atomic_files.sync_file(rows)
    with (folder / MANIFEST).open("wb") as file:
        file.write(_sealed({"format": FORMAT, "version": VERSION, **manifest}).encode())
        atomic_files.sync_file(file)
    atomic_files.sync_folder(folder)
    atomic_files.move(folder, final)
    for old in directory.committed()[keep:]:
        # Rename it first, because removing it may fail while another program reads it. `clear` then removes it later.
        with contextlib.suppress(OSError):
            shutil.rmtree(
                atomic_files.move(old, old.with_name(f"{old.name}.old.tmp"), durable=False), ignore_errors=True
            )


def clear(folder: Path) -> None:
    """Remove the files that a killed process left incomplete. The caller must have the run's lock."""
    for path in folder.glob("round-*.tmp") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises
    ------
    DamagedError
        If there is no manifest, it was changed, has another form, or is the manifest of a different checkpoint.
    """
    path = folder / MANIFEST
    content = _content(path)
    try:
        sealed = json.loads(content)
        manifest, digest = sealed["checkpoint"], sealed["sha256"]
        format_, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(f"{path}: the file is no longer a manifest") from None
    if digest != _digest_of(manifest):
        raise DamagedError(f"{path}: its content has changed since it was written")
    if format_ != FORMAT or type(version) is not int or version > VERSION:
        raise DamagedError(f"{path}: its format is {version!r}, but this version of fedh2l_mpi reads up to {VERSION}")
    if wrong := checkpoint_form.wrong_in_manifest(manifest):
        raise DamagedError(f"{path}: {wrong}")
    # Refuse a copied folder, because its name is then missing for the checkpoint of that round.
    if int(folder.name.partition("-")[2]) != manifest["round"]:
        raise DamagedError(f"{path}: the manifest belongs to the checkpoint after {manifest['round']} rounds")
    return dict(manifest)


def load(folder: Path, manifest: Mapping[str, Any], participants: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Load the states of some participants, after checking the size and the digest of their files.

    Raises
    ------
    DamagedError
        If a file is missing, cut, or changed, or contains anything but states.
    """
    wanted, states = set(participants), dict[int, dict[str, Any]]()
    for file in manifest["files"]:
        if not any(file["first"] <= index < file["first"] + file["participants"] for index in wanted):
            continue
        path = folder / file["name"]
        content = _content(path)
        if len(content) != file["bytes"]:
            raise DamagedError(f"{path}: got {len(content)} bytes, expected {file['bytes']}")
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise DamagedError(f"{path}: its content has changed since it was written")
        # Load only tensors and plain containers, because a file's code must not be run.
        try:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # PyTorch raises errors of many types.
        except Exception:
            raise DamagedError(f"{path}: it contains more than tensors and numbers, or is no file of PyTorch") from None
        if wrong := checkpoint_form.wrong_in_states(loaded, manifest["round"]):
            raise DamagedError(f"{path}: {wrong}")
        states |= {index: state for index, state in loaded["participants"].items() if index in wanted}
    missing = sorted(wanted - set(states))
    if missing:
        raise DamagedError(f"{folder}: the state of participant {missing[0]} is missing")
    return states


def set_aside(folders: Sequence[Path]) -> None:
    """Rename damaged checkpoints, so that they are not tried again."""
    for folder in folders:
        aside = folder.with_name(f"{folder.name}.damaged")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(aside)
        atomic_files.move(folder, aside)


def write_states(path: Path, rounds: int, states: States) -> NDArray[Any]:
    """Write one rank's file, and return its report."""
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
        # Add the path, because the error of a full disk names no file.
        raise OSError(error.errno, error.strerror, str(path)) from None
    return report


def _content(path: Path) -> bytes:
    """Return the content of a checkpoint's file. A missing file is damage; a file that cannot be read now is not."""
    patience = Patience(PATIENCE_S)
    try:
        while not path.exists() and not patience.is_over:
            patience.pause()
        # Reading a pipe would wait forever, and a device may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DamagedError(f"{path}: it is not a regular file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise UserError(
            f"{path}: the file cannot be read now ({error.strerror}). The checkpoint was not changed. "
            "Fix: check the file system, then resume again."
        ) from None


def rank_file_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:04d}.pt"


def unfinished_folder(final: Path, attempt: str) -> Path:
    """Return the folder in which a checkpoint is written before it is committed as `final`."""
    return final.with_name(f"{final.name}.{attempt}.tmp")


def _sealed(manifest: Mapping[str, Any]) -> str:
    """Return the manifest's text, which includes its own digest."""
    return json.dumps({"checkpoint": manifest, "sha256": _digest_of(manifest)}, indent=1) + "\n"


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
