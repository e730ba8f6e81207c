"""Exported runs: exact, tidy, complete or not there at all."""

import csv
import json
import math
import os
import shutil
import sys

import h5py
import numpy as np
import pandas
import pytest
import xarray
from helpers import compared_runs
from helpers.written_runs import write

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import export, open_run
from fedh2l_mpi.analysis import run as runs
from fedh2l_mpi.analysis.export import netcdf, tables
from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import hdf5_files
from fedh2l_mpi.runtime.world import World

TABLES = ["calibration", "domains", "edges", "labels", "participants", "rounds"]
ROWS = {"rounds": 36, "domains": 18, "participants": 3, "labels": 30, "calibration": 90, "edges": 3}


def exported(run_path, to, out=None):
    run = runs.load_run(run_path)
    try:
        return export.export({run.name: run}, to, out)
    finally:
        run.close()


def read_csv(path):
    """Rows as texts, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def number(text):
    return float(text) if text else math.nan


@pytest.fixture(params=[2**16, 5], ids=["one block", "a round a block"])
def block_rows(request, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", request.param)


@pytest.mark.parametrize("to", ["csv", "parquet"])
@pytest.mark.usefixtures("block_rows")
def test_tables_give_every_number_back_exactly(run_path, to):
    written = exported(run_path, to)
    folder = run_path / f"metrics-{to}"
    assert written == sorted([folder / "about.json", *(folder / f"{name}.{to}" for name in TABLES)])

    def table(name):
        path = folder / f"{name}.{to}"
        return read_csv(path) if to == "csv" else pandas.read_parquet(path).to_dict("list")

    def numbers(name, column):
        values = table(name)[column]
        return np.array([number(value) for value in values] if to == "csv" else values, dtype=float)

    read = metrics.read(run_path / "metrics.h5")
    assert {name: len(table(name)[next(iter(table(name)))]) for name in TABLES} == ROWS
    for field in metrics.ROW_FIELDS:
        np.testing.assert_array_equal(numbers("rounds", field.name), read[field.name].ravel(), field.name)
    evaluated = [3, 7, 11]
    for name, fields in (("domains", metrics.DOMAIN_FIELDS), ("calibration", metrics.BIN_FIELDS)):
        for field in fields:
            np.testing.assert_array_equal(numbers(name, field.name), read[field.name][evaluated].ravel(), field.name)
    np.testing.assert_array_equal(numbers("domains", "round"), np.repeat(evaluated, 6))
    np.testing.assert_array_equal(numbers("domains", "participant"), np.tile([0, 0, 1, 1, 2, 2], 3))
    assert table("domains")["domain_name"][:2] == ['turned <0>, "é"', 'turned <1>, "é"']
    assert table("participants")["host"] == ["hôte"] * 3
    np.testing.assert_array_equal(numbers("participants", "own_domain"), [0, 1, 0])
    np.testing.assert_array_equal(numbers("labels", "samples"), 3)
    edges = [numbers("edges", column).tolist() for column in ("since_round", "a", "b")]
    assert edges == [[0, 0, 0], [0, 0, 1], [1, 2, 2]]


def test_about_explains_every_column_and_has_the_config(run_path, tmp_path):
    exported(run_path, "csv", tmp_path / "new" / "folder")
    about = json.loads((tmp_path / "new" / "folder" / "about.json").read_text())
    for name in TABLES:
        told = about["tables"][name]
        with (tmp_path / "new" / "folder" / f"{name}.csv").open(encoding="utf-8") as file:
            assert list(told["columns"]) == next(csv.reader(file))
        assert all(column["units"] and column["long_name"] for column in told["columns"].values())
        assert told["rows"] == ROWS[name]
    assert about["attributes"]["config"] == (run_path / "config.yaml").read_text()
    assert about["attributes"]["state_text"] == "complete, 12 rounds"


def test_parquet_keeps_kinds_units_and_what_is_unknown(run_path, tmp_path):
    import pyarrow.parquet

    exported(run_path, "parquet", tmp_path / "out")
    rounds = pyarrow.parquet.read_table(tmp_path / "out" / "rounds.parquet")
    field = rounds.schema.field("bytes_sent")
    assert (str(field.type), field.metadata[b"units"]) == ("int64", b"byte")
    assert rounds["accuracy_all"].null_count == 27
    assert not np.isnan(rounds["accuracy_all"].drop_null().to_numpy()).any()


@pytest.mark.parametrize("batch_bytes", [2**26, 2000])
def test_netcdf_opens_as_the_run_itself(run_path, tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(netcdf, "BATCH_BYTES", batch_bytes)
    assert exported(run_path, "netcdf") == [run_path / "metrics.nc"]
    with xarray.open_dataset(run_path / "metrics.nc") as data, open_run(run_path) as run:
        xarray.testing.assert_identical(data.load().drop_attrs(deep=False), run.load().drop_attrs(deep=False))
        assert data.attrs == run.attrs
        assert data.accuracy.encoding["zlib"]


@pytest.mark.parametrize("to", ["csv", "parquet", "netcdf"])
def test_the_smallest_run_is_exported(tmp_path, to):
    run_path = write(tmp_path / "run", participants=1, domains=1, finished=0, state="stopped")
    exported(run_path, to, tmp_path / "out")
    if to == "netcdf":
        with xarray.open_dataset(tmp_path / "out") as data:
            assert data.sizes["round"] == 0
    elif to == "csv":
        assert (tmp_path / "out" / "edges.csv").read_text() == "since_round,a,b\n"
    else:
        assert list(pandas.read_parquet(tmp_path / "out" / "edges.parquet").columns) == ["since_round", "a", "b"]


@pytest.mark.parametrize("to", ["csv", "parquet", "netcdf"])
def test_of_a_damaged_run_there_is_what_can_be_read(run_path, tmp_path, to):
    with h5py.File(run_path / "metrics.h5", "r+") as file:
        del file["bytes_sent"], file["accuracy_own"], file["loss"]
        file["round"][5] = 99
    exported(run_path, to, tmp_path / "out")
    if to == "csv":
        rounds, domains = read_csv(tmp_path / "out" / "rounds.csv"), read_csv(tmp_path / "out" / "domains.csv")
        assert [rounds["round"][i] for i in (12, 15)] == ["4", "6"]
        assert set(rounds["bytes_sent"]) == set(domains["loss"]) == {""}
        assert "" not in domains["accuracy"]
        about = json.loads((tmp_path / "out" / "about.json").read_text())
        assert "'bytes_sent' is missing" in about["attributes"]["problems"]
    elif to == "parquet":
        rounds = pandas.read_parquet(tmp_path / "out" / "rounds.parquet")
        assert rounds.bytes_sent.isna().all()
        assert len(rounds) == 33
    else:
        with xarray.open_dataset(tmp_path / "out") as data:
            assert data.bytes_sent.isnull().all()
            assert data["round"].values.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_a_run_whose_name_is_no_utf_8_is_exported(sound, tmp_path):
    run_path = shutil.copytree(sound, tmp_path / os.fsdecode(b"\xe9t\xe9"))
    exported(run_path, "csv")
    assert json.loads((run_path / "metrics-csv" / "about.json").read_text())["source"].endswith("/?t?/metrics.h5")


def three_runs(folder):
    """Two methods and two seeds of one of them; the last has a different size and four rounds."""
    compared_runs.write(folder / "a", "method.name=independent", accuracy=0.5)
    compared_runs.write(folder / "b", seed=1, accuracy=0.6)
    write(folder / "c", finished=4)
    return folder


def execute(*words):
    commands.execute(commands.parse(["export", *map(str, words)]), World(None))


@pytest.mark.parametrize("to", ["csv", "parquet"])
@pytest.mark.usefixtures("block_rows")
def test_several_runs_are_one_table_with_the_keys_in_which_they_differ(tmp_path, to):
    folder = three_runs(tmp_path / "runs")
    (folder / "curves.png").touch()
    execute(folder / "*", "--to", to, "--out", tmp_path / "out")

    def table(name):
        path = tmp_path / "out" / f"{name}.{to}"
        return pandas.read_csv(path) if to == "csv" else pandas.read_parquet(path)

    rounds = table("rounds")
    assert list(rounds.columns[:2]) == ["run", "participants"]
    assert {"method.name", "seed"} < set(rounds.columns[: list(rounds.columns).index("round")])
    assert rounds.groupby("run").size().to_dict() == {"a": 4, "b": 4, "c": 12}
    assert rounds.groupby("run")["method.name"].unique().map(list).to_dict()["a"] == ["independent"]
    assert rounds.groupby("run")["seed"].first().to_dict()["b"] == 1
    read = metrics.read(folder / "c" / "metrics.h5")
    ours = rounds[rounds["run"] == "c"]
    np.testing.assert_array_equal(ours["loss_private"].to_numpy(), read["loss_private"].ravel())
    last = rounds[(rounds["run"] == "b") & (rounds["round"] == 1)]
    np.testing.assert_allclose(last["accuracy_all"], [0.55, 0.65])
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert list(about["runs"]) == ["a", "b", "c"]
    assert about["tables"]["rounds"]["rows"] == 20
    assert list(about["tables"]["rounds"]["columns"]) == list(rounds.columns)


def events(file):
    """Steps and values by tag, as TensorBoard's own loader reads them."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    found = {}
    for event in loader.LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_a_folder_per_run_with_participants_and_their_mean(tmp_path):
    folder = three_runs(tmp_path / "runs")
    execute(folder, "--to", "tensorboard", "--out", tmp_path / "logs")
    logs = {path.name: list(path.iterdir()) for path in (tmp_path / "logs").iterdir()}
    assert sorted(logs) == ["a", "b", "c"]
    read = metrics.read(folder / "c" / "metrics.h5")
    found = events(*logs["c"])
    for i in range(3):
        steps, values = zip(*found[f"loss_private/participant_{i}"], strict=True)
        assert steps == (1, 2, 3, 4)
        np.testing.assert_allclose(values, read["loss_private"][:, i], rtol=1e-6)
    # Only the fourth round is evaluated.
    assert found["accuracy_all/mean"] == [(4, pytest.approx(read["accuracy_all"][3].mean(), rel=1e-6))]
    assert found['accuracy_by_domain/turned <1>, "é"'] == [
        (4, pytest.approx(read["accuracy"][3, :, 1].mean(), rel=1e-6))
    ]
    assert events(*logs["b"])["accuracy_all/mean"][-1] == (2, pytest.approx(0.6))
    # Further runs may come into the same folder, but none is written over.
    with pytest.raises(UserError, match="logs/b: it exists already"):
        execute(folder / "b", "--to", "tensorboard", "--out", tmp_path / "logs")
    shutil.copytree(folder / "b", folder / "d")
    execute(folder / "d", "--to", "tensorboard", "--out", tmp_path / "logs")
    assert (tmp_path / "logs" / "d").is_dir()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "netcdf", "--out", "x.nc"], r"--to netcdf: a file has one run, but 3 were named. Fix: name one run"),
        (["--to", "csv"], "--out: 3 runs were named, and no folder for them. Fix: give --out FOLDER"),
        (["--to", "tensorboard"], "--out: 3 runs were named, and no folder for them"),
    ],
)
def test_what_several_runs_cannot_be_is_told(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        execute(three_runs(tmp_path / "runs"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("to", ["csv", "netcdf", "tensorboard"])
def test_what_is_there_stays_and_what_fails_leaves_nothing(run_path, tmp_path, to, monkeypatch):
    (tmp_path / "mine").write_text("precious")
    told = (
        "run: cannot be written" if to == "tensorboard" else "mine: it exists already. Choose another name with --out"
    )
    with pytest.raises(UserError, match=told):
        exported(run_path, to, tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"):
        exported(run_path, to, tmp_path / "mine" / "below")
    assert (tmp_path / "mine").read_text() == "precious"

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.RunMetrics, "part", full)
    with pytest.raises(UserError, match=r"out(/run)?: cannot be written: No space left on device"):
        exported(run_path, to, tmp_path / "out")
    left = ["mine", "out", "run"] if to == "tensorboard" else ["mine", "run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("to", "missing", "told"),
    [
        (
            "parquet",
            "pyarrow",
            r"pyarrow is not installed. Fix: install the extra \[parquet\], as in pip install '.\[parquet\]' from",
        ),
        (
            "netcdf",
            "xarray",
            r"xarray is not installed. Fix: install the extra \[analysis\], as in pip install '.\[analysis\]' from",
        ),
        (
            "tensorboard",
            "tensorboard",
            r"tensorboard is not installed. Fix: install the extra \[tensorboard\], as in pip",
        ),
        (
            "netcdf",
            "h5netcdf",
            r"h5netcdf is not installed. Fix: install the extra \[analysis\], as in pip install '.\[analysis\]' from",
        ),
    ],
)
def test_a_missing_library_is_named_with_how_to_get_it(run_path, tmp_path, monkeypatch, to, missing, told):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=told):
        exported(run_path, to, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_an_array_that_a_netcdf_file_lost_is_an_error(run_path, monkeypatch):
    finish = hdf5_files.finish

    def lose(file):
        file["accuracy_own"][:] = 0.0
        finish(file)

    monkeypatch.setattr(hdf5_files, "finish", lose)
    with pytest.raises(UserError, match=r"cannot be written: the file system does not return what was written"):
        exported(run_path, "netcdf")
    assert not list(run_path.glob("*.nc*"))
