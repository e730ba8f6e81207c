"""What a start finds in a run directory: nothing, a run to resume, a complete one, or one that it must not touch."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs_in_process import ALONE, resumed_at, run

from fedh2l_mpi import build, metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import atomic_files


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_what_is_checked_without_a_config_is_the_run_that_would_be_gone_on_with(tmp_path, capsys, mode):
    config = loading.load(None, ["models=[mlp]", "participants=3"])
    RunDirectory(tmp_path / "run").create(config.to_yaml())
    words = ["--check", "--resume", mode, "--out", str(tmp_path / "run")]
    assert commands.execute(commands.parse(words), ALONE) == 0
    assert "3: 3 x mlp" in capsys.readouterr().out


def test_what_a_refusal_says_may_change_is_all_that_may_change(copy):
    changes = {
        "rounds": "9", "checkpoint.keep": "4", "run.max_wall": "90m", "exchange.deadline_s": "7.0",
        "devices.batching": "like", "exchange.codec": "float16", "exchange.skip_below": "0.1",
        "run.early_stop.patience": "3",
    }  # fmt: skip
    with pytest.raises(UserError, match="has a different config") as error:
        run(copy.path, *(f"{key}={value}" for key, value in changes.items()), mode="auto")
    *differing, allowed, fix = str(error.value).splitlines()
    may_change = allowed.partition("Allowed to change: ")[2].removesuffix(".").split(", ")
    assert "Fix: leave out CONFIG and --set" in fix
    assert len(differing) == 1 + 2
    for key in changes:
        is_refused = any(f"{key}: there" in line for line in differing)
        assert is_refused != any(key.startswith(told) for told in may_change), key


def test_another_config_is_refused_with_the_keys_that_differ(copy):
    with pytest.raises(UserError) as error:
        run(copy.path, "seed=1", "method.local_steps=9", "checkpoint.every=7", "run.max_wall=90m", mode="auto")
    text = str(error.value)
    assert "seed: there 0, here 1" in text
    assert "method.local_steps: there 2, here 9" in text
    assert "checkpoint.every:" not in text
    assert not (copy.path / "lock").exists()


def test_a_config_changed_behind_the_checkpoints_back_is_refused(copy):
    copy.config.write_text(copy.config.read_text().replace("local_steps: 2", "local_steps: 9"))
    with pytest.raises(
        UserError,
        match="config has changed since the checkpoint of 3 rounds: method.local_steps: there 2, here 9",
    ):
        run(copy.path, mode="auto")


def test_other_threads_or_code_are_warned_of(copy, told):
    path = copy.checkpoint(3) / "manifest.json"
    manifest = json.loads(path.read_text())["checkpoint"]
    path.write_text(checkpoint_files._sealed({**manifest, "threads": 7}))
    assert resumed_at(copy.path) == 3
    assert "devices.threads has changed since the checkpoint was made" in told.text
    assert "there 7, here 1" in told.text


def test_without_any_checkpoint_auto_begins_anew_and_keeps_what_there_was(copy, told):
    shutil.rmtree(copy.checkpoints)
    before = metrics.read(copy.metrics)
    with pytest.raises(UserError, match="has no checkpoint. Fix: use --resume auto to start again"):
        run(copy.path, mode="require")
    assert run(copy.path, mode="auto") == StopRequest.NOTHING
    assert "the run begins at round 0 again" in told.text
    kept = metrics.read(copy.path / "metrics.unfinished-1.h5")
    assert kept["loss"].tobytes() == before["loss"].tobytes()
    again = metrics.read(copy.metrics)
    assert again.rounds == 5
    assert again["loss"][:3].tobytes() == before["loss"].tobytes()


def test_a_run_that_would_begin_anew_leaves_all_as_it_was_until_its_start_has_proved_to_work(copy, monkeypatch):
    shutil.rmtree(copy.checkpoints)
    before = {path: path.read_bytes() for path in (copy.config, copy.metrics)}

    def away(*_: object) -> None:
        assert copy.lock.exists(), "another process could take the run"
        raise UserError("data.root: not mounted")

    monkeypatch.setattr(build, "build_rank", away)
    with pytest.raises(UserError, match="not mounted"):
        run(copy.path, mode="auto")
    assert {path: path.read_bytes() for path in before} == before
    assert not copy.lock.exists()


def test_a_config_that_cannot_be_written_at_the_resume_is_told(copy, monkeypatch):
    def full(path: Path, text: str, forced: bool = True) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files, "write_text", full)
    with pytest.raises(UserError, match="--out: .* cannot be written: No space left on device"):
        run(copy.path, mode="auto")


def test_a_run_killed_while_it_made_its_files_can_begin(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=1")
    shutil.rmtree(out.checkpoints)
    out.metrics.rename(out.path / "metrics.h5.new")
    assert run(out.path, mode="auto") == StopRequest.NOTHING
    assert metrics.read(out.metrics).rounds == 1


def test_fewer_rounds_than_a_stopped_run_has_are_refused(copy):
    with pytest.raises(UserError, match="rounds: got 2, but the run has already finished 3"):
        run(copy.path, "rounds=2", mode="auto")


@pytest.mark.parametrize("spoil", [lambda run: run.config.unlink(), lambda run: run.config.write_text("")])
def test_a_run_whose_config_is_gone_is_not_begun_anew(copy, spoil):
    before = copy.metrics.read_bytes()
    spoil(copy)
    with pytest.raises(UserError, match="put (that file|its text) back"):
        run(copy.path, "models=[mlp]", "rounds=5", mode="auto")
    assert copy.metrics.read_bytes() == before
    assert len(copy.committed()) == 3
