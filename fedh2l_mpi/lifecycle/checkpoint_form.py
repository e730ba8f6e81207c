"""Check the form of a checkpoint: a digest proves that a file is as it was written, not that it is a checkpoint."""

import re
from collections.abc import Mapping
from typing import Any

import torch

# Key of the manifest and the type of its value; other keys are ignored.
MANIFEST_KEYS: dict[str, type] = {
    "round": int,
    "participants": int,
    "settings": dict,
    "data_sha256": str,
    "source_sha256": str,
    "libraries": dict,
    "threads": int,
    "devices": list,
    "rows_sha256": str,
    "files": list,
}
FILE_KEYS: dict[str, type] = {"name": str, "bytes": int, "sha256": str, "first": int, "participants": int}
# Names of files in the checkpoint's own folder.
RANK_FILE = re.compile(r"rank-\d{4,}\.pt")
STATE_KEYS: dict[str, type] = {
    "model": dict,
    "optimizer": dict,
    "optimizer_steps": int,
    "private_minibatches": int,
    "kept": dict,
}
# Parts of a state that contain tensors only. A model may also have state of other kinds.
TENSORS = ("optimizer", "kept", "average")


def wrong_in_manifest(manifest: Any) -> str:
    """Return the first mistake in the form of a manifest; empty if there is none."""
    wrong = _wrong_in_keys(manifest, MANIFEST_KEYS)
    for file in () if wrong else manifest["files"]:
        wrong = wrong or _wrong_in_keys(file, FILE_KEYS)
        if not wrong and not RANK_FILE.fullmatch(file["name"]):
            wrong = f"it names the file {file['name']!r}, which is none of a checkpoint"
    return wrong


def wrong_in_states(content: Any, rounds: int) -> str:
    """Return the first mistake in the form of a rank's file after `rounds` rounds; empty if there is none."""
    wrong = _wrong_in_keys(content, {"round": int, "participants": dict})
    if not wrong and content["round"] != rounds:
        wrong = f"it is the file of {content['round']} rounds"
    for state in () if wrong else content["participants"].values():
        wrong = wrong or _wrong_in_keys(state, STATE_KEYS) or _wrong_in_tensors(state)
    return wrong


def _wrong_in_keys(mapping: Any, keys: Mapping[str, type]) -> str:
    if not isinstance(mapping, dict):
        return f"it has a {type(mapping).__name__} in place of keys"
    for key, kind in keys.items():
        value = mapping.get(key)
        # True is an int, too.
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            return f"its key {key!r} has a value of a wrong type" if key in mapping else f"its key {key!r} is missing"
    return ""


def _wrong_in_tensors(state: Mapping[str, Any]) -> str:
    for part in TENSORS:
        tensors = state.get(part, {})
        if not isinstance(tensors, dict) or not all(_is_plain(value) for value in tensors.values()):
            return f"its key {part!r} contains more than tensors"
    return "" if all(isinstance(name, str) for name in state["model"]) else "its key 'model' has names that are no text"


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_complex()
