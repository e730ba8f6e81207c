"""What a person sees: the table at the end, and the lines on the way."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from helpers.four_rounds import THREE, write
from helpers.launching import ROOT
from rich.console import Console

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import report, watch
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.analysis.summary import summarise
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.lifecycle import progress, status
from fedh2l_mpi.planning import check
from fedh2l_mpi.runtime import units
from fedh2l_mpi.runtime.world import World


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


@pytest.mark.parametrize(
    ("least", "says"),
    [
        ("1", ["draw 9 of the partition has data.partition.min_per_class=1 of every class"]),
        ("null", ["3 of 10 classes have no seed samples, the first is class 2", "min_per_class=1"]),
    ],
)
def test_a_log_says_which_draw_the_partition_is_and_which_classes_are_absent(caplog, monkeypatch, least, says):
    monkeypatch.setattr(logging.getLogger("fedh2l_mpi"), "propagate", True)
    overrides = ["seed_set.max_samples=20", f"data.partition.min_per_class={least}"]
    config = loading.load(None, overrides).resolved(1, launched=False)
    with caplog.at_level(logging.INFO, "fedh2l_mpi"):
        progress.log_start(config, World(None), [], federated.plan(config, digits()))
    assert all(words in caplog.messages[-1] for words in says)
    assert len(caplog.messages) == 3


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


SECONDS = {"seconds_local": 0.04, "seconds_wait": 0.0, "seconds_mutual": 0.057}
SLOW = {"seconds_local": 12.3, "seconds_wait": 0.04, "seconds_mutual": 99.9}


@pytest.mark.parametrize(("participants", "unheld"), [(2, "rotated 40 deg, rotated 60 deg"), (4, ""), (9, "")])
def test_many_participants_are_in_the_log_file_only_and_domains_of_nobody_are_named(
    caplog, monkeypatch, participants, unheld
):
    monkeypatch.setattr(logging.getLogger("fedh2l_mpi"), "propagate", True)
    config = loading.load(None, [f"participants={participants}", "models=[mlp]"]).resolved(1, launched=False)
    plan = federated.plan(config, digits())
    row = {"architecture": "mlp", "parameters": 1, "rank": 0, "host": "h", "pid": 1, "device": "cpu"}
    everyone = [{**row, "own_domain": 0, "private_samples": 1}] * participants
    with caplog.at_level(logging.INFO, "fedh2l_mpi"):
        progress.log_start(config, World(None), everyone, plan)
    listed = [record for record in caplog.records if record.message.startswith("participant ")]
    assert [getattr(record, "file_only", False) for record in listed] == [participants == 9] * participants
    assert ("9 x mlp; the log file lists participants" in caplog.messages) == (participants == 9)
    held_by_nobody = [message for message in caplog.messages if "held by nobody" in message]
    assert len(held_by_nobody) == bool(unheld)
    assert all(unheld in message for message in held_by_nobody)


def test_classes_of_one_participant_only_are_named_at_the_start_and_by_check(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedh2l_mpi"), "propagate", True)
    # 6 hands of 10 classes: 6 are held once and 4 by nobody.
    config = loading.load(None, ["participants=3", "data.partition=pathological", "models=[mlp]"])
    config = config.resolved(1, launched=False)
    plan = federated.plan(config, digits())
    assert len(plan.rare_classes()) == 6
    row = {"architecture": "mlp", "parameters": 1, "rank": 0, "host": "h", "pid": 1, "device": "cpu"}
    with caplog.at_level(logging.INFO, "fedh2l_mpi"):
        progress.log_start(config, World(None), [{**row, "own_domain": 0, "private_samples": 1}] * 3, plan)
    assert sum("6 of 10 classes are held by one participant only" in message for message in caplog.messages) == 1
    written = io.StringIO()
    Console(file=written, width=200).print(check.check(config))
    shown = written.getvalue()
    rare = ", ".join(map(str, plan.rare_classes()))
    assert f"held by one participant only: {rare}" in shown
    assert "held by nobody, but tested: rotated 60 deg (fix: more participants or a smaller data.partition.dom" in shown


@pytest.mark.parametrize(
    ("width", "rounds", "seconds", "shows"),
    [
        (60, 9999, SLOW, "12/9999 .* accuracy 0.826 -:--:-- left"),
        (80, 40, SECONDS, "12/40 .* accuracy 0.826, local 40, wait 0, mutual 57 ms -:--:-- left"),
        (80, 9999, SLOW, "12/9999 .* accuracy 0.826, local 12.3, wait 0.0, mutual 99.9 s -:--:-- left"),
    ],
)
def test_the_bar_is_one_line_with_all_its_numbers_and_times_if_there_is_room(
    monkeypatch, width, rounds, seconds, shows
):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bar = progress.TerminalBar(rounds, 0, console)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    monkeypatch.setattr(progress, "TerminalBar", lambda rounds, done: bar)
    shown = progress.Progress(Config(rounds=rounds).resolved(1, False), shows=True)
    row = metrics.pack_row({"accuracy_all": 0.826, **seconds}, [0.826], [1.0])
    with shown.after(0):
        shown.round(11, metrics.unpack_table(np.stack([row]), domains=1))
    console.file.truncate(0)
    console.print(bar._bar.get_renderable())
    (line,) = console.file.getvalue().strip("\x00\n").splitlines()
    assert re.search(shows, line), line
    assert len(line) <= width


def test_a_run_in_a_terminal_of_80_columns_breaks_its_lines_between_words(tmp_path):
    command = [sys.executable, "-m", "fedh2l_mpi", str(ROOT / "configs/digits_ring.yaml"), "--set", "rounds=3"]
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    with subprocess.Popen(
        [*command, "--out", "run"], cwd=tmp_path, env=environ, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        written = b""
        # On Linux, a terminal whose other end is closed fails to read.
        with contextlib.suppress(OSError):
            while block := os.read(leader, 65536):
                written += block
        assert process.wait(60) == 0
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert max(map(len, lines)) <= 80, lines
    assert any(re.match(r" {9}\S", line) for line in lines)
    assert any(line.startswith("3/3 ") and line.rstrip().endswith(" left") for line in lines)
    # The file has each message in one line.
    assert re.search(
        r"participant 0: lenet5, .*, by label \[.*\]\n", (tmp_path / "run" / "log" / "rank-0000.log").read_text()
    )


def test_a_watched_run_fits_80_columns(tmp_path):
    watched = watch.WatchedRun(
        write(tmp_path / "a-run-with-a-name-that-is-a-good-deal-longer-than-most", THREE) / "metrics.h5"
    )
    watched.look()
    watched.problems.append("a problem that needs many words " * 5)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(watch.view(watched))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_a_result_table_fits_80_columns(tmp_path):
    console = Console(file=io.StringIO(), width=80, color_system=None)
    run = load_run(write(tmp_path / "run", THREE))
    console.print(report.rich_table(report.result_table(summarise(run))))
    run.close()
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(("rounds", "said"), [(4, []), (6, ["the rate is 0 from round 4 on, so later rounds"])])
def test_a_run_that_outlasts_its_schedule_says_that_its_last_rounds_train_nothing(monkeypatch, rounds, said):
    logged: list[str] = []
    monkeypatch.setattr(progress.log, "warning", logged.append)
    config = loading.load(None, [f"rounds={rounds}", "optimizer={schedule: cosine, schedule_rounds: 4}"])
    progress.log_notes(World(None), "", "", 0, config)
    assert len(logged) == len(said)
    assert all(words in text for words, text in zip(said, logged, strict=True))
