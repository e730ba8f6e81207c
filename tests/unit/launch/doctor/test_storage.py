"""The run directory's file system: locks, renames, and ranks that do not share it."""

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.doctor_findings import levels

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.doctor import storage
from fedh2l_mpi.launch.doctor.findings import Level
from fedh2l_mpi.runtime.world import World


def test_what_was_tried_is_removed_again(tmp_path):
    told = storage.examine(World(None), tmp_path, {})
    assert {line.what for line in told} >= {"directory", "space", "locks", "rename", "HDF5"}
    assert not [line for line in told if line.level is Level.FAILURE]
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_out_or_what_holds_it_or_runs_or_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.folder_for(None).resolve() == tmp_path
    Path("runs").mkdir()
    assert storage.folder_for(None) == Path("runs")
    assert storage.folder_for("runs/a/b/c") == Path("runs")
    assert storage.folder_for(str(tmp_path / "x")) == tmp_path
    Path("file").touch()
    for out in ("file", "file/run"):
        with pytest.raises(UserError, match="--out: file is a file"):
            storage.folder_for(out)
    with pytest.raises(UserError, match="--out: aaa.* cannot be written: File name too long"):
        storage.folder_for("a" * 300)


def test_a_directory_that_cannot_be_written_is_a_failure():
    told = storage.examine(World(None), Path("/proc"), {})
    assert levels(told) == [Level.FAILURE]
    assert re.search(r"/proc cannot be written: .*. Fix: choose another directory with --out", told[0].text)


def test_a_file_system_without_flock_is_warned_of_for_sweeps_alone(tmp_path, monkeypatch):
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = storage.locks(tmp_path)
    assert told.level is Level.WARNING
    assert re.search(
        r"flock does not \(ENOLCK\), so `sweep` refuses .* Fix: give `sweep` an --out on another", told.text
    )


def test_locks_that_keep_nobody_out_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    assert storage.locks(tmp_path).level is Level.WARNING


def test_a_lock_that_a_run_could_not_write_is_a_failure(tmp_path):
    told = storage.locks(tmp_path / "missing")
    assert (told.level, "the lock cannot be written: No such file" in told.text) == (Level.FAILURE, True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("of_folders", [True, False])
def test_an_fsync_is_judged_as_a_run_judges_it(tmp_path, monkeypatch, number, of_folders):
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is of_folders:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    told = storage.renames(tmp_path)
    if of_folders and number == errno.EINVAL:
        assert (told.level, "fsync of file (not known for directories here)" in told.text) == (Level.GOOD, True)
    else:
        assert told.level is Level.FAILURE
        assert f"rename or fsync does not work here: {os.strerror(number)}" in told.text


@pytest.mark.parametrize(
    ("environ", "fix"),
    [({}, "choose another directory with --out"), ({"HDF5_USE_FILE_LOCKING": "TRUE"}, "unset HDF5_USE_FILE_LOCKING")],
)
def test_a_metrics_file_that_cannot_be_locked_is_a_failure(tmp_path, monkeypatch, environ, fix):
    from fedh2l_mpi import metrics

    def refuse(path: Path, header: object) -> None:
        raise BlockingIOError(11, "unable to lock file,\n errno = 11")

    monkeypatch.setattr(metrics, "MetricsWriter", refuse)
    told = storage.metrics_file(tmp_path, environ)
    assert told.level is Level.FAILURE
    assert f"unable to lock file, errno = 11. Fix: {fix}" in told.text


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds a library without locks")
def test_the_remedy_of_a_file_system_without_locks_helps(tmp_path):
    source, library = tmp_path / "no_locks.c", tmp_path / "no_locks.so"
    source.write_text("#include <errno.h>\nint flock(int file, int how) { errno = ENOLCK; return -1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = "import os, pathlib, sys\nfrom fedh2l_mpi.launch.doctor import storage\n"
    code += "print(storage.metrics_file(pathlib.Path(sys.argv[1]), os.environ).text)"
    environment = {**os.environ, "LD_PRELOAD": str(library)}

    def found(name: str, **setting: str) -> str:
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        return subprocess.run(command, env=environment | setting, capture_output=True, text=True, check=True).stdout

    told = found("set", HDF5_USE_FILE_LOCKING="TRUE")
    assert "No locks available" in told
    assert "Fix: unset HDF5_USE_FILE_LOCKING." in told
    environment.pop("HDF5_USE_FILE_LOCKING", None)
    assert found("unset").startswith("a metrics file (SWMR) can be written")


MOUNTS = """\
25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 25 0:40 / /home rw - nfs4 server:/home rw
31 25 0:41 / /scratch\\040big rw shared:2 master:3 - lustre mgs@tcp:/scratch rw
32 25 0:42 / /dev/shm rw - tmpfs tmpfs rw
33 30 0:43 / /home/me rw - ext4 /dev/sdb rw
34 30 0:44 / /home/me rw - xfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "mount"),
    [
        ("/var/x", "ext4", "/"),
        ("/home/you/runs", "nfs4", "/home"),
        ("/homeless", "ext4", "/"),
        ("/scratch big/runs", "lustre", "/scratch big"),
        ("/home/me/runs", "xfs", "/home/me"),
    ],
)
def test_the_file_system_is_that_of_the_longest_and_last_mount(path, kind, mount):
    assert storage.file_system(Path(path), MOUNTS) == (kind, mount)
    assert storage.file_system(Path(path), "") == ("", "")


@pytest.mark.parametrize(("kind", "level"), [("nfs4", Level.WARNING), ("tmpfs", Level.WARNING), ("lustre", Level.GOOD)])
def test_a_file_system_that_orders_no_writes_or_forgets_is_warned_of(tmp_path, monkeypatch, kind, level):
    monkeypatch.setattr(storage, "_mounts", lambda: f"1 1 0:1 / / rw - {kind} x rw\n")
    assert storage._directory(tmp_path)[0].level is level


def test_ranks_that_do_not_share_the_directory_are_told_by_host():
    folder = Path("/scratch")
    assert storage.shared(["n1", "n1"], ["", ""], folder).level is Level.FACT
    assert storage.shared(["n1", "n2"], ["", ""], folder).level is Level.GOOD
    told = storage.shared(["n1", "n1", "n2", "n3"], ["", "", "does not see it: No such file", "x"], folder)
    assert told.level is Level.FAILURE
    assert told.text.startswith("2 of 4 ranks (on n2, n3) do not share /scratch: rank 2 does not see it")


def test_a_file_that_never_comes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    assert storage._reads(tmp_path / "token", "x") == "does not see it: No such file or directory"
    (tmp_path / "token").write_text("x")
    assert storage._reads(tmp_path / "token", "x") == ""
    assert storage._reads(tmp_path / "token", "y") == "reads a different text there"
