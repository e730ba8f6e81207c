"""Whole sweeps: real runs, real kills, two at once in one directory."""

import csv
import fcntl
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.launching import SHARES, Ended, kill, launch, mpich, start
from helpers.same_runs import assert_same_run

from fedh2l_mpi import metrics
from fedh2l_mpi.config import loading
from fedh2l_mpi.run_directory import RunDirectory

TINY = """
set:
  {participants: 2, rounds: 2, evaluation.every: 1, models: [mlp], method.local_steps: 1, method.mutual_steps: 1,
   evaluation.test_samples_per_domain: 50, seed_set.samples_per_round: 50, checkpoint.every: 10}
elements:
  - {name: plain}
  - {name: other, ELEMENT}
axes: {seed: [0, 1]}
table: {columns: [accuracy_all, bytes_sent], reach: [0.01], compare_to: plain, title: A tiny sweep}
"""
LABELS = ["plain,seed=0", "plain,seed=1", "other,seed=0", "other,seed=1"]


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep file of two elements and two seeds; gives the command line for it."""

    def write(element: str = "method.temperature: 4.0", **changes: str) -> list[str]:
        path = tmp_path / "tiny.yaml"
        text = TINY.replace("ELEMENT", element)
        for old, new in changes.items():
            text = re.sub(f"{old}: [^,}}]+", f"{old}: {new}", text)
        path.write_text(text)
        return ["sweep", str(path), "--out", str(tmp_path / "out")]

    return write


def listed(command: list[str]) -> list[str]:
    ended = launch([*command, "--list"])
    assert ended.code == 0, ended.err
    return ended.out.splitlines()


def text(ended: Ended) -> str:
    return ended.out + ended.err


def wait_for_pid(run: Path) -> int:
    """Pid of a run's rank 0, once its first round is in the file."""
    log = run / "log" / "rank-0000.log"
    for _ in range(600):
        if log.exists() and " rounds: " in (said := log.read_text()):
            return int(said.split("pid ")[1].split(")")[0])
        time.sleep(0.05)
    raise AssertionError(f"{run} did not start within 30 s")


def is_left(marker: Path) -> bool:
    """Whether a process still runs whose command names the path."""
    return bool(subprocess.run(["pgrep", "-f", str(marker)], capture_output=True, text=True).stdout.split())


def test_a_sweep_runs_every_element_and_compares_them_and_does_nothing_twice(tmp_path, sweep):
    command, out = sweep(), tmp_path / "out"
    assert listed(command) == [f"{number}  to do  {label}" for number, label in enumerate(LABELS)]
    ended = launch([*command, "--jobs", "2"])
    assert ended.code == 0, ended.err
    assert len(re.findall(r"\d of 4 runs: .*: all-domain 0\.\d{3}, \d+ s", ended.out)) == 4
    table = (out / "table.md").read_text()
    assert "**A tiny sweep**" in table
    assert re.search(r"\| other \| 0\.\d{3} ± 0\.\d{3} \| .* \| [+-]0\.\d{3} ± 0\.\d{3} \([012] of 2\) \|", table)
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == LABELS
    for row in rows:
        run = metrics.read(out / row["label"] / "metrics.h5")
        assert float(row["accuracy_all"]) == run["accuracy_all"][-1].mean()
        assert float(row["bytes_sent"]) == run["bytes_sent"].sum(axis=0).mean()
    assert (out / "curves.png").exists()
    assert not list(out.glob("*.log"))

    assert listed(command) == [f"{number}  finished  {label}" for number, label in enumerate(LABELS)]
    written = {label: (out / label / "metrics.h5").stat().st_mtime_ns for label in LABELS}
    again = launch(command)
    assert again.code == 0
    assert "4 of 4 runs had already finished" in again.out
    assert again.out.partition("A tiny sweep")[2] == ended.out.partition("A tiny sweep")[2]
    assert written == {label: (out / label / "metrics.h5").stat().st_mtime_ns for label in LABELS}


