"""Runs that are stopped and gone on with in one process, and what becomes of damaged checkpoints."""

import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.runs_in_process import ALONE, run, simulation
from helpers.same_runs import assert_same_run

from fedh2l_mpi import build, metrics
from fedh2l_mpi.api import Ended
from fedh2l_mpi.cli import commands
from fedh2l_mpi.cli.run import _print_end as print_end
from fedh2l_mpi.config import RunConfig, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files, checkpoint_writer, start, status, status_reporter
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.lifecycle.stopping import Stopping
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import atomic_files

# Every kind of thing that a participant has to remember.
CASES = {
    "redrawn graph, Adam, three architectures": [
        "topology.kind=erdos_renyi",
        "topology.redraw_every=2",
        "seed_set.samples_per_round=64",
    ],
    "momentum, BatchNorm": ["models=[resnet8]", "optimizer.name=sgd", "optimizer.momentum=0.9", "participants=2"],
    "dropout, augmentation": ["models=[mobilenet, vit]", "participants=2", "data.augmentation=affine"],
    "kept logits": ["method.name=fedmd", "method.warmup_rounds=1"],
    "gossip of parameters from before the local steps": ["method.name=d_psgd", "models=[cnn]", "method.publish=start"],
    "federated averaging with a proximal term": ["method.name=fedprox", "models=[mlp]", "topology.kind=complete"],
    "pooled data": ["method.name=pooled", "models=[mlp]"],
    "a codec": ["models=[mlp]", "exchange.codec=top_k", "exchange.top_k=2"],
    "skipped rows, a codec, redrawn graph": [
        *("models=[mlp]", "seed_set.views=none", "exchange.skip_below=0.1", "exchange.codec=float16"),
        *("topology.kind=erdos_renyi", "topology.redraw_every=2"),
    ],
    "skipped rows of logits, none before the first exchange": [
        *("method.name=fedmd", "method.warmup_rounds=2", "models=[mlp]"),
        *("seed_set.views=none", "exchange.skip_below=2.0"),
    ],
}


def resumed_at(out: Path) -> int:
    """After how many rounds a run would go on; it does not."""
    with simulation(out, mode="auto") as made:
        made.recorder.close("stopped")
        return made.supervisor.first_round


@pytest.fixture
def told(caplog) -> pytest.LogCaptureFixture:
    """What is logged."""
    logging.getLogger("fedh2l_mpi").propagate = True
    return caplog


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_is_unbroken_bit_for_bit(tmp_path, case):
    settings = ["rounds=4", "evaluation.every=2", "method.local_steps=3", "method.mutual_steps=2", *CASES[case]]
    assert run(tmp_path / "unbroken", *settings) == StopRequest.NOTHING
    assert run(tmp_path / "broken", *settings, stop_after=1) == StopRequest.FILE_STOP
    assert run(tmp_path / "broken", mode="require", stop_after=3) == StopRequest.FILE_STOP
    assert run(tmp_path / "broken", *settings, mode="auto") == StopRequest.NOTHING
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken", rounds=4)


def test_requests_that_cannot_be_removed_are_answered_once_and_end_no_job(tmp_path, told):
    directory = RunDirectory(tmp_path)
    stopping = Stopping(ALONE, None, RunConfig(), directory, deadline_s=1.0)
    directory.checkpoint_request.mkdir()
    for touched_ns in (1, 2):
        os.utime(directory.checkpoint_request, ns=(touched_ns, touched_ns))
        assert stopping.agreed() == StopRequest.CHECKPOINT
        stopping.checkpoint_begins()
        stopping.checkpoint_was_made()
        assert stopping.agreed() == StopRequest.NOTHING
    directory.stop_request.mkdir()
    stopping.run_has_ended()
    assert [message.count("cannot be removed: Is a directory") for message in told.messages] == [1] * 4


