"""Requests to a running job: files that ask for a checkpoint or a stop, and a limit of time."""

import itertools
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.runs_in_process import ALONE, run, simulation

from fedh2l_mpi import metrics
from fedh2l_mpi.config import RunConfig
from fedh2l_mpi.lifecycle import checkpoint_writer, status, stopping
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.lifecycle.stopping import Stopping
from fedh2l_mpi.run_directory import RunDirectory


def test_requests_that_cannot_be_removed_are_answered_once_and_end_no_job(tmp_path, told):
    directory = RunDirectory(tmp_path)
    stopping = Stopping(ALONE, None, RunConfig(), directory, deadline_s=1.0)
    directory.checkpoint_request.mkdir()
    for touched_ns in (1, 2):
        os.utime(directory.checkpoint_request, ns=(touched_ns, touched_ns))
        assert stopping.agree() == StopRequest.CHECKPOINT
        stopping.begin_answer()
        stopping.finish_answer()
        assert stopping.agree() == StopRequest.NOTHING
    directory.stop_request.mkdir()
    stopping.remove_requests()
    assert [message.count("cannot be removed: Is a directory") for message in told.messages] == [1] * 4


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


def test_a_run_stops_in_time_for_its_limit(tmp_path, monkeypatch):
    # A clock that goes on by a second at each look: two looks at the start, then one after each round.
    seconds = itertools.count()
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    out = tmp_path / "run"
    asked = run(out, "models=[mlp]", "rounds=100", "run.max_wall=10", "evaluation.every=1000")
    assert asked == StopRequest.MAX_WALL
    said = status.read(out / "status")
    assert (said.state, said.reason) == ("stopped", "max_wall")
    # After round r, 1 + r seconds are over, and 2.5 rounds of a second must still fit: 1 + 7 + 2.5 > 10.
    assert said.round == said.checkpoint == metrics.read(out / "metrics.h5").rounds == 7
    assert np.isfinite(metrics.read(out / "metrics.h5")["loss_private"]).all()
    assert "max_wall: null" in metrics.read(out / "metrics.h5").attributes["config"]
    assert run(out, "rounds=20", mode="auto") == StopRequest.NOTHING


@pytest.mark.parametrize(("is_woken", "stops_at_s"), [(False, 1320.0), (True, 3480.0)])
def test_a_round_in_which_the_job_was_suspended_does_not_count_as_a_long_one(
    tmp_path, monkeypatch, is_woken, stops_at_s
):
    now = [0.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    signals = SimpleNamespace(begin=0.0, asked=StopRequest.NOTHING, wakes=0)
    watched = Stopping(ALONE, signals, RunConfig(max_wall="1h"), RunDirectory(tmp_path), deadline_s=1.0)
    for round_index in itertools.count():
        # A minute each, except one in which the job was suspended for twenty.
        now[0] += 1260.0 if round_index == 1 else 60.0
        signals.wakes += is_woken and round_index == 1
        if watched.agree() == StopRequest.MAX_WALL:
            break
    # Rounds of 60 s stop when fewer than 150 s are left; one of 1260 s counts as long only if nobody was woken.
    assert now[0] == stops_at_s
