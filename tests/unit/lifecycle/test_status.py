"""The status file, and the watchdog that writes it for a killed process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedh2l_mpi.config import parse_seconds
from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.lifecycle.status import Status
from fedh2l_mpi.runtime import atomic_files


def test_a_status_is_read_as_it_was_written_and_by_a_shell(tmp_path):
    path = tmp_path / "status"
    written = Status("stopped", 12, 40, "USR1", 12, "rank 0 of 2", "2026-01-02T03:04:05+00:00")
    status.write(path, written)
    assert status.read(path) == written
    shell = subprocess.run(["sed", "-n", "s/^state: //p", path], capture_output=True, text=True)
    assert shell.stdout == "stopped\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "state: dancing\n", "nothing"])
def test_what_is_no_status_is_none(tmp_path, text):
    (tmp_path / "status").write_text(text)
    assert status.read(tmp_path / "status") is None
    assert status.read(tmp_path / "absent") is None


def test_a_pipe_in_place_of_a_status_is_none_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "status")
    assert status.read(tmp_path / "status") is None


def test_the_first_to_say_how_it_ended_is_believed(tmp_path):
    path = tmp_path / "status"
    status.write(path, Status("running", 5, 9, checkpoint=4))
    status.end(path, "failed", "rank 2:\n  a fault", "rank 2")
    status.end(path, "failed", "rank 0 was killed", "watchdog")
    now = status.read(path)
    assert (now.state, now.round, now.rounds, now.checkpoint) == ("failed", 5, 9, 4)
    assert now.reason == "rank 2: a fault"


def test_without_room_for_a_new_file_the_old_one_is_written_over(tmp_path, monkeypatch):
    path = tmp_path / "status"
    status.write(path, Status("running", 5, 9, "x" * 300))

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    forced, real = [], os.fsync

    def watched(descriptor: int) -> None:
        forced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(Path, "rename", full)
    monkeypatch.setattr(os, "fsync", watched)
    status.write(path, Status("failed", 5, 9, "no room"), forced=False)
    assert not forced
    status.write(path, Status("failed", 5, 9, "no room"))
    assert forced[-1] == path.stat().st_ino
    assert (status.read(path).state, status.read(path).reason) == ("failed", "no room")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No space left"):
        atomic_files.write_text(tmp_path / "new", "text")


PROCESS = """
import os, signal, sys, time
from pathlib import Path
from fedh2l_mpi.lifecycle import status, watchdog
path, watchdog.DISMISSAL_S = Path(sys.argv[1]), 0.5
status.write(path, status.Status("running", 3, 9))
keeper = watchdog.Watchdog(path, "rank 0 of 2", path.with_name("lock"))
print(keeper._process.pid, flush=True)
sys.stdin.readline()
if sys.argv[2] == "ends":
    status.write(path, status.Status("complete", 9, 9))
    keeper.dismiss()
else:
    os.killpg(0, signal.SIGTERM if sys.argv[2] == "terminated" else signal.SIGKILL)
    time.sleep(30)
"""


@pytest.mark.parametrize(
    ("how", "keeper_is", "state"),
    [
        *(("killed", None, "failed"), ("terminated", None, "failed"), ("ends", None, "complete")),
        *(("ends", signal.SIGSTOP, "complete"), ("ends", signal.SIGKILL, "complete")),
    ],
)
def test_the_watchdog_reports_a_killed_process_and_ends_with_it(tmp_path, how, keeper_is, state):
    path = tmp_path / "status"
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    keeper = int(process.stdout.readline())
    if keeper_is is not None:
        os.kill(keeper, keeper_is)
    process.communicate("\n", timeout=30)
    assert how != "ends" or process.returncode == 0
    for _ in range(250):
        if not Path(f"/proc/{keeper}").exists():
            break
        time.sleep(0.02)
    else:
        os.kill(keeper, signal.SIGKILL)
        pytest.fail("the watchdog outlives rank 0")
    now = status.read(path)
    assert now.state == state
    assert ("rank 0 of 2 ended without a report" in now.reason) == (state == "failed")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5400", 5400), ("90m", 5400), ("2h", 7200), ("1d", 86400), ("1:30:00", 5400), ("90:00", 5400),
     ("1-12:00:00", 129600)],
)  # fmt: skip
def test_times_are_read_as_slurm_writes_them(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "1:2:3", "5 parsecs"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="must be a time of more than 0"):
        parse_seconds(text)
