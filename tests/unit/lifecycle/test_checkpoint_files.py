"""Damaged, incomplete and unreadable checkpoints."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
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