def test_a_finished_run_of_another_config_is_never_taken_for_this_one(tmp_path, sweep):
    command = sweep()
    assert launch([*command, "--index", "0", "--quiet"]).code == 0
    ended = launch([*command, "--set", "optimizer.lr=0.1", "--set", "devices.kind=cpu"])
    assert ended.code == 2
    assert "plain,seed=0: this directory contains a finished run of a different config" in ended.err
    assert "It differs in optimizer.lr (there 0.001, here 0.1)." in ended.err
    assert "Choose another --out" in ended.err
    # Where a run was computed makes it no other run.
    assert launch([*command, "--index", "0", "--set", "devices.kind=cpu"]).code == 0


@pytest.mark.parametrize("options", [[], ["--share-imports"]])
def test_ranks_give_the_same_numbers(tmp_path, sweep, options):
    command = sweep()
    alone, ranks = [*command[:2], "--out", str(tmp_path / "alone")], [*command, "--ranks", "2", "--jobs", "2", *options]
    assert launch([*alone, "--index", "1"]).code == 0
    assert launch([*ranks, "--quiet"]).code == 0
    for log in (tmp_path / "out").glob("*/log/rank-*.log"):
        assert (SHARES in log.read_text()) == bool(options)
    one, other = (metrics.read(tmp_path / name / LABELS[1] / "metrics.h5") for name in ("alone", "out"))
    assert (one["accuracy"] == other["accuracy"]).all()
    assert (one.attributes["ranks"], other.attributes["ranks"]) == (1, 2)


def test_one_element_is_run_in_a_batch_job_of_several_tasks(tmp_path, sweep):
    # In the shell of an sbatch script; the run is not one of these tasks.
    environ = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    ended = launch([*sweep(), "--index", "2"], environ=environ)
    assert ended.code == 0, ended.err
    assert "1 of 1 runs: other,seed=0: all-domain" in ended.out
    assert "A tiny sweep" not in ended.out
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["other,seed=0", "other,seed=0.yaml"]


def test_an_element_is_prepared_for_a_job_that_runs_it_and_counts_as_finished(tmp_path, sweep):
    command, run = sweep(), tmp_path / "out" / LABELS[2]
    none = launch([*command, "--table"])
    assert (none.code, "--table: none of the 4 runs in" in none.err) == (2, True)
    prepared = launch([*command, "--index", "2", "--prepare"])
    assert (prepared.code, prepared.out) == (0, f"{run}\n"), prepared.err
    assert [path.name for path in run.parent.iterdir()] == [f"{LABELS[2]}.yaml"]
    written = run.with_name(f"{run.name}.yaml").stat().st_mtime_ns

    done = launch([f"{run}.yaml", "--out", str(run), "--resume", "auto", "--quiet"], ranks=2)
    assert done.code == 0, done.err
    assert [line.split()[1] for line in listed(command)] == ["to", "to", "finished", "to"]
    again = launch([*command, "--index", "2", "--prepare"])
    assert (again.code, again.out) == (0, f"{run}\n")
    assert run.with_name(f"{run.name}.yaml").stat().st_mtime_ns == written
    other = launch([*command, "--index", "2", "--prepare", "--set", "optimizer.lr=0.1"])
    assert other.code == 2
    assert "contains a run of a different config. It differs in optimizer.lr (there 0.001, here 0.1)." in other.err

    table = launch([*command, "--table", "--set", "devices.kind=cpu"])
    assert table.code == 0, table.err
    assert "1 of 4 runs have finished" in table.out
    with (tmp_path / "out" / "table.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [LABELS[2]]


def test_an_element_that_another_process_runs_is_not_prepared(tmp_path, sweep):
    command = sweep()
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / f"{LABELS[1]}.yaml").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = launch([*command, "--index", "1", "--prepare"])
    assert refused.code == 2
    assert f"{LABELS[1]}.yaml: another process runs this element. Wait until it ends" in refused.err
    # What a kill has left of an earlier try is no config.
    (tmp_path / "out" / f"{LABELS[1]}.yaml").write_text("participants: 1, rou")
    assert launch([*command, "--index", "1", "--prepare"]).code == 0
    assert loading.load(tmp_path / "out" / f"{LABELS[1]}.yaml").seed == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prepare"], "--prepare: this option needs --index, too"),
        (["--index", "4"], "--index: got 4, must be from 0 to 3"),
        (["--index", "-1"], "--index: got -1, must be from 0 to 3"),
        (["--jobs", "0"], "--jobs: got '0', must be a whole number >= 1"),
        (["--ranks", "3"], "--ranks: got 3, but there are 2 participants"),
        (
            ["--share-imports"],
            "--share-imports: a run of one process has no other rank to share with. Fix: give --ranks 2 or more",
        ),
        (["--share-imports", "--ranks", "2", "--index", "0", "--prepare"], "--share-imports: --prepare runs nothing."),
        (["--set", "topology.kind=star", "--set", "seed=3"], "--set seed: an axis or an element sets this key"),
        (["--set", "topology={kind: random_regular, degree: 3}"], "topology.degree: got 3. It must be less than"),
        (["--set", "data={name: mnist, root: /nowhere}"], "/nowhere"),
        (
            ["--set", "models=[lenet5, mlp]", "--set", "method.name=d_psgd", "--set", "method.temperature=null"],
            "averages parameters",
        ),
    ],
)
def test_what_cannot_run_is_told_before_anything_does(tmp_path, sweep, options, says):
    ended = launch([*sweep("rounds: 3"), *options])
    assert ended.code == 2, text(ended)
    assert says in ended.err
    assert ended.err.startswith("fedh2l_mpi: error: ")
    assert not [path for path in tmp_path.glob("out/*") if path.is_dir()]


