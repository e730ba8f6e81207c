"""Runs as xarray datasets: labelled, lazy, and of any file that can be shown."""

import os
import resource
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xarray
from helpers.written_runs import write

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import open_run, open_runs
from fedh2l_mpi.errors import UserError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def reads(monkeypatch):
    """How many numbers have been read from each array of any file."""
    counted = {}
    read = h5py.Dataset.__getitem__

    def counting(dataset, *args, **kwargs):
        values = read(dataset, *args, **kwargs)
        name = dataset.name.strip("/")
        counted[name] = counted.get(name, 0) + np.size(values)
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    return counted


def test_a_run_has_the_numbers_of_the_file_under_its_labels(tmp_path):
    read = metrics.read(write(tmp_path / "run") / "metrics.h5")
    with open_run(tmp_path / "run") as run:
        for name in metrics.DIMENSIONS:
            assert run[name].dims == metrics.DIMENSIONS[name]
            assert run[name].attrs["units"] == metrics.FIELDS[name].units
            assert len(run[name].attrs["long_name"]) > 5
            if run[name].dtype.kind != "U":
                np.testing.assert_array_equal(run[name].values, read[name])
                assert run[name].dtype == read[name].dtype
        assert run.accuracy.sel(round=7, participant=1, domain=1).item() == read["accuracy"][7, 1, 1]
        assert run.architecture.values.tolist() == ["lenet5", "mlp", "cnn"]
        assert run.domain_name.values.tolist() == ['turned <0>, "é"', 'turned <1>, "é"']
        assert set(run.coords) == {*(scale.name for scale in metrics.SCALES), "rounds_done", *labels()}
        assert run.rounds_done.dims == ("round",)
        assert run.rounds_done.values.tolist() == (run["round"].values + 1).tolist()
        assert run.attrs["config"] == read.attributes["config"]
        assert (run.attrs["state"], run.attrs["state_text"]) == ("complete", "complete, 12 rounds")
        assert run.attrs["problems"] == ""


def labels():
    return {*(field.name for field in metrics.PARTICIPANT_FIELDS), "domain_name"}


def test_opening_reads_labels_alone_and_a_selection_what_was_selected(tmp_path, reads):
    write(tmp_path / "run", state=None)
    reads.clear()
    with open_run(tmp_path / "run") as run:
        repr(run)
        # The last rounds' times show whether a run that was not closed is still running.
        assert set(reads) <= {"round", *labels(), *metrics.TIMINGS}
        reads.clear()
        assert run.accuracy.isel(round=-1, participant=0).shape == (2,)
        assert not reads
        run.accuracy.isel(round=-1, participant=0).load()
        run.loss.isel(round=[7, 3, 3], domain=1).load()
        assert reads == {"accuracy": 2, "loss": 6}


@pytest.mark.parametrize(
    "selection",
    [
        {"round": slice(None, None, -2)},
        {"round": slice(-3, None), "participant": 1},
        {"round": [9, 1, 1], "participant": [2, 0], "domain": slice(1)},
        {"round": [], "domain": -1},
        {"round": slice(5, 2)},
        {"round": xarray.DataArray([0, 5, 3], dims="x"), "participant": xarray.DataArray([2, 1, 0], dims="x")},
    ],
)
@pytest.mark.parametrize("damage", ["none", "gap", "tail"])
def test_every_selection_is_that_of_the_array_in_memory(sound, tmp_path, selection, damage):
    path = shutil.copy(sound / "metrics.h5", tmp_path)
    if damage == "gap":
        with h5py.File(path, "r+") as file:
            file["round"][4:6] = 0
    with open_run(path) as run:
        if damage == "tail":
            run.accuracy.variable._data.array.metrics.arrays._good["accuracy"] = 7
        whole = xarray.DataArray(run.accuracy.values, dims=run.accuracy.dims)
        assert len(whole) == (10 if damage == "gap" else 12)
        assert bool(np.isnan(whole[7:]).all()) == (damage == "tail")
        np.testing.assert_array_equal(run.accuracy.isel(selection).values, whole.isel(selection).values)


def test_a_closed_dataset_has_let_go_of_the_file(tmp_path):
    run = open_run(write(tmp_path / "run"))
    run.close()
    with pytest.raises(RuntimeError, match="'accuracy' cannot be read: the run's file has been closed"):
        run.accuracy.load()


def test_any_number_of_runs_is_open_at_a_time(tmp_path):
    write(tmp_path / "one")
    for number in range(40):
        shutil.copytree(tmp_path / "one", tmp_path / "runs" / str(number))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        held = [open_run(tmp_path / "runs" / str(number)) for number in range(40)]
        (tmp_path / "runs" / "curves.png").touch()
        descriptors = os.listdir("/proc/self/fd")
        stacked = open_runs(tmp_path / "runs" / "*")
        assert os.listdir("/proc/self/fd") == descriptors
        for run in held:
            np.testing.assert_array_equal(run.accuracy.values, stacked.accuracy[0].values)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_file_that_was_replaced_by_a_shorter_one_is_not_read_as_the_old_one(tmp_path):
    run = open_run(write(tmp_path / "run", finished=7))
    (write(tmp_path / "other", finished=5) / "metrics.h5").replace(tmp_path / "run" / "metrics.h5")
    with pytest.raises(UserError, match=r"run/metrics.h5: the file has changed since it was opened. Open it again.$"):
        run.accuracy.load()


