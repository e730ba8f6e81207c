"""Watching a run: what is new is read, while it is written, and the writer is not disturbed."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import written_runs
from helpers.four_rounds import THREE, write
from helpers.launching import launch

from fedh2l_mpi.analysis import watch
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import file_arrays, reader
from fedh2l_mpi.metrics.robust_open import open_for_reading

WRITER = """
import sys
import time
from pathlib import Path
import numpy as np
from fedh2l_mpi import metrics

row = {field.name: "x" if field.dtype == "S" else 0 for field in metrics.PARTICIPANT_FIELDS}
attributes = {"config": "{}", "seed": 0, "rounds_planned": 200}
header = metrics.RunHeader(attributes, [row] * 50, np.ones((50, 10), np.int64), ["a"])
writer = metrics.MetricsWriter(Path(sys.argv[1]), header)
table = np.stack([metrics.pack_row({"accuracy_all": 0.5, "bytes_sent": 3}, [0.5], [0.7])] * 50)
for round_index in range(200):
    writer.append(round_index, table)
    # A round takes a moment, so that a slow reader finds some of them.
    time.sleep(0.005)
writer.close("complete")
"""


def test_looking_all_the_time_sees_every_round_once_and_no_damage(tmp_path):
    path = tmp_path / "metrics.h5"
    with subprocess.Popen([sys.executable, "-c", WRITER, path]) as writer:
        while not path.exists():
            assert writer.poll() is None
        watched, seen = watch.WatchedRun(path), set()
        while not watched.ended:
            watched.look()
            assert not watched.problems
            assert watched.sent == 3 * watched.rows
            assert watched.accuracy_E == [0.5] * watched.rows
            seen.add(watched.rows)
    assert writer.returncode == 0
    assert watched.rows == 200
    assert len(seen) > 5, "the run was over before it was watched"


@pytest.fixture(scope="module")
def left_running(tmp_path_factory) -> Path:
    """A file of 200 rounds whose writer has neither closed it nor been missed yet."""
    path = tmp_path_factory.mktemp("running") / "metrics.h5"
    script = WRITER.replace('writer.close("complete")', "import os; os._exit(0)")
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60)
    return path


def torn(whole: Path, where: str) -> bytes:
    """The file as it is between two writes of a flush: what has a checksum is not what that is of."""
    file, closed = open_for_reading(whole)
    assert not closed
    with file:
        array, content = file["accuracy_all"], bytearray(whole.read_bytes())
        # The index of the array's chunks tells where they are.
        chunk = array.id.get_chunk_info(0).byte_offset.to_bytes(8, "little")
        content[content.index(chunk) if where == "index" else h5py.h5o.get_info(array.id).addr + 20] ^= 255
    return bytes(content)


@pytest.mark.parametrize("where", ["index", "header"])
def test_what_was_met_half_way_through_a_flush_is_read_again(tmp_path, monkeypatch, left_running, where):
    path = tmp_path / "metrics.h5"
    path.write_bytes(torn(left_running, where))
    with monkeypatch.context() as patched:
        patched.setattr(reader.time, "sleep", lambda seconds: path.write_bytes(left_running.read_bytes()))
        seen = watch.load_run(path).metrics
        assert np.array_equal(seen["accuracy_all"], np.full((200, 50), 0.5))
        assert not seen.problems
    # It stays so, and is told.
    path.write_bytes(torn(left_running, where))
    seen = watch.load_run(path).metrics
    assert np.isnan(seen["accuracy_all"]).all()
    assert "'accuracy_all'" in seen.problems[0]


def test_rounds_that_could_not_be_read_are_counted_once_they_can(tmp_path, monkeypatch, left_running):
    path = tmp_path / "metrics.h5"
    path.write_bytes(torn(left_running, "index"))
    for module in (reader, file_arrays):
        monkeypatch.setattr(module, "TRIES", 1)
    assert watch.load_run(path).metrics.rounds == 200
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: path.write_bytes(left_running.read_bytes()))
    watched = watch.WatchedRun(path)
    watched.look()
    assert not watched.problems
    assert (watched.rows, watched.sent, watched.accuracy_E) == (200, 600, [0.5] * 200)


@pytest.mark.parametrize(("rounds", "pid"), [(5, 1), (9, 2)])
def test_rounds_that_are_done_again_after_a_checkpoint_are_counted_once(tmp_path, rounds, pid):
    begun = written_runs.write(tmp_path / "run", finished=8, state=None)
    watched = watch.WatchedRun(begun / "metrics.h5")
    watched.look()
    assert (watched.rows, len(watched.accuracy_E), watched.sent) == (8, 2, 1600)
    # Done again, a round has other times; another seed stands for them.
    again = written_runs.write(tmp_path / "again", finished=rounds, state=None, pid=pid, seed=1)
    (again / "metrics.h5").replace(begun / "metrics.h5")
    watched.look()
    assert (watched.rows, watched.sent) == (rounds, 200 * rounds)
    anew = watch.WatchedRun(begun / "metrics.h5")
    anew.look()
    assert (watched.accuracy_E, watched.round_seconds) == (anew.accuracy_E, anew.round_seconds)


def test_watching_a_finished_run_ends_with_its_state(tmp_path):
    write(tmp_path / "run", THREE)
    ended = launch(["watch", str(tmp_path / "run")], timeout=30)
    assert ended.code == 0, ended.err
    assert ended.out == "complete, 4 rounds, all-domain accuracy 0.667, 400 B sent\n"
    ended = launch(["watch", str(tmp_path / "no" / "run")], timeout=30)
    assert (ended.code, ended.err) == (2, f"fedh2l_mpi: error: {tmp_path}/no/run: there is no such directory.\n")


def test_a_file_of_another_name_is_looked_at_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None if seconds < 1 else pytest.fail("it waits"))
    (tmp_path / "notes").write_text("no HDF5")
    with pytest.raises(UserError, match="notes: cannot be read as HDF5"):
        watch.follow(tmp_path / "notes", interval_s=2.0)


def test_a_curve_is_a_bar_for_each_value_or_group_of_values():
    assert watch.curve([0.0, 0.5, 1.0]) == "▁▅█"
    assert watch.curve(np.repeat([0.0, 1.0], 400).tolist()) == "▁" * 20 + "█" * 20


def test_a_slow_file_system_is_asked_less_often():
    assert watch.pause_s(interval_s=2.0, took_s=0.01) == 2.0
    assert watch.pause_s(interval_s=2.0, took_s=10.0) == pytest.approx(200.0)
