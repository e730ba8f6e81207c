"""Damaged metrics files: one line names the damage, and everything readable is shown."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import xarray
from helpers.four_rounds import THREE, write
from helpers.launching import ROOT

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import export, html, open_run, open_runs, report, summary, validation
from fedh2l_mpi.analysis import run as runs
from fedh2l_mpi.analysis.validation import contents
from fedh2l_mpi.analysis.validation.findings import Report
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import reader
from fedh2l_mpi.runtime import hdf5_superblock, processes

# In a process of its own, which a damaged file may crash or stop for ever; the last seed printed is the culprit.
FUZZ = """
import faulthandler, os, random, sys
from pathlib import Path
from fedh2l_mpi.analysis import open_run, report, summary, validation
from fedh2l_mpi.analysis import run as runs
from fedh2l_mpi.errors import UserError

faulthandler.dump_traceback_later(60, exit=True)
sound, first, last = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), int(sys.argv[3])
shown = 0
for seed in range(first, last):
    print(seed, flush=True)
    draw, content = random.Random(seed), bytearray(sound)
    if seed % 3:
        for _ in range(draw.choice([1, 1, 4, 16, 64])):
            # Half of them where HDF5 keeps what the rest is.
            at = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(min(len(content), 40_000))
            content[at] ^= 1 << draw.randrange(8)
    else:
        del content[draw.randrange(len(content)) :]
    path = Path(sys.argv[1]).with_name("damaged.h5")
    path.write_bytes(content)
    # Nobody writes it, so that nothing is waited for.
    os.utime(path, (0, 0))
    try:
        run = runs.load_run(path)
        told = summary.summarise(run)
        assert [run.metrics[name].shape for name in run.metrics.arrays]
        run.close()
        if seed % 4 == 0:
            assert report.as_csv([told]) and report.as_json([told])
            with open_run(path) as data:
                data.load()
        shown += 1
    except UserError as error:
        assert str(path) in str(error) and "\\n" not in str(error), error
    if seed % 2 == 0:
        validation.validate(path, programs=False)
print("shown", shown)
"""

SIZES = ("round", "participant", "domain", "class", "bin", "edge")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound file, and the same as a killed writer leaves it."""
    folder = tmp_path_factory.mktemp("sound")
    path = write(folder / "run", THREE) / "metrics.h5"
    content = bytearray(path.read_bytes())
    content[hdf5_superblock.FLAGS_AT] = 5
    content[44:48] = hdf5_superblock.lookup3(bytes(content[:44])).to_bytes(4, "little")
    (folder / "killed.h5").write_bytes(content)
    (folder / "closed.h5").write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["closed", "killed"])
def test_no_flipped_bit_and_no_cut_tail_ends_in_a_traceback(sound, tmp_path, kind):
    copy = tmp_path / f"{kind}.h5"
    copy.write_bytes((sound / f"{kind}.h5").read_bytes())
    ended = subprocess.run([sys.executable, "-c", FUZZ, copy, "0", "250"], capture_output=True, text=True, timeout=120)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"seed {lines[-1:]}\n{ended.stderr[-3000:]}"
    assert int(lines[-1].split()[1]) > 50, "next to nothing could be shown"


def test_the_view_of_a_killed_file_is_the_file_that_h5clear_leaves(sound, tmp_path):
    with (sound / "killed.h5").open("rb") as file:
        superblock = file.read(hdf5_superblock.SUPERBLOCK_BYTES)
    assert (
        hdf5_superblock.clear_flags(superblock)
        == (sound / "closed.h5").read_bytes()[: hdf5_superblock.SUPERBLOCK_BYTES]
    )
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(sound / "killed.h5", "r")
    run = metrics.look(sound / "killed.h5")
    assert (run.closed, run.rounds, run.problems) == (False, 4, [])