def test_a_codec_moves_numbers_and_must_stay_and_the_deadline_need_not(tmp_path):
    settings = ["models=[mlp]", "evaluation.every=2", "exchange.codec=top_k", "exchange.top_k=2"]
    run(tmp_path / "run", *settings, "rounds=2")
    for change in (["exchange.top_k=3"], ["exchange.codec=uint8", "exchange.top_k=null"]):
        with pytest.raises(UserError) as error:
            run(tmp_path / "run", *change, "rounds=3", mode="auto")
        assert all(override.partition("=")[0] in str(error.value) for override in change)
    assert run(tmp_path / "run", "exchange.deadline_s=77", "rounds=3", mode="auto") == StopRequest.NOTHING
    assert loading.load(tmp_path / "run" / "config.yaml").exchange.deadline_s == 77


def test_a_complete_run_is_done_and_more_rounds_make_it_the_longer_run(tmp_path):
    settings = ["models=[mlp]", "evaluation.every=2"]
    run(tmp_path / "long", *settings, "rounds=6")
    run(tmp_path / "grown", *settings, "rounds=2")
    config = loading.load(tmp_path / "grown" / "config.yaml")
    found = start.reserve(ALONE, RunDirectory(tmp_path / "grown"), config, "auto")
    assert found.kind == "done"
    found.release()
    run(tmp_path / "grown", "rounds=6", mode="auto")
    assert_same_run(tmp_path / "long", tmp_path / "grown", rounds=6)
    assert loading.load(tmp_path / "grown" / "config.yaml").rounds == 6
    with pytest.raises(UserError, match=r"rounds: got 5, but the run in .*grown has finished 6"):
        run(tmp_path / "grown", "rounds=5", mode="auto")


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_what_is_checked_without_a_config_is_the_run_that_would_be_gone_on_with(tmp_path, capsys, mode):
    config = loading.load(None, ["models=[mlp]", "participants=3"])
    RunDirectory(tmp_path / "run").create(config.to_yaml())
    words = ["--check", "--resume", mode, "--out", str(tmp_path / "run")]
    assert commands.execute(commands.parse(words), ALONE) == 0
    assert "3: 3 x mlp" in capsys.readouterr().out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped after 3 rounds, with checkpoints after 1, 2 and 3."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    run(out, "models=[mlp]", "rounds=5", "checkpoint.every=1", "checkpoint.keep=3", "evaluation.every=1", stop_after=3)
    assert [path.name for path in RunDirectory(out).committed()] == [f"round-{n:08d}" for n in (3, 2, 1)]
    return out


