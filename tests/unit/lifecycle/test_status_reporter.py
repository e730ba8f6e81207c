"""Reports of a run's progress and end."""

import re
import threading
import time
from pathlib import Path

import pytest
from helpers.runs_in_process import ALONE, run, simulation

from fedh2l_mpi import metrics
from fedh2l_mpi.api import Ended
from fedh2l_mpi.cli.run import _print_end as print_end
from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle import checkpoint_files, checkpoint_writer, start, status, status_reporter
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.run_directory import RunDirectory


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

    def closing(self: metrics.MetricsWriter, *arguments: str) -> None:
        held["metrics"] = out.lock.exists()
        close(self, *arguments)

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


def test_a_complete_run_that_was_killed_before_it_could_say_so_says_so_at_the_next_look(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=2")
    status.write(out.status, status.Status("failed", 2, 2, "killed"))
    config = loading.load(out.config)
    found = start.reserve(ALONE, out, config, "auto")
    found.release()
    assert found.kind == "done"
    assert status.read(out.status).state == "complete"