def test_several_processes_are_told_that_one_is_enough(sweep):
    ended = launch(sweep(), ranks=2)
    assert ended.code != 0
    assert "mpirun started 2 processes, but one process starts the runs. Fix: use --ranks 2" in text(ended)


def test_a_run_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path, sweep):
    command = sweep("optimizer: {name: sgd, lr: 1000000.0}", rounds="20")
    ended = launch([*command, "--jobs", "2"])
    assert ended.code == 1
    assert ended.out.count(": all-domain 0.") == 2
    assert "2 of 4 runs failed:\n  other,seed=" in ended.err
    assert (tmp_path / "out" / "other,seed=1.log").read_text().startswith("fedh2l_mpi: error: ")
    # A row without any run, and so a column for their number.
    assert "| other | 0 | - | - | - | - |" in (tmp_path / "out" / "table.md").read_text()
    assert [line.split()[1] for line in listed(command)] == ["finished", "finished", "unfinished", "unfinished"]


def test_a_killed_run_goes_on_from_its_checkpoint_and_is_the_unbroken_one(tmp_path, sweep):
    command, out = sweep(rounds="80"), tmp_path / "out"
    process = start([mpich().python, "-m", "fedh2l_mpi", *command, "--jobs", "2"])
    try:
        pid = wait_for_pid(out / LABELS[1])
        for _ in range(600):
            if RunDirectory(out / LABELS[1]).committed():
                break
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        said, errors = process.communicate(timeout=120)
    finally:
        kill(process)
    assert process.returncode == 1, said + errors
    assert "1 of 4 runs failed:\n  plain,seed=1: ended by SIGKILL" in errors
    assert 10 <= metrics.read(out / LABELS[1] / "metrics.h5").rounds < 80
    again = launch(command)
    assert again.code == 0, again.err
    assert "3 of 4 runs had already finished" in again.out
    assert "plain,seed=1 had not finished. It resumes from its checkpoint" in again.out
    assert not list(out.glob("*.unfinished-*"))
    unbroken = launch([str(out / f"{LABELS[1]}.yaml"), "--quiet", "--out", str(tmp_path / "unbroken")])
    assert unbroken.code == 0, unbroken.err
    assert_same_run(tmp_path / "unbroken", out / LABELS[1], 80)


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_what_was_there_is_kept(tmp_path, sweep):
    command, out = sweep(rounds="80", **{"checkpoint.every": "null"}), tmp_path / "out"
    process = start([mpich().python, "-m", "fedh2l_mpi", *command, "--index", "1"])
    try:
        os.kill(wait_for_pid(out / LABELS[1]), signal.SIGKILL)
        process.communicate(timeout=120)
    finally:
        kill(process)
    kept = metrics.read(out / LABELS[1] / "metrics.h5").rounds
    assert 1 <= kept < 80
    again = launch([*command, "--index", "1"])
    assert again.code == 0, again.err
    assert "plain,seed=1 had not finished. It starts again" in again.out
    assert metrics.read(out / f"{LABELS[1]}.unfinished-1" / "metrics.h5").rounds == kept
    assert metrics.read(out / LABELS[1] / "metrics.h5").rounds == 80


