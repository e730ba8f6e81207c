"""Damaged, incomplete and unreadable checkpoints."""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from helpers.damage import flip_a_byte
from helpers.runs_in_process import resumed_at, run
from helpers.same_runs import assert_same_run

from fedh2l_mpi import metrics
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.run_directory import RunDirectory


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_a_digit(path: Path) -> None:
    path.write_text(path.read_text().replace('"round": 3', '"round": 2'))


def copy_another(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoint(3))
    shutil.copytree(run.checkpoint(2), run.checkpoint(3))


def seal(run: RunDirectory, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and give it a digest that fits."""
    path = run.checkpoint(3) / "manifest.json"
    manifest = json.loads(path.read_text())["checkpoint"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True)
    path.write_text(json.dumps({"checkpoint": manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def replace_states(run: RunDirectory, content: object) -> None:
    """Replace the states by what `content` is, or makes of them, and let the manifest fit."""
    path = run.checkpoint(3) / "rank-0000.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        states = torch.load(path, weights_only=True)
        torch.save(content(states) if callable(content) else content, path)
    found = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    seal(run, lambda manifest: manifest["files"][0].update(found))


def without(*keys: object) -> Callable[[Any], Any]:
    """Return a function that removes what is found by the keys, one inside the other, and returns the rest."""

    def remove(whole: Any) -> Any:
        part = whole
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        return whole

    return remove


def with_value(value: object, *keys: object) -> Callable[[Any], Any]:
    """Return a function that puts a value at the place of these keys, one inside the other, and returns the whole."""

    def put(whole: Any) -> Any:
        part = whole
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        return whole

    return put


def make_pipe(run: RunDirectory) -> None:
    (run.checkpoint(3) / "rank-0000.pt").unlink()
    os.mkfifo(run.checkpoint(3) / "rank-0000.pt")


# Sealed again: the digests fit, so only the form shows that the file is no checkpoint.
SEALED: dict[str, tuple[Callable[[RunDirectory], None], str]] = {
    "a key missing": (lambda run: seal(run, without("rows_sha256")), "json: its key 'rows_sha256' is missing"),
    "no format": (lambda run: seal(run, without("format")), "the file is no longer a manifest"),
    "a version in words": (lambda run: seal(run, with_value("one", "version")), "its format is 'one', but"),
    "a wrong type": (lambda run: seal(run, with_value([], "settings")), "its key 'settings' has a value of a wrong t"),
    "a switch for a number": (
        lambda run: seal(run, with_value(True, "threads")),
        "its key 'threads' has a value of a w",
    ),
    "a negative round": (lambda run: seal(run, with_value(-1, "round")), "its key 'round' has a value of a wrong"),
    "a file in words": (lambda run: seal(run, with_value(["x"], "files")), "it has a str in place of keys"),
    "a path": (
        lambda run: seal(run, with_value("../round-00000002/rank-0000.pt", "files", 0, "name")),
        "it names the file '../round-00000002/rank-0000.pt', which is none of a checkpoint",
    ),
    "a range elsewhere": (lambda run: seal(run, with_value(10**18, "files", 0, "first")), "of participant 0 is miss"),
    "a pipe": (make_pipe, "rank-0000.pt: it is not a regular file"),
    "a program": (lambda run: replace_states(run, pickle.dumps(os.system, 2)), "more than tensors and numbers"),
    "a list": (lambda run: replace_states(run, [1]), "it has a list in place of keys"),
    "states of another round": (lambda run: replace_states(run, with_value(2, "round")), "the file of 2 rounds"),
    "a state in words": (
        lambda run: replace_states(run, with_value("x", "participants", 0)),
        "it has a str in place of keys",
    ),
    "a state without weights": (
        lambda run: replace_states(run, without("participants", 0, "model")),
        "its key 'model' is missing",
    ),
    "numbers in place of tensors": (
        lambda run: replace_states(run, with_value({"first": 1}, "participants", 0, "optimizer")),
        "its key 'optimizer' contains more than tensors",
    ),
}

DAMAGES: dict[str, tuple[Callable[[RunDirectory], None], str]] = {
    "a flipped byte in the states": (
        lambda run: flip_a_byte(run.checkpoint(3) / "rank-0000.pt"),
        r"rank-0000.pt: its content has changed",
    ),
    "a flipped byte in the manifest": (
        lambda run: flip_a_byte(run.checkpoint(3) / "manifest.json", 0.3),
        r"manifest.json: (its content has changed|the file is no longer a manifest)",
    ),
    "another round in the manifest": (
        lambda run: change_a_digit(run.checkpoint(3) / "manifest.json"),
        r"manifest.json: its content has changed",
    ),
    "states cut short": (lambda run: cut(run.checkpoint(3) / "rank-0000.pt"), r"rank-0000.pt: got \d+ bytes, exp"),
    "states missing": (lambda run: (run.checkpoint(3) / "rank-0000.pt").unlink(), r"rank-0000.pt: No such file"),
    "manifest missing": (lambda run: (run.checkpoint(3) / "manifest.json").unlink(), r"manifest.json: No such file"),
    "a copy of another": (copy_another, r"manifest.json: the manifest belongs to the checkpoint after 2 r"),
    "manifest empty": (
        lambda run: (run.checkpoint(3) / "manifest.json").write_text(""),
        r"the file is no longer a manifest",
    ),
    **SEALED,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(copy, told, damage):
    spoil, says = DAMAGES[damage]
    spoil(copy)
    assert resumed_at(copy.path) == 2
    (warned,) = [record.getMessage() for record in told.records if record.levelname == "WARNING"]
    assert "checkpoint round-00000003 cannot be used" in warned
    assert re.search(says, warned)
    assert "The checkpoint before it is tried next" in warned
    assert metrics.read(copy.metrics).rounds == 2
    assert [path.name for path in copy.committed()] == ["round-00000002", "round-00000001"]


def test_after_falling_back_the_run_is_the_unbroken_one(tmp_path, stopped, copy):
    run(tmp_path / "unbroken", "models=[mlp]", "rounds=5", "evaluation.every=1")
    flip_a_byte(copy.checkpoint(3) / "rank-0000.pt")
    flip_a_byte(copy.checkpoint(2) / "rank-0000.pt", 0.9)
    assert run(copy.path, mode="auto") == StopRequest.NOTHING
    assert_same_run(tmp_path / "unbroken", copy.path, rounds=5)
    assert not (copy.path / "lock").exists()


def test_with_no_sound_checkpoint_nothing_is_begun_anew(copy):
    before = copy.metrics.read_bytes()
    for rounds in (1, 2, 3):
        flip_a_byte(copy.checkpoint(rounds) / "rank-0000.pt")
    with pytest.raises(UserError) as error:
        run(copy.path, mode="auto")
    text = str(error.value)
    assert "no checkpoint of" in text
    assert text.count("its content has changed") == 3
    assert "choose another --out" in text
    assert copy.metrics.read_bytes() == before
    # And the same at the next try: what is damaged does not count as absent.
    with pytest.raises(UserError, match="is sound"):
        run(copy.path, mode="auto")


def test_rows_that_are_missing_or_changed_make_their_checkpoint_useless(copy, told):
    with h5py.File(copy.metrics, "r+") as file:
        file["loss"][2, 0, 0] += 1e-12
    assert resumed_at(copy.path) == 2
    assert "its rows in" in told.text


def test_what_a_killed_process_left_half_written_is_cleared_away(copy):
    half = copy.checkpoints / "round-00000004.elsewhere-1.tmp"
    half.mkdir()
    (half / "rank-0007.pt").write_bytes(b"half")
    (copy.path / "metrics.h5.new").write_bytes(b"half")
    assert run(copy.path, mode="auto") == StopRequest.NOTHING
    assert not half.exists()
    assert sorted(path.name for path in copy.checkpoint(4).iterdir()) == ["manifest.json", "rank-0000.pt"]


@pytest.mark.parametrize("call", ["exists", "read_bytes"])
def test_what_cannot_be_read_now_gives_up_no_checkpoint(copy, monkeypatch, call):
    before = getattr(Path, call)

    def stale(path: Path) -> object:
        if copy.checkpoints in path.parents:
            raise OSError(116, "Stale file handle")
        return before(path)

    monkeypatch.setattr(Path, call, stale)
    with pytest.raises(UserError, match=r"cannot be read now \(Stale file handle\). The checkpoint was not changed"):
        run(copy.path, mode="auto")
    assert len(copy.committed()) == 3


def test_a_checkpoint_that_cannot_be_removed_ends_nothing(copy, monkeypatch):
    # As on NFS, while somebody has a file of it open.
    def busy(path: Path, **options: object) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    assert run(copy.path, "checkpoint.keep=2", mode="auto") == StopRequest.NOTHING
    assert [path.name for path in copy.committed()] == ["round-00000005", "round-00000004"]
