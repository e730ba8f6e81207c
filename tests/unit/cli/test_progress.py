"""What a person sees: the table at the end, and the lines on the way."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.four_rounds import THREE, write

from fedh2l_mpi import metrics
from fedh2l_mpi.config import Config
from fedh2l_mpi.lifecycle import progress, status
from fedh2l_mpi.runtime import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (29_557_547, "28.2 MiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(count, text):
    assert units.size(count) == text


def test_a_batch_log_has_a_line_for_each_evaluation(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedh2l_mpi"), "propagate", True)
    bar = progress.Progress(Config(rounds=4).resolved(1, False), shows=False)
    quiet_row = metrics.pack_row({"loss_private": 0.5, "seconds_local": 0.1}, [np.nan], [np.nan])
    row = metrics.pack_row({"loss_private": 0.5, "accuracy_all": 0.75, "seconds_local": 0.1}, [0.75], [1.0])
    with caplog.at_level(logging.INFO, "fedh2l_mpi"):
        bar.round(0, metrics.unpack_table(np.stack([quiet_row]), domains=1))
        bar.round(1, metrics.unpack_table(np.stack([row]), domains=1))
    (line,) = caplog.messages
    assert line.startswith("2 of 4 rounds: private 0.500 nats")
    assert "all-domain 0.750" in line
    assert "local 100 ms" in line


SHORT = ["--set", "rounds=1", "--set", "participants=1", "--set", "models=[mlp]"]


@pytest.mark.parametrize("streams", [">/dev/full", "| true", "<&- >&- 2>&-"])
def test_a_run_that_nobody_can_be_told_of_is_complete_without_an_error(tmp_path, streams):
    # Not before the reader has gone.
    wait = "sleep 0.2; " if "|" in streams else ""
    script = f'{{ {wait}"$@"; echo $? >code; }} {streams}'
    command = [sys.executable, "-m", "fedh2l_mpi", *SHORT, "--out", "run"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        ["sh", "-c", script, "sh", *command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert (ended.stderr, (tmp_path / "code").read_text()) == ("", "0\n")
    assert status.read(tmp_path / "run" / "status").state == "complete"


def test_a_path_that_cannot_be_looked_at_is_a_mistake_and_no_fault(tmp_path):
    run = write(tmp_path / "run", THREE)
    ended = subprocess.run(
        [sys.executable, "-m", "fedh2l_mpi", "export", run, "--to", "csv", "--out", "a" * 300],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"fedh2l_mpi: error: {'a' * 300}: ")
    assert ended.stderr.count("\n") == 1


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    folder = os.fsencode(tmp_path) + b"/run-\xff"
    os.rename(write(tmp_path / "run", THREE), folder)
    ended = subprocess.run(
        [sys.executable, "-m", "fedh2l_mpi", "report", "--format", "csv", folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[1].startswith("run-\\udcff,")
