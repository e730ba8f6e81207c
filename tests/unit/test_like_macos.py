"""Nothing that only Linux has is needed to check, run, resume, sweep and look: `helpers/like_macos` takes it away."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from helpers.launching import ROOT, Ended, assert_same, launch

from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.run_directory import RunDirectory

LIKE_MACOS = ROOT / "tests" / "helpers" / "like_macos"
SETTINGS = ["--set", "models=[mlp]", "--set", "participants=2", "--set", "rounds=3", "--set", "evaluation.every=1"]
BOOT = "1E7F0C4A-0000-4000-8000-000000000000"


@pytest.fixture
def mac(tmp_path):
    """Runs a command as on macOS, where sysctl knows the session of the boot."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sysctl").write_text(f'#!/bin/sh\n[ "$2" != kern.bootsessionuuid ] || echo {BOOT}\n')
    (tmp_path / "bin" / "sysctl").chmod(0o755)
    environ = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environ["PYTHONPATH"] = os.pathsep.join(map(str, (LIKE_MACOS, ROOT)))

    def run(*words: str, code: int = 0) -> Ended:
        ended = launch(words, environ=environ, cwd=tmp_path)
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err
        return ended

    return run


def test_the_imitation_takes_away_what_it_says(tmp_path):
    said = "import os, sys; print(sys.platform, os.path.exists('/proc/self'), hasattr(os, 'sched_getaffinity'))"
    environ = {**os.environ, "PYTHONPATH": str(LIKE_MACOS)}
    ended = subprocess.run([sys.executable, "-c", said], env=environ, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["darwin", "False", "False"], ended.stderr
    opening = "open('/proc/self/stat')"
    ended = subprocess.run([sys.executable, "-c", opening], env=environ, capture_output=True, text=True, timeout=60)
    assert "FileNotFoundError" in ended.stderr


def hold(out: RunDirectory, pid: int, started: str) -> None:
    """Write the lock of a process of this machine."""
    out.lock.write_text(json.dumps({"host": socket.gethostname(), "pid": pid, "started": started}) + "\n")


def start_of(pid: int) -> str:
    """The start of a process, as its lock has it on macOS."""
    environ = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    return subprocess.check_output(["ps", "-o", "lstart=", "-p", str(pid)], env=environ, text=True).strip()


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps here, which macOS has")
def test_runs_are_checked_run_resumed_and_looked_at(tmp_path, mac):
    out = RunDirectory(tmp_path / "run")
    assert "the config is sound" in mac("--check", *SETTINGS).out
    out.path.mkdir()
    out.stop_request.touch()
    begun = mac("--share-imports", *SETTINGS, "--out", str(out.path))
    assert "imports are not shared: this needs Linux" in begun.out
    # A process that lives holds its lock.
    hold(out, os.getpid(), f"{'-'.join(start_of(os.getpid()).split())} {BOOT}")
    assert "is writing this run" in mac("--resume", "auto", "--out", str(out.path), code=2).err
    # The lock of a process that was killed with its watchdog; then of one from before the machine started again.
    for pid, boot in ((2**22 + 1, BOOT), (os.getpid(), BOOT[::-1])):
        assert status.read(out.status).state == "stopped"
        hold(out, pid, f"Sat-Nov-28-03:11:56-2026 {boot}")
        if boot == BOOT:
            out.stop_request.touch()
        assert "took over the lock" in mac("--resume", "require", "--out", str(out.path)).out
    usual = launch([*SETTINGS, "--quiet", "--out", str(tmp_path / "usual")])
    assert usual.code == 0, usual.err
    assert_same(tmp_path / "usual" / "metrics.h5", out.metrics)
    assert "complete, 3 rounds" in mac("watch", str(out.path)).out
    assert "mean of 2" in mac("report", str(out.path)).out
    mac("plot", str(out.path), "--out", str(tmp_path / "plot.png"))
    assert "memory" in mac("plan", *SETTINGS, "--ranks", "2").out


def test_a_sweep_runs_and_the_doctor_finds_nothing_wrong(tmp_path, mac):
    (tmp_path / "two.yaml").write_text(
        "set: {participants: 2, models: [mlp], rounds: 1}\naxes: {method: [fedh2l, independent]}\n"
    )
    swept = mac("sweep", "two.yaml", "--out", "swept", "--jobs", "2")
    assert "2 of 2" in swept.out + swept.err
    assert "a run would work here" in mac("doctor").out