def test_a_killed_run_whose_arrays_are_a_round_apart_has_the_rounds_that_all_have(tmp_path):
    path = write(tmp_path / "run", finished=7) / "metrics.h5"
    with h5py.File(path, "r+") as file:
        file["accuracy_own"].resize(8, axis=0)
        del file["loss"]
    with open_run(path) as run:
        assert run.sizes["round"] == 7
        assert np.isnan(run.loss).all()
        assert run.loss.shape == (7, 3, 2)
        assert "'loss' is missing" in run.attrs["problems"]
        assert run.accuracy.sel(round=3).notnull().all()


@pytest.mark.parametrize(("participants", "domains"), [(1, 1), (2, 1), (1, 2)])
def test_the_smallest_runs_open(tmp_path, participants, domains):
    with open_run(write(tmp_path / "run", participants, domains, finished=0, state="stopped")) as run:
        assert run.load().sizes["round"] == 0
        assert run.graph_edges.shape == (0, 2)


def test_runs_are_stacked_with_what_differs_as_coordinates(tmp_path):
    for method in ("fedh2l", "independent"):
        for seed in (0, 1):
            write(tmp_path / f"{method}-{seed}", seed=seed, overrides=[f"method.name={method}"])
    runs = open_runs(str(tmp_path / "*"))
    assert runs.run.values.tolist() == ["fedh2l-0", "fedh2l-1", "independent-0", "independent-1"]
    assert runs.seed.values.tolist() == [0, 1, 0, 1]
    assert runs["method.name"].values.tolist() == ["fedh2l", "fedh2l", "independent", "independent"]
    np.testing.assert_array_equal(runs["method.weight_kd"], [1.0, 1.0, np.nan, np.nan])
    assert "optimizer.lr" not in runs.coords
    assert runs.bytes_sent.dtype == np.int64
    assert runs.architecture.dims == ("participant",)
    with open_run(tmp_path / "independent-1") as one:
        np.testing.assert_array_equal(runs.accuracy.sel(run="independent-1"), one.accuracy)
    by_method = runs.accuracy_all.isel(round=-1).mean("participant").groupby("method.name").mean()
    assert by_method.sizes == {"method.name": 2}
    assert runs.attrs["rounds_planned"] == 12
    assert "seed" not in runs.attrs
    assert runs.attrs["left_out"] == "graph_edges, graph_since_round"
    runs.to_netcdf(tmp_path / "stack.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "stack.nc") as again:
        np.testing.assert_array_equal(again.loss, runs.loss)


def test_runs_of_other_sizes_are_joined_with_nan(tmp_path):
    write(tmp_path / "a" / "run", participants=4, rounds=4)
    write(tmp_path / "b" / "run", participants=3, rounds=8, finished=6, state="stopped")
    runs = open_runs([tmp_path / "a", tmp_path / "b"], only=["accuracy", "bytes_sent", "label_histogram"])
    assert runs.run.values.tolist() == ["a/run", "b/run"]
    assert set(runs.data_vars) == {"accuracy", "bytes_sent", "label_histogram"}
    assert dict(runs.accuracy.sizes) == {"run": 2, "round": 6, "participant": 4, "domain": 2}
    assert runs.bytes_sent.isnull().sum("participant").values.tolist() == [[0] * 4 + [4] * 2, [1] * 6]
    assert runs.architecture.values.tolist() == [["lenet5", "mlp", "cnn", "lenet5"], ["lenet5", "mlp", "cnn", "?"]]
    assert runs.state.values.tolist() == ["complete", "stopped"]
    assert runs["rounds"].values.tolist() == [4, 8]


def test_of_no_arrays_there_are_the_labels(sound):
    runs = open_runs(sound, only=[])
    assert len(runs.data_vars) == 0
    assert runs.architecture.values.tolist() == ["lenet5", "mlp", "cnn"]
    assert "accuracy" in runs.attrs["left_out"].split(", ")


def test_mistakes_are_told(tmp_path):
    write(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.h5").write_text("no HDF5")
    with pytest.raises(UserError, match=r"bad/metrics.h5: cannot be read as HDF5"):
        open_runs(tmp_path)
    with pytest.raises(UserError, match="there is no run"):
        open_runs(str(tmp_path / "nothing*"))
    with pytest.raises(UserError, match="no array 'acuracy' to stack. Known: accuracy_own"):
        open_runs(tmp_path / "good", only=["acuracy"])
    told = "contains no run, because metrics.h5 is missing. The 2 runs below it are bad, good. Fix: name one of them"
    with pytest.raises(UserError, match=f"{told}, or draw all of them by compare {tmp_path} --plot curves.png"):
        open_run(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"contains no run, because metrics.h5 is missing.$"):
        open_run(tmp_path / "none")


def test_importing_it_loads_no_library_of_tables_or_files():
    code = (
        "import sys; from fedh2l_mpi.analysis import open_run, open_runs\n"
        "assert not {'xarray', 'h5py', 'pandas', 'torch', 'matplotlib', 'mpi4py'} & set(sys.modules)\n"
        "sys.modules['xarray'] = None\n"
        "try: open_run('.')\n"
        "except ValueError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    fix = "Fix: install the extra [analysis], as in pip install '.[analysis]' from a checkout."
    assert ended.stdout == f"open_run: xarray is not installed. {fix}\n", ended.stderr