@pytest.fixture
def copy(tmp_path, stopped) -> RunDirectory:
    """A copy of it that may be damaged."""
    shutil.copytree(stopped, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def flip_a_byte(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)


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
        r"manifest.json: (has been changed|is no manifest)",
    ),
    "another round in the manifest": (
        lambda run: change_a_digit(run.checkpoint(3) / "manifest.json"),
        r"manifest.json: has been changed",
    ),
    "states cut short": (lambda run: cut(run.checkpoint(3) / "rank-0000.pt"), r"rank-0000.pt: has \d+ bytes, must"),
    "states missing": (lambda run: (run.checkpoint(3) / "rank-0000.pt").unlink(), r"rank-0000.pt: No such file"),
    "manifest missing": (lambda run: (run.checkpoint(3) / "manifest.json").unlink(), r"manifest.json: No such file"),
    "a copy of another": (copy_another, r"manifest.json: is that of the checkpoint after 2 rounds"),
    "manifest empty": (lambda run: (run.checkpoint(3) / "manifest.json").write_text(""), r"is no manifest any more"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(copy, told, damage):
    spoil, says = DAMAGES[damage]
    spoil(copy)
    assert resumed_at(copy.path) == 2
    (warned,) = [record.getMessage() for record in told.records if record.levelname == "WARNING"]
    assert "checkpoint round-00000003 cannot be used" in warned
    assert re.search(says, warned)
    assert "trying the one before" in warned
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


def test_what_a_refusal_says_may_change_is_all_that_may_change(copy):
    changes = {
        "rounds": "9", "checkpoint.keep": "4", "run.max_wall": "90m", "exchange.deadline_s": "7.0",
        "devices.batching": "like", "exchange.codec": "float16", "exchange.skip_below": "0.1",
    }  # fmt: skip
    with pytest.raises(UserError, match="has another config") as error:
        run(copy.path, *(f"{key}={value}" for key, value in changes.items()), mode="auto")
    *differing, last = str(error.value).splitlines()
    may_change = last.partition("what may change: ")[2].split(", ")
    assert len(differing) == 1 + 2
    for key in changes:
        is_refused = any(f"{key}: there" in line for line in differing)
        assert is_refused != any(key.startswith(told) for told in may_change), key


def test_another_config_is_refused_with_the_keys_that_differ(copy):
    with pytest.raises(UserError) as error:
        run(copy.path, "seed=1", "method.local_steps=9", "checkpoint.every=7", "run.max_wall=90m", mode="auto")
    text = str(error.value)
    assert "seed: there 0, here 1" in text
    assert "method.local_steps: there 10, here 9" in text
    assert "checkpoint.every:" not in text
    assert not (copy.path / "lock").exists()


def test_a_config_changed_behind_the_checkpoints_back_is_refused(copy):
    copy.config.write_text(copy.config.read_text().replace("local_steps: 10", "local_steps: 9"))
    with pytest.raises(
        UserError,
        match="config has changed since the checkpoint of 3 rounds: method.local_steps: there default, here 9",
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
    with pytest.raises(UserError, match="has no checkpoint; --resume auto begins anew"):
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


def test_what_a_killed_process_left_half_written_is_cleared_away(copy):
    half = copy.checkpoints / "round-00000004.elsewhere-1.tmp"
    half.mkdir()
    (half / "rank-0007.pt").write_bytes(b"half")
    (copy.path / "metrics.h5.new").write_bytes(b"half")
    assert run(copy.path, mode="auto") == StopRequest.NOTHING
    assert not half.exists()
    assert sorted(path.name for path in copy.checkpoint(4).iterdir()) == ["manifest.json", "rank-0000.pt"]


def test_a_file_asks_for_a_checkpoint_and_is_gone_when_it_is_there(tmp_path):
    out, seen = RunDirectory(tmp_path / "run"), []

    def follow(round_index: int, table: object) -> None:
        if round_index == 1:
            out.checkpoint_request.touch()
        seen.append((out.checkpoint_request.exists(), [path.name for path in out.committed()]))

    with simulation(out.path, "models=[mlp]", "rounds=6", "checkpoint.every=null", listener=follow) as made:
        made.run()
    assert seen[1] == (True, [])
    assert seen[-1] == (False, ["round-00000002"])
    assert [path.name for path in out.committed()] == ["round-00000006", "round-00000002"]


def test_a_file_that_asks_for_a_checkpoint_again_while_one_is_made_is_answered_by_another(tmp_path, monkeypatch):
    out, begin, states_of = RunDirectory(tmp_path / "run"), checkpoint_writer.CheckpointWriter.begin, []

    def begin_and_ask_again(self, rounds, *arguments):
        begin(self, rounds, *arguments)
        states_of.append(rounds)
        if len(states_of) == 1:
            # Later than the first time by more than the file system's clock may be coarse.
            later_ns = time.time_ns() + 10**9
            os.utime(out.checkpoint_request, ns=(later_ns, later_ns))

    def follow(round_index: int, table: object) -> None:
        if round_index == 1:
            out.checkpoint_request.touch()
        until = time.monotonic() + 20
        while states_of and not out.committed() and time.monotonic() < until:
            time.sleep(0.01)

    monkeypatch.setattr(checkpoint_writer.CheckpointWriter, "begin", begin_and_ask_again)
    with simulation(
        out.path, "models=[mlp]", "rounds=12", "checkpoint.every=null", "checkpoint.keep=9", listener=follow
    ) as made:
        made.run()
    assert len(states_of) == 3
    assert (states_of[0], states_of[-1]) == (2, 12)
    assert not out.checkpoint_request.exists()


def test_a_request_that_cannot_be_looked_at_now_is_looked_at_again_after_the_next_round(tmp_path):
    out = RunDirectory(tmp_path / "run")
    asking = (out.stop_request, out.checkpoint_request)

    def follow(round_index: int, table: object) -> None:
        if round_index == 0:
            for path in asking:
                # No file can have that name: an error, as from a server that is away, and not an absent file.
                path.symlink_to(300 * "x")
        if round_index == 2:
            for path in asking:
                path.unlink()
                path.touch()

    with simulation(out.path, "models=[mlp]", "rounds=6", listener=follow) as made:
        assert made.run() == StopRequest.FILE_STOP
    assert status.read(out.status).round == 3
    assert not any(path.exists() for path in asking)


def test_a_progress_that_cannot_be_told_now_ends_nothing(tmp_path, monkeypatch):
    write, failed = status.write, []

    def stale(path: Path, said: status.Status, forced: bool = True) -> None:
        if not forced:
            failed.append(said.round)
            raise OSError(116, "Stale file handle")
        write(path, said, forced)

    monkeypatch.setattr(status, "write", stale)
    monkeypatch.setattr(status_reporter, "STATUS_S", 0.0)
    assert run(tmp_path / "run", "models=[mlp]", "rounds=2") == StopRequest.NOTHING
    assert failed == [1, 2]
    assert status.read(tmp_path / "run" / "status").state == "complete"


def test_a_run_that_fails_is_held_until_nothing_of_it_is_written_any_more(tmp_path, monkeypatch):
    out, begun, failed, held = RunDirectory(tmp_path / "run"), threading.Event(), threading.Event(), {}
    commit, close = checkpoint_files.commit, metrics.MetricsWriter.close

    def slow_commit(*arguments: object) -> None:
        begun.set()
        failed.wait(20)
        time.sleep(0.2)
        held["checkpoint"] = out.lock.exists()
        commit(*arguments)

    def closing(self: metrics.MetricsWriter, state: str) -> None:
        held["metrics"] = out.lock.exists()
        close(self, state)

    def follow(round_index: int, table: object) -> None:
        if begun.is_set():
            failed.set()
            raise RuntimeError("a fault")

    monkeypatch.setattr(checkpoint_writer, "commit", slow_commit)
    monkeypatch.setattr(metrics.MetricsWriter, "close", closing)
    with (
        simulation(out.path, "models=[mlp]", "rounds=99", "checkpoint.every=1", listener=follow) as made,
        pytest.raises(RuntimeError, match="a fault"),
    ):
        made.run()
    assert held == {"checkpoint": True, "metrics": True}
    assert status.read(out.status).state == "failed"
    assert [path.name for path in out.committed()] == ["round-00000001"]
    assert not out.lock.exists()


@pytest.fixture
def terminated() -> Iterator[Signals]:
    """Of a process that was asked to end while it started."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        signals = Signals()
        os.kill(os.getpid(), signal.SIGTERM)
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert signals.asked == StopRequest.TERM


def test_a_run_that_lacks_only_its_last_word_is_complete_whoever_wants_to_stop_it(copy, terminated):
    # The checkpoint of 3 rounds is there, and the file was not closed as that of a complete run.
    with simulation(copy.path, "rounds=3", mode="auto", signals=terminated) as made:
        assert made.supervisor.first_round == 3
        assert made.run() == StopRequest.NOTHING
    assert status.read(copy.status).state == "complete"
    assert metrics.read(copy.metrics).attributes["state"] == "complete"


def test_a_run_that_stops_says_whether_there_is_a_checkpoint(tmp_path, copy, terminated, capsys):
    cases = {copy: "with a checkpoint; .* resumes it", RunDirectory(tmp_path / "new"): "before round 0; .* starts it"}
    for out, says in cases.items():
        with simulation(out.path, *([] if out is copy else ["models=[mlp]"]), mode="auto", signals=terminated) as made:
            asked = made.run()
        print_end(Ended(out, asked), 3, None)
        assert re.search(rf"stopped \(TERM\), {says}\n$", capsys.readouterr().out)


def test_a_stopped_run_is_not_complete_with_a_last_round_that_was_not_evaluated(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=4", "evaluation.every=4", stop_after=1)
    before = out.config.read_bytes(), out.metrics.read_bytes()
    with pytest.raises(UserError, match="rounds: got 1, as many .* was not evaluated; ask for 2 or more"):
        run(out.path, "rounds=1", mode="auto")
    assert (out.config.read_bytes(), out.metrics.read_bytes()) == before
    assert run(out.path, "rounds=2", mode="auto") == StopRequest.NOTHING
    assert not np.isnan(metrics.read(out.metrics)["accuracy"][1]).any()


def test_a_run_stops_in_time_for_its_limit(tmp_path):
    out = tmp_path / "run"
    asked = run(out, "models=[mlp]", "rounds=100000", "run.max_wall=1.5", "evaluation.every=1000")
    assert asked == StopRequest.MAX_WALL
    said = status.read(out / "status")
    assert (said.state, said.reason) == ("stopped", "max_wall")
    assert said.round == said.checkpoint == metrics.read(out / "metrics.h5").rounds >= 2
    assert np.isfinite(metrics.read(out / "metrics.h5")["loss_private"]).all()


def test_a_run_killed_while_it_made_its_files_can_begin(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=1")
    shutil.rmtree(out.checkpoints)
    out.metrics.rename(out.path / "metrics.h5.new")
    assert run(out.path, mode="auto") == StopRequest.NOTHING
    assert metrics.read(out.metrics).rounds == 1


def test_a_complete_run_that_was_killed_before_it_could_say_so_says_so_at_the_next_look(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=2")
    status.write(out.status, status.Status("failed", 2, 2, "killed"))
    config = loading.load(out.config)
    found = start.reserve(ALONE, out, config, "auto")
    found.release()
    assert found.kind == "done"
    assert status.read(out.status).state == "complete"


def test_a_complete_run_without_checkpoints_is_not_made_longer_from_round_0(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=1")
    shutil.rmtree(out.checkpoints)
    before = out.metrics.read_bytes()
    for mode in ("auto", "require"):
        with pytest.raises(UserError, match="rounds: got 2, but the run .* is complete after 1 and has no checkpoint"):
            run(out.path, "rounds=2", mode=mode)
    assert out.metrics.read_bytes() == before
    assert not out.lock.exists()


def test_fewer_rounds_than_a_stopped_run_has_are_refused(copy):
    with pytest.raises(UserError, match="rounds: got 2, but the run has finished 3"):
        run(copy.path, "rounds=2", mode="auto")


@pytest.mark.parametrize("spoil", [lambda run: run.config.unlink(), lambda run: run.config.write_text("")])
def test_a_run_whose_config_is_gone_is_not_begun_anew(copy, spoil):
    before = copy.metrics.read_bytes()
    spoil(copy)
    with pytest.raises(UserError, match="put (that|its text) back"):
        run(copy.path, "models=[mlp]", "rounds=5", mode="auto")
    assert copy.metrics.read_bytes() == before
    assert len(copy.committed()) == 3


@pytest.mark.parametrize("call", ["exists", "read_bytes"])
def test_what_cannot_be_read_now_gives_up_no_checkpoint(copy, monkeypatch, call):
    before = getattr(Path, call)

    def stale(path: Path) -> object:
        if copy.checkpoints in path.parents:
            raise OSError(116, "Stale file handle")
        return before(path)

    monkeypatch.setattr(Path, call, stale)
    with pytest.raises(UserError, match="cannot be read: Stale file handle; the checkpoint was left as it is"):
        run(copy.path, mode="auto")
    assert len(copy.committed()) == 3


def test_a_checkpoint_that_cannot_be_removed_ends_nothing(copy, monkeypatch):
    # As on NFS, while somebody has a file of it open.
    def busy(path: Path, **options: object) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    assert run(copy.path, "checkpoint.keep=2", mode="auto") == StopRequest.NOTHING
    assert [path.name for path in copy.committed()] == ["round-00000005", "round-00000004"]