def test_a_cut_file_shows_what_is_before_the_cut(sound, tmp_path):
    content = (sound / "closed.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) * 3 // 4])
    run = metrics.look(tmp_path / "cut.h5")
    known = [name for name in run.arrays if not (run[name].dtype.kind == "f" and np.isnan(run[name]).all())]
    assert "accuracy" in known
    assert any("cannot be read" in problem for problem in run.problems)


def test_a_newer_schema_missing_rounds_and_missing_arrays_are_told_and_the_rest_is_shown(sound, tmp_path):
    path = tmp_path / "odd.h5"
    path.write_bytes((sound / "closed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 7
        file["round"][1] = 0
        del file["loss"]
    run = runs.load_run(path)
    told = summary.summarise(run)
    assert np.isnan(run.metrics["loss"]).all()
    assert told.participants["accuracy_own"].tolist() == [0.9, 0.8, 0.7]
    assert run.metrics["round"].tolist() == [0, 2, 3]
    problems = "\n".join(run.problems)
    assert "has schema 7, but this version reads schema 1" in problems
    assert "missing rounds: 1" in problems
    assert "array 'loss' is missing" in problems


def test_what_is_not_ours_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "empty.h5").touch()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, says in (("text", "does not begin as"), ("empty", "does not begin as"), ("other", "not a metrics file")):
        with pytest.raises(UserError, match=says):
            runs.load_run(tmp_path / f"{name}.h5")
        (finding,) = validation.validate(tmp_path / f"{name}.h5", programs=False)
        assert finding.level == "error"


def test_what_the_system_says_of_a_file_is_told_in_its_words(sound, monkeypatch):
    def full(path):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(reader, "open_for_reading", full)
    with pytest.raises(UserError, match="cannot be read as HDF5: Too many open files$"):
        open_runs(sound)


def _link(file, name):
    del file[name]
    file[name] = h5py.ExternalLink("/etc/passwd", "/x")


def _endless(file, name):
    described = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, shape=(10**10,), maxshape=(None,), chunks=(64,), dtype="i8")
    file[name].attrs.update({key: described[key] for key in ("units", "long_name")})


def _long(file, name):
    length = len(file[name]) + 5
    del file[name]
    file[name] = np.arange(length)


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        (_link, "domain_name", "array 'domain_name' is missing or damaged: it is a link to another place"),
        (_link, "temperature", "array 'temperature' is missing or damaged: it is a link"),
        *(
            (_endless, name, f"array {name!r} is missing or damaged: it declares 80,000,000,000 bytes")
            for name in SIZES
        ),
        (_long, "domain", "array 'domain' is damaged: it has 7 entries, but its arrays have 2"),
        (_long, "class", "array 'class' is damaged: it has 15 entries, but its arrays have 10"),
    ],
)
def test_what_leads_out_of_the_file_or_has_no_end_is_a_problem_and_the_rest_is_shown(
    sound, tmp_path, change, name, says
):
    path = tmp_path / "strange.h5"
    path.write_bytes((sound / "closed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        change(file, name)
    run = runs.load_run(path)
    assert any(problem.startswith(says) for problem in run.problems), run.problems
    assert run.summary().participants["accuracy_own"].tolist() == [0.9, 0.8, 0.7]
    assert [len(run.metrics[dim]) for dim in ("participant", "domain", "class", "bin")] == [3, 2, 10, 10]
    assert any(found.level == "error" for found in validation.validate(path, programs=False))


def test_no_other_program_follows_a_link(sound, tmp_path, monkeypatch):
    path = tmp_path / "strange.h5"
    path.write_bytes((sound / "closed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        _link(file, "host")
    monkeypatch.setattr(contents.shutil, "which", lambda name: "/bin/false")
    report = Report()
    contents.check_h5dump(runs.load_run(path), report)
    assert [found.what for found in report.findings] == [
        "h5dump was not tried: 'host' is not plain data inside the file"
    ]


def test_attributes_of_other_kinds_are_problems_and_no_output_fails_of_them(sound, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.h5"
    path.write_bytes((sound / "closed.h5").read_bytes())
    os.mkfifo(tmp_path / "run" / "config.yaml")
    with h5py.File(path, "r+") as file:
        file.attrs.update({"seed": np.arange(3), "threads": np.float64(1e300), "ranks": np.uint64(2**64 - 1)})
        file.attrs.update({"seed_set_bytes": np.bytes_(b"x"), "CLASS": np.bytes_(b"x"), "_FillValue": np.int64(1)})
        file["seconds_local"][...] = np.inf
    run = runs.load_run(path)
    assert [problem.partition(":")[0] for problem in run.problems] == [
        f"attribute {name!r} is damaged" for name in ("ranks", "seed", "threads")
    ]
    told = run.summary()
    assert json.loads(report.as_json([told]))[0]["participants"]["seconds_local"] == [None] * 3
    assert "seed set, once" not in html.render([run], [told])
    with xarray.open_dataset(export.export({"run": run}, "netcdf", tmp_path / "run.nc")[0]) as copy:
        assert copy.attrs["seed_set_bytes"] == "x"
        assert "_FillValue" not in copy.attrs
    unreadable = "config.yaml next to the file cannot be read: it is a named pipe, not a file"
    assert unreadable in [found.what for found in validation.validate(path, programs=False)]


def test_scales_that_agree_on_more_than_the_file_has_are_refused(sound, tmp_path):
    path = tmp_path / "strange.h5"
    path.write_bytes((sound / "closed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        for name in set(file) - {"round"}:
            del file[name]
        file["participant"] = np.arange(10**6)
        file["domain"] = np.arange(100)
    with pytest.raises(UserError, match="strange.h5: cannot be read: it declares arrays of .* than the file has$"):
        runs.load_run(path)


WRITER = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from helpers.four_rounds import THREE, write
from fedh2l_mpi import metrics
metrics.MetricsWriter.close = lambda self, state: (print("written", flush=True), sys.stdin.read())
write(Path(sys.argv[1]), THREE)
"""


def test_a_run_is_running_while_its_process_lives_and_crashed_when_it_was_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "run", ROOT / "tests"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout.readline() == "written\n"
        alive = runs.load_run(tmp_path / "run")
        assert (alive.state, alive.metrics.rounds) == ("running", 4)
        writer.send_signal(signal.SIGKILL)
    # Written by a process of this host that is gone.
    attributes = {**alive.metrics.attributes, "host": os.uname().nodename, "pid": writer.pid}
    killed = metrics.RunMetrics(attributes, alive.metrics.arrays, closed=False)
    assert str(metrics.infer_state(killed, alive.file)) == "crashed in round 4: 4 of 4 rounds finished"
    # Its number belongs to another process by now, which has started after the last round: after a reboot, say.
    again = metrics.RunMetrics({**attributes, "pid": os.getpid()}, alive.metrics.arrays, closed=False)
    assert metrics.infer_state(again, alive.file).word == "running"
    os.utime(alive.file, (0, 0))
    assert metrics.infer_state(again, alive.file).word == "crashed"
    # A file that says when its writer started needs no clock, which may have been set.
    for mark, word in ((processes.start_mark(os.getpid()), "running"), ("1 of-an-earlier-boot", "crashed")):
        attributes = {**again.attributes, "process_start": mark}
        marked = metrics.RunMetrics(attributes, alive.metrics.arrays, closed=False)
        assert metrics.infer_state(marked, alive.file).word == word
    # Elsewhere, and silent for a day.
    elsewhere = metrics.RunMetrics({**attributes, "host": "elsewhere"}, alive.metrics.arrays, closed=False)
    assert metrics.infer_state(elsewhere, alive.file).word == "crashed"


@pytest.mark.parametrize(("rank", "word"), [([0, 0, 0, 0], "running"), ([0, 1, 2, 3], "crashed")])
def test_a_run_elsewhere_is_given_up_after_twenty_rounds_of_its_slowest_rank(tmp_path, rank, word):
    path = tmp_path / "metrics.h5"
    path.touch()
    os.utime(path, (0, time.time() - 1000))
    arrays = {name: np.full((30, 4), 4.0) for name in metrics.TIMINGS} | {"round": np.arange(30)}
    killed = metrics.RunMetrics({"host": "elsewhere"}, arrays | {"rank": np.array(rank)}, closed=False)
    # A round takes a participant 20 s, and a rank 20 s or, of all four, 80 s: twenty rounds are 400 or 1,600 s.
    assert metrics.infer_state(killed, path).word == word


ENDLESS = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from helpers.written_runs import header, ring, table
from fedh2l_mpi import metrics
rounds = 100_000
writer = metrics.MetricsWriter(Path(sys.argv[1]), header(rounds=rounds))
writer.add_graph(0, ring(3))
tables = [table(round_index, rounds=rounds) for round_index in range(64)]
for round_index in range(rounds):
    writer.append(round_index, tables[round_index % 64])
    if round_index == 0:
        print("begun", flush=True)
"""


@pytest.mark.parametrize("looks", [0, 3, 12])
def test_a_run_is_whole_while_it_is_written_and_after_a_kill_in_the_midst_of_it(tmp_path, looks):
    path = tmp_path / "metrics.h5"
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, path, ROOT / "tests"], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout.readline() == "begun\n"
            rounds = 0
            for _ in range(looks):
                run = runs.load_run(path)
                growing = [name for name in metrics.DIMENSIONS if is_growing(name)]
                assert all(len(run.metrics[name]) == run.metrics.rounds for name in growing)
                assert np.isfinite(run.metrics["loss_private"]).all()
                assert (run.metrics["bytes_sent"] == 200).all()
                assert run.problems == []
                assert run.metrics.rounds >= rounds
                rounds = run.metrics.rounds
                run.close()
            assert writer.poll() is None
        finally:
            writer.kill()
    assert rounds > (1 if looks > 1 else -1)
    assert [found.what for found in validation.validate(path, programs=False) if found.level == "error"] == []
    with open_run(path) as left:
        assert left.sizes["round"] >= max(1, rounds)
        assert left.load().loss_private.notnull().all()
        assert left.attrs["problems"] == ""


def is_growing(name):
    return metrics.DIMENSIONS[name][0] == "round"


def test_a_flipped_bit_in_the_numbers_is_found_by_the_content_digest(sound, tmp_path):
    path = tmp_path / "flipped.h5"
    path.write_bytes((sound / "closed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["seconds_local"][2, 1] += random.Random(0).random()
    before, after = (
        {finding.what for finding in validation.validate(file, programs=False) if finding.level == "error"}
        for file in (sound / "closed.h5", path)
    )
    (found,) = after - before
    assert "content_digest" in found


def test_a_config_that_is_no_yaml_any_more_is_a_problem_and_no_traceback(sound, tmp_path):
    texts = ("a: &a [*a]", "a: [", "just a text", "a: " + "[" * 3000 + "]" * 3000)
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.h5"
        path.write_bytes((sound / "closed.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            file.attrs["config"] = np.bytes_(text.encode())
        run = runs.load_run(path)
        assert "attribute 'config' is missing or damaged" in run.problems
        assert summary.summarise(run).participants["accuracy_own"].tolist() == [0.9, 0.8, 0.7]