@pytest.mark.parametrize(
    ("signal_sent", "options"), [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGTERM, ["--share-imports"])]
)
def test_an_interrupted_sweep_leaves_nobody_behind_and_can_be_gone_on_with(tmp_path, sweep, signal_sent, options):
    command, out = sweep(rounds="100000"), tmp_path / "out"
    process = start([mpich().python, "-m", "fedh2l_mpi", *command, "--ranks", "2", *options])
    try:
        wait_for_pid(out / LABELS[0])
        os.kill(process.pid, signal_sent)
        said, errors = process.communicate(timeout=30)
    finally:
        kill(process)
    assert process.returncode == 130, said + errors
    assert "interrupted after 0 of 4 runs had finished. The same command resumes the sweep" in errors
    assert not is_left(out)
    assert [line.split()[1] for line in listed(command)] == ["unfinished", "to", "to", "to"]


def test_two_sweeps_at_once_share_the_work(tmp_path, sweep):
    command, out = sweep(rounds="20"), tmp_path / "out"
    both = [start([mpich().python, "-m", "fedh2l_mpi", *command]) for _ in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            kill(process)
    assert [process.returncode for process in both] == [0, 0], said
    ran = [label for text, _ in said for label in re.findall(r"runs: (\S+): all-domain 0\.\d+, \d+ s", text)]
    assert sorted(ran) == sorted(LABELS)
    tables = [text.partition("A tiny sweep")[2] for text, _ in said]
    assert tables[0] == tables[1] != ""
    assert not list(out.glob("*.unfinished-*"))


def test_a_run_whose_sweep_was_killed_is_waited_for_and_left_alone_by_an_array_job(tmp_path, sweep):
    command, out = sweep(rounds="80"), tmp_path / "out"
    program = [mpich().python, "-m", "fedh2l_mpi"]
    killed = start([*program, *command])
    run = wait_for_pid(out / LABELS[0])
    os.kill(run, signal.SIGSTOP)
    try:
        kill(killed)
        assert listed(command)[0] == "0  running  plain,seed=0"
        ended = launch([*command, "--index", "0"])
        assert ended.code == 0
        assert "plain,seed=0: another process runs it, so it is skipped here" in ended.out
        after = start([*program, *command])
        try:
            for _ in range(600):
                if (out / LABELS[-1] / "metrics.h5").exists():
                    break
                time.sleep(0.05)
            os.kill(run, signal.SIGCONT)
            said, errors = after.communicate(timeout=60)
        finally:
            kill(after)
        assert after.returncode == 0, errors
        assert "plain,seed=0: another process runs it\n" in said
        assert re.search(r"plain,seed=0: all-domain 0\.\d+, in another process", said)
        assert not list(out.glob("*.unfinished-*"))
    finally:
        if is_left(out):
            os.kill(run, signal.SIGKILL)
