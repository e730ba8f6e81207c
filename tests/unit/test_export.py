"""A run for other programs: every number is there, exactly, and nothing is overwritten."""

import csv
import json

import numpy as np
import pytest
import xarray
from test_report import THREE, write

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import export, runs
from fedh2l_mpi.errors import UserError


@pytest.fixture
def run(tmp_path):
    return runs.look_at(write(tmp_path / "run", [*THREE, [1 / 3, 0.1 + 0.2]]))


def test_csv_is_tidy_and_exact(run, tmp_path):
    files = export.export(run, "csv", tmp_path / "out")
    assert [file.stem for file in files] == [
        "about", "calibration", "domains", "edges", "labels", "participants", "rounds"
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out" / "domains.csv").open()))
    # Evaluated in two rounds of four.
    assert len(rows) == 2 * 4 * 2
    last = {(int(r["participant"]), int(r["domain"])): float(r["accuracy"]) for r in rows if r["round"] == "3"}
    assert last[3, 0] == 1 / 3
    assert last[3, 1] == 0.1 + 0.2
    rounds = list(csv.DictReader((tmp_path / "out" / "rounds.csv").open()))
    assert len(rounds) == 4 * 4
    assert set(rounds[0]) == {"round", "participant", *(field.name for field in metrics.ROW_FIELDS)}
    assert rounds[0]["accuracy_all"] == ""
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert "nats" in json.dumps(about)


def test_parquet_has_the_same_numbers(run, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    export.export(run, "parquet", tmp_path / "out")
    table = pandas.read_parquet(tmp_path / "out" / "rounds.parquet")
    assert np.array_equal(table.loss_private.to_numpy().reshape(4, 4), run.metrics["loss_private"])
    assert table.accuracy_all.isna().sum() == 8


def test_netcdf_opens_as_the_same_dataset(run, tmp_path):
    (file,) = export.export(run, "netcdf", tmp_path / "run.nc")
    with xarray.open_dataset(file, engine="h5netcdf") as data:
        assert np.array_equal(data.accuracy.values, run.metrics["accuracy"], equal_nan=True)
        assert data.attrs["git_revision"] == "0123456789abcdef-dirty"


@pytest.mark.parametrize("to", ["csv", "netcdf"])
def test_nothing_is_overwritten_and_nothing_half_done_stays(run, tmp_path, to):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export.export(run, to, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        export.export(run, to, tmp_path / "out" / "inside-a-file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
