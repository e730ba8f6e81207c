"""Timelines of real mpiruns: both ranks in one file, their messages, and what a killed run leaves."""

import signal
import time
from pathlib import Path

import pytest
from helpers import trace_events
from helpers.launching import kill, launch, mpich, start

from fedh2l_mpi import metrics

LARGE = ["method.name=d_psgd", "method.publish=start", "models=[mlp]", "participants=4", "checkpoint.every=5"]


def words(out: Path, rounds: int) -> list[str]:
    settings = [*LARGE, f"rounds={rounds}", "method.local_steps=2", "method.mutual_steps=2"]
    given = [word for setting in settings for word in ("--set", setting)]
    return [*given, "--quiet", "--resume", "auto", "--out", str(out / "run"), "--trace", str(out / "out.json")]


def test_a_killed_run_leaves_its_timeline_and_the_job_that_goes_on_makes_one_of_both(tmp_path):
    mpi = mpich()
    if mpi is None:
        pytest.skip("no mpirun on this machine")
    command = [mpi.mpirun, "-n", "2", mpi.python, "-m", "fedh2l_mpi"]
    process = start([*command, *words(tmp_path, 3000)])
    parts = [tmp_path / "run" / "trace" / "attempt-0001" / f"rank-000{rank}.json" for rank in (0, 1)]
    try:
        for _ in range(1200):
            if all(path.exists() and "wait" in path.read_text() for path in parts):
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        kill(process)
        process.communicate()
    killed = []
    for rank, part in enumerate(parts):
        events = trace_events.read_part(part)
        assert {event["pid"] for event in events} == {rank}
        assert trace_events.spans(events, "mutual")
        killed.append(trace_events.spans(events, "wait"))
    assert not (tmp_path / "out.json").exists()
    done = metrics.read(tmp_path / "run" / "metrics.h5").rounds
    ended = launch(words(tmp_path, done + 5), ranks=2)
    assert ended.code == 0, ended.err
    events = trace_events.read(tmp_path / "out.json")
    named = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert [name.split(" (")[0] for name in named] == ["rank 0", "rank 1"] * 2
    for rank in (0, 1):
        of_rank = [event for event in events if event["pid"] == rank]
        last = {(e["args"]["round"], e["ph"]): e["ts"] for e in of_rank if e.get("cat") == "messages"}
        waits = {e["args"]["round"]: e for e in trace_events.spans(of_rank, "wait")}
        # Only of the last moment before the kill, after what was in the file by then, may rounds be missing.
        flushed = max(event["args"]["round"] for event in killed[rank])
        assert {*range(flushed + 1), *range(done, done + 5)} <= set(waits)
        for round_index in range(done, done + 5):
            assert last[round_index, "b"] <= waits[round_index]["ts"]
            # Seen at the latest when the wait for them has ended.
            assert last[round_index, "e"] <= waits[round_index]["ts"] + waits[round_index]["dur"]
        assert len(trace_events.spans(of_rank, "local")) >= 2 * len(waits)
    written = {event["args"]["round"] for event in trace_events.spans(events, "write")}
    assert set(range(done, done + 5)) <= written
    assert {event["pid"] for event in trace_events.spans(events, "write")} == {0}
    assert not (tmp_path / "run" / "trace").exists()
