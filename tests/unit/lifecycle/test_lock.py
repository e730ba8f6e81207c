"""Locks of runs: one process at a time, its name, and stale locks."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import pytest

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import lock
from fedh2l_mpi.lifecycle.lock import Holder, RunLock


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "lock"


def put(path: Path, holder: Holder) -> None:
    path.write_text(json.dumps(asdict(holder)))


def ended() -> Holder:
    """A holder on this host whose process has ended."""
    code = "import json; from dataclasses import asdict; from fedh2l_mpi.lifecycle.lock import Holder"
    command = [sys.executable, "-c", f"{code}; print(json.dumps(asdict(Holder.here())))"]
    return Holder(**json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def test_a_second_process_is_told_who_holds_the_run(path):
    lock = RunLock(path)
    with pytest.raises(
        UserError, match=rf"another process \(host {os.uname().nodename}, pid {os.getpid()}\) is writing this run"
    ):
        RunLock(path)
    lock.release()
    assert not path.exists()
    RunLock(path).release()


def test_the_lock_of_a_process_that_has_ended_is_taken_over(path):
    put(path, ended())
    lock = RunLock(path)
    assert lock.taken_from is not None
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(path.parent.iterdir()) == [path]


def test_a_pid_that_was_given_again_is_another_process(path):
    put(path, replace(Holder.here(), started="1 another boot"))
    assert RunLock(path).taken_from is not None


def test_on_another_host_only_a_person_knows_whether_a_process_without_a_job_lives(path):
    put(path, replace(Holder.here(), host="elsewhere", job=""))
    with pytest.raises(UserError, match="host elsewhere, pid .* cannot see whether it has ended.* remove this file"):
        RunLock(path)


def test_a_requeued_job_takes_the_run_from_what_it_was_before(path, monkeypatch):
    put(path, replace(Holder.here(), host="elsewhere", job="77", restarts=0))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert RunLock(path).taken_from == replace(Holder.here({}), host="elsewhere", job="77")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("echo RUNNING", "another process .* is writing this run"),
        ("echo COMPLETING", "another process .* is writing this run"),
        ("true", None),
        ("echo CANCELLED", None),
        ("echo REQUEUED", None),
        ("echo REQUEUE_HOLD", None),
        ("echo SPECIAL_EXIT", None),
        ("echo RESV_DEL_HOLD", None),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
        (
            "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
            "cannot see whether it has ended",
        ),
    ],
)
def test_slurm_is_asked_about_the_job_of_another_host(path, tmp_path, monkeypatch, answer, says):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "squeue").write_text(f'#!/bin/sh\n[ "$3" = 88 ] || exit 9\n{answer}\n')
    (programs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    put(path, replace(Holder.here(), host="elsewhere", job="88"))
    if says is None:
        assert RunLock(path).taken_from.job == "88"
    else:
        with pytest.raises(UserError, match=says):
            RunLock(path)


def test_a_file_system_without_hard_links_has_locks_too(path, monkeypatch):
    def no_link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    lock = RunLock(path)
    with pytest.raises(UserError, match="another process .* is writing this run"):
        RunLock(path)
    lock.release()
    assert list(path.parent.iterdir()) == []


def test_what_is_no_lock_of_ours_is_left_alone(path):
    path.write_text("not ours")
    with pytest.raises(UserError, match="the file is not a lock of fedh2l_mpi"):
        RunLock(path)
    assert path.read_text() == "not ours"


@pytest.mark.parametrize("content", [b"", bytes(120)])
def test_a_lock_that_a_crash_of_the_machine_has_emptied_is_nobodys_after_a_while(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the lock is empty.* try again in 60 s"):
        RunLock(path)
    an_hour_ago = path.stat().st_mtime - 3600.0
    os.utime(path, (an_hour_ago, an_hour_ago))
    lock = RunLock(path)
    assert str(lock.taken_from) == "unknown, as the lock is empty"
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_content_of_a_lock_is_on_the_disk_before_it_has_its_name(path, monkeypatch):
    forced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        forced.append((os.fstat(descriptor).st_size > 0, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    RunLock(path)
    assert forced == [(True, False)]


def test_of_many_processes_at_a_stale_lock_one_wins(path):
    put(path, ended())
    code = (
        "import sys, pathlib, time\nfrom fedh2l_mpi.lifecycle.lock import RunLock\n"
        "from fedh2l_mpi.errors import UserError\n"
        "sys.stdin.readline()\n"
        "try:\n    RunLock(pathlib.Path(sys.argv[1]))\nexcept UserError:\n    print('lost', flush=True)\n"
        "else:\n    print('won', flush=True)\n    sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    try:
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        # The winner holds it until all have tried.
        said = [racer.stdout.readline().strip() for racer in racers]
    finally:
        for racer in racers:
            racer.communicate("\n", timeout=30)
    assert sorted(said) == ["lost"] * 5 + ["won"]


def test_the_lock_of_a_new_holder_is_not_taken_away_as_that_of_the_one_before(path, monkeypatch):
    stale = ended()
    put(path, stale)
    other = replace(Holder.here(), host="elsewhere", job="")
    looked = Holder.has_ended

    def too_late(self: Holder, now: Holder) -> bool | None:
        if self == stale:
            # Between our look and our hand, another process takes the lock over.
            put(path, other)
        return looked(self, now)

    monkeypatch.setattr(Holder, "has_ended", too_late)
    with pytest.raises(UserError, match="host elsewhere"):
        RunLock(path)
    assert json.loads(path.read_text())["host"] == "elsewhere"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["stat", "rmdir"])
def test_the_right_to_a_stale_lock_may_be_given_up_while_another_process_looks_at_it(path, monkeypatch, call):
    stale = ended()
    put(path, stale)
    right = path.with_name(f"lock.stale.{hashlib.sha256(repr(stale).encode()).hexdigest()[:16]}")
    right.mkdir()
    # The clock says nothing: it was set back since then.
    tomorrow = time.time() + 86400
    os.utime(right, (tomorrow, tomorrow))
    monkeypatch.setattr(lock, "RIGHT_S", 0.1)
    real = getattr(Path, call)

    def too_late(self: Path, **options: bool) -> object:
        if self == right and os.path.lexists(right):
            os.rmdir(right)
        return real(self, **options)

    monkeypatch.setattr(Path, call, too_late)
    assert RunLock(path).taken_from == stale
    assert list(path.parent.iterdir()) == [path]


def refuse_to_read(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def refused(self: Path, *how: object, **options: object) -> IO:
        if self == path:
            raise OSError(code, os.strerror(code))
        return real(self, *how, **options)

    monkeypatch.setattr(Path, "open", refused)


def test_a_lock_that_may_not_be_read_is_somebody_elses_and_not_to_be_removed(path, monkeypatch):
    put(path, Holder.here())
    refuse_to_read(path, errno.EACCES, monkeypatch)
    with pytest.raises(
        UserError, match="cannot be read: Permission denied. Another user may be writing this run"
    ) as told:
        RunLock(path)
    assert "remove" not in str(told.value)


def test_a_lock_that_another_client_of_nfs_has_just_removed_is_none(path, monkeypatch):
    put(path, Holder.here())
    real = Path.open

    def gone(self: Path, *how: object, **options: object) -> IO:
        if self != path:
            return real(self, *how, **options)
        monkeypatch.setattr(Path, "open", real)
        path.unlink()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "open", gone)
    assert RunLock(path).taken_from is None


def test_a_run_that_has_ended_is_not_disturbed_by_a_lock_that_cannot_be_read(path, monkeypatch):
    lock = RunLock(path)
    refuse_to_read(path, errno.EIO, monkeypatch)
    lock.release()
    assert path.exists()


def test_a_run_that_has_ended_is_not_disturbed_by_a_lock_that_was_damaged(path):
    lock = RunLock(path)
    path.write_text("not ours")
    lock.release()
    assert path.read_text() == "not ours"


def test_a_lock_is_ours_also_where_the_file_system_says_that_it_was_there_before(path, monkeypatch):
    real = os.link

    def answered_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", answered_twice)
    lock = RunLock(path)
    assert list(path.parent.iterdir()) == [path]
    lock.release()
    assert list(path.parent.iterdir()) == []


def test_the_other_name_of_a_stale_lock_is_not_taken_for_a_lock_of_ours(path):
    put(path, replace(Holder.here(), host="elsewhere", job=""))
    os.link(path, path.with_name(f"lock.{os.uname().nodename}.{os.getpid()}"))
    with pytest.raises(UserError, match="host elsewhere"):
        RunLock(path)


def test_of_a_container_with_our_name_only_a_person_knows_whether_a_process_lives(path):
    put(path, replace(ended(), namespace=1))
    with pytest.raises(UserError, match="cannot see whether it has ended.* remove this file"):
        RunLock(path)


def test_a_requeued_job_takes_the_run_also_from_another_container(path, monkeypatch):
    put(path, replace(ended(), namespace=1, job="77"))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert RunLock(path).taken_from is not None


def test_a_lock_from_before_namespaces_were_recorded_is_as_good_as_ever(path):
    stale = asdict(ended())
    del stale["namespace"]
    path.write_text(json.dumps(stale))
    assert RunLock(path).taken_from is not None


def test_the_hidden_process_of_another_user_lives(path, monkeypatch):
    # Linux gives no number above 2^22: there is nothing in /proc.
    hidden = replace(Holder.here(), pid=2**22 + 1)

    def refuse(pid: int, number: int) -> None:
        assert (pid, number) == (hidden.pid, 0)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", refuse)
    put(path, hidden)
    with pytest.raises(UserError, match="another process .* is writing this run"):
        RunLock(path)
    # But for one from before the machine's last boot.
    put(path, replace(hidden, started="1 another boot"))
    assert RunLock(path).taken_from is not None


@pytest.mark.parametrize("job", ["77", "88"])
def test_a_job_of_another_cluster_is_not_asked_for_here(path, tmp_path, monkeypatch, job):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    (programs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    put(path, replace(Holder.here(), host="elsewhere", job=job, cluster="there"))
    for name, value in {"CLUSTER_NAME": "here", "JOB_ID": "77", "RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match="cannot see whether it has ended"):
        RunLock(path)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "there")
    assert RunLock(path).taken_from.job == job


def test_who_has_the_run_removes_what_others_were_killed_over(path):
    dead, host = ended(), os.uname().nodename
    for name in ("status.{}.{}.new", "config.yaml.{}.{}.new", "lock.{}.{}"):
        path.with_name(name.format(host, dead.pid)).touch()
    kept = [f"status.{host}.{os.getppid()}.new", f"status.elsewhere.{dead.pid}.new", f"notes.{host}.{dead.pid}"]
    for name in kept:
        path.with_name(name).touch()
    RunLock(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(["lock", *kept])
