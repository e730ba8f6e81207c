"""The metrics file: schema, units, readers, and what is readable while it grows."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from helpers import written_runs
from helpers.damage import failing_writes

from fedh2l_mpi import metrics
from fedh2l_mpi.errors import UserError

P, D, C = 3, 2, 10
READ = """
import json, pathlib, sys, h5py, xarray
from fedh2l_mpi import metrics
run = metrics.read(pathlib.Path(sys.argv[1]))
with h5py.File(sys.argv[1], "r", swmr=True) as file, xarray.open_dataset(file, engine="h5netcdf") as data:
    print(json.dumps([run.rounds, run.closed, run["loss"][-1, 0].tolist(), data.sizes["round"]]))
"""


@pytest.fixture
def header():
    return metrics.RunHeader(
        attributes={"config": "rounds: 2\n" * 500, "seed": 7, "git_revision": "unknown", "versions": '{"é": 1}'},
        participants=[
            {
                "architecture": "lenet5" if i else "a.very.long." + 10 * "packagé." + "name:Modél",
                "parameters": 10 + i,
                "parameter_bytes": 40,
                "private_samples": 5,
                "own_domain": i % D,
                "rank": 0,
                "host": "here",
                "device": "cpu",
            }
            for i in range(P)
        ],
        label_histogram=np.arange(P * C).reshape(P, C),
        domain_names=["plain", "turned"],
    )


def table(round_index: int) -> np.ndarray:
    return np.stack(
        [
            metrics.pack_row({"accuracy_all": round_index + i / 10, "bytes_sent": 7, "bytes_received": 7, "degree": 2}
                             , [0.5, 0.25 + i], [1.0, round_index])
            for i in range(P)
        ]
    )  # fmt: skip


@pytest.fixture
def written(tmp_path, header):
    path = tmp_path / "metrics.h5"
    writer = metrics.MetricsWriter(path, header)
    writer.add_graph(0, [(0, 1), (1, 2)])
    for round_index in range(3):
        if round_index == 2:
            writer.add_graph(2, [])
        writer.append(round_index, table(round_index))
    writer.close("complete")
    return path


def test_every_array_has_units_a_name_and_named_dimensions(written):
    with h5py.File(written) as file:
        assert file.attrs["schema_version"] == metrics.SCHEMA_VERSION
        for name, dataset in file.items():
            assert dataset.attrs["units"].decode() in {"1", "nats", "s", "byte"}, name
            assert len(dataset.attrs["long_name"]) > 5, name
            assert all(len(dataset.dims[axis]) == 1 for axis in range(dataset.ndim)) or dataset.is_scale, name
            # Fixed-length strings only, and no filter: both are what SWMR needs.
            assert h5py.check_string_dtype(dataset.dtype) is None or dataset.dtype.kind == "S", name
            assert dataset.compression is None, name


def test_xarray_sees_labelled_arrays_with_what_was_written(written):
    with xarray.open_dataset(written, engine="h5netcdf") as data:
        assert dict(data.sizes) == {
            "round": 3,
            "participant": P,
            "domain": D,
            "class": C,
            "bin": 10,
            "edge": 2,
            "endpoint": 2,
        }
        assert data["accuracy"].dims == ("round", "participant", "domain")
        assert data["accuracy"].sel(round=2, participant=1).values.tolist() == [0.5, 1.25]
        assert data["accuracy_all"].sel(round=1).values.tolist() == pytest.approx([1.0, 1.1, 1.2])
        assert data["loss"].attrs["units"] == b"nats" or data["loss"].attrs["units"] == "nats"
        assert data["bytes_sent"].dtype == np.int64
        assert np.isnan(data["loss_private"]).all()
        assert data["graph_edges"].values.tolist() == [[0, 1], [1, 2]]


def test_h5dump_of_debian_reads_the_file(written):
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed (Debian's package hdf5-tools)")
    shown = subprocess.run(["h5dump", "-d", "accuracy_all", written], capture_output=True, text=True, check=True).stdout
    assert "H5T_IEEE_F64LE" in shown
    assert "2, 2.1, 2.2" in shown


def test_the_reader_gives_back_what_was_written(written, header):
    run = metrics.read(written)
    assert (run.rounds, run.closed) == (3, True)
    assert run.attributes["config"] == header.attributes["config"]
    assert run.attributes["versions"] == '{"é": 1}'
    assert run.attributes["seed"] == 7
    assert [name.decode() for name in run["architecture"]] == [row["architecture"] for row in header.participants]
    assert np.array_equal(run["label_histogram"], header.label_histogram)
    assert run["accuracy"][1].tolist() == [[0.5, 0.25], [0.5, 1.25], [0.5, 2.25]]
    assert run["graph_since_round"].tolist() == [0, 0]


def test_the_file_is_readable_while_it_is_written(tmp_path, header):
    path = tmp_path / "metrics.h5"
    writer = metrics.MetricsWriter(path, header)
    for round_index in range(4):
        writer.append(round_index, table(round_index))
        # From another process: within one, HDF5 would hand out the writer's own view of the file.
        read = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
        assert json.loads(read.stdout) == [round_index + 1, False, [1.0, round_index], round_index + 1]
    writer.close("complete")
    assert metrics.read(path).closed


def test_a_run_is_never_written_over_another(written, header):
    with pytest.raises(FileExistsError):
        metrics.MetricsWriter(written, header)


def test_a_run_that_fits_no_temperature_has_the_digests_of_files_from_before_there_was_one(tmp_path, written, header):
    before = hashlib.sha256()
    at = [field.name for field in metrics.ROW_FIELDS].index("temperature")
    for round_index in range(3):
        before.update(np.ascontiguousarray(np.delete(table(round_index), at, axis=1)).data)
    assert metrics.rows_digest(written, 3) == before.hexdigest()
    with h5py.File(written, "r+") as file:
        del file["temperature"]
    assert metrics.rows_digest(written, 3) == before.hexdigest()
    # Resumed, it has the array, with the same digests: a checkpoint from before fits it still.
    writer = metrics.MetricsWriter(written, header, kept=3)
    fitted = table(3)
    fitted[0, at] = 2.0
    digest = writer.append(3, fitted)
    writer.close("complete")
    assert metrics.rows_digest(written, 3) == before.hexdigest()
    before.update(fitted.data)
    assert metrics.rows_digest(written, 4) == digest == before.hexdigest()
    assert metrics.read(written)["temperature"][3, 0] == 2.0
    with h5py.File(written, "r+") as file:
        del file["degree"]
    with pytest.raises(ValueError, match="array 'degree' is missing or damaged"):
        metrics.rows_digest(written, 3)


def test_what_is_no_metrics_file_is_refused(tmp_path, written):
    with pytest.raises(UserError, match="no such file"):
        metrics.read(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        metrics.read(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not a metrics file of fedh2l_mpi"):
        metrics.read(tmp_path / "other.h5")
    with h5py.File(written, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(UserError, match="has schema 99, but this version reads schema 1"):
        metrics.read(written)


def test_a_thousand_participants_fit(tmp_path, header):
    participants = [header.participants[0]] * 1000
    large = metrics.RunHeader(header.attributes, participants, np.zeros((1000, C), np.int64), header.domain_names)
    writer = metrics.MetricsWriter(tmp_path / "metrics.h5", large)
    # Whole numbers fit arrays of every type.
    rows = np.random.default_rng(0).integers(9, size=(1000, metrics.row_width(D))).astype(np.float64)
    for round_index in range(5):
        writer.append(round_index, rows)
    writer.close("complete")
    run = metrics.read(tmp_path / "metrics.h5")
    assert np.array_equal(run["accuracy_own"][4], rows[:, 0])
    first = len(metrics.ROW_FIELDS) + D
    assert np.array_equal(run["loss"][4], rows[:, first : first + D])
    assert np.array_equal(run["calibration_accuracy"][4], rows[:, -metrics.CONFIDENCE_BINS :])


@pytest.mark.parametrize("graphs", [0, 1])
def test_a_graph_whose_write_fails_is_an_error_at_once_and_not_in_the_file(tmp_path, graphs):
    path = tmp_path / "metrics.h5"
    writer = metrics.MetricsWriter(path, written_runs.header())
    for round_index in range(graphs):
        writer.add_graph(round_index, [(0, 1), (1, 2)])
        writer.append(round_index, written_runs.table(round_index))
    with failing_writes(writer.file, path), pytest.raises((OSError, RuntimeError)):
        writer.add_graph(graphs, [(0, 2)])
    writer.close("failed")
    run = metrics.read(path)
    assert (run.closed, run.rounds, run["graph_edges"].tolist()) == (True, graphs, [[0, 1], [1, 2]] * graphs)


def test_a_round_is_written_once_and_not_kept_in_memory(tmp_path):
    writer = metrics.MetricsWriter(tmp_path / "metrics.h5", written_runs.header())

    def written_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

    # The first round lays out its chunks.
    writer.append(0, written_runs.table(0))
    before, rounds = written_bytes(), 20
    for round_index in range(1, 1 + rounds):
        writer.append(round_index, written_runs.table(round_index))
    # Metadata included; with whole chunks it would be a hundred times as much.
    assert written_bytes() - before < 20 * rounds * written_runs.table(0).nbytes
    # HDF5's cache of an array holds no chunk.
    assert writer.file.id.get_access_plist().get_cache()[2] == 0
    writer.close("stopped")


def test_a_file_that_cannot_be_closed_is_an_error_once_and_reads_like_that_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.h5"
    writer = metrics.MetricsWriter(path, written_runs.header())
    writer.append(0, written_runs.table(0))
    with failing_writes(writer.file, path), pytest.raises((OSError, RuntimeError)):
        writer.close("complete")
    writer.close("failed")
    run = metrics.read(path)
    assert (run.closed, run.rounds, run.attributes["state"]) == (False, 1, "running")


def test_values_that_the_disk_does_not_return_are_an_error(tmp_path):
    path = tmp_path / "metrics.h5"
    writer = metrics.MetricsWriter(path, written_runs.header())
    table = written_runs.table(0)
    writer.append(0, table)
    content = path.read_bytes()
    lost = np.float64(table[0, written_runs.FIELD["loss_private"]]).tobytes()
    assert content.count(lost) == 1
    path.write_bytes(content.replace(lost, bytes(8)))
    with pytest.raises(OSError, match="does not return what was written"):
        writer.close("complete")
