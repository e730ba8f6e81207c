"""What is wrong with a file is found, by name; what is sound is found sound."""

import shutil

import h5py
import numpy as np
import pytest

from fedh2l_mpi import config_file, metrics
from fedh2l_mpi.analysis import validate
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.simulation import Simulation
from fedh2l_mpi.world import World


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real run: four rounds, a graph redrawn once, evaluated twice."""
    folder = tmp_path_factory.mktemp("validate") / "run"
    overrides = ["participants=4", "rounds=4", "evaluation.every=2", "method.local_steps=2", "method.mutual_steps=2"]
    graph = ["topology.kind=random_regular", "topology.degree=2", "topology.redraw_every=2"]
    config = config_file.load(None, [*overrides, *graph]).resolved(1, launched=False)
    Simulation(config, World(None), RunDirectory(folder)).run(lambda round_index, table: None)
    return folder


def test_a_real_run_is_valid_also_for_other_programs(real):
    findings = validate.validate(real)
    assert [finding for finding in findings if finding.level == "error"] == []
    if shutil.which("h5dump"):
        assert any(finding.level == "ok" and "h5dump" in finding.what for finding in findings)
    assert validate.text(real / "metrics.h5", findings).startswith(f"{real}/metrics.h5: valid")


def units(file):
    file["loss"].attrs["units"] = np.bytes_(b"bits")


def shape(file):
    del file["accuracy_own"]
    file["accuracy_own"] = np.zeros((4, 3))


def put(name, place, value):
    def change(file):
        file[name][place] = value

    return change


CHANGES = {
    "units": (units, "loss"),
    "shape": (shape, "accuracy_own"),
    "a gap in a round that was evaluated": (put("accuracy_all", (1, 0), np.nan), "accuracy_all"),
    "a value where there was no evaluation": (put("accuracy", (0, 0, 0), 0.5), "accuracy"),
    "an accuracy above 1": (put("accuracy_validation", (3, 1), 1.5), "accuracy_validation"),
    "a mean that is none": (put("accuracy_all", (3, 1), 0.123), "accuracy_all"),
    "a worst that is not the lowest": (put("accuracy_worst", (3, 1), 0.0), "accuracy_worst"),
    "an own that is another domain's": (put("accuracy_own", (3, 1), 0.0), "accuracy_own"),
    "bytes that arrive from nowhere": (put("bytes_received", (2, 1), 10**6), "bytes"),
    "a degree that is not the graph's": (put("degree", (2, 1), 3), "degree"),
    "labels that do not add up": (put("label_histogram", (0, 0), 10**6), "label_histogram"),
    "an edge to nobody": (put("graph_edges", (0, 1), 99), "edge"),
    "a calibration error that is none": (put("calibration_error", (3, 0), 0.9), "calibration_error"),
    "a missing round": (put("round", 2, 0), "round"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_wrong_is_found_by_name(real, tmp_path, change):
    path = tmp_path / "metrics.h5"
    shutil.copy(real / "metrics.h5", path)
    make, name = CHANGES[change]
    with h5py.File(path, "r+") as file:
        make(file)
    wrong = [finding.what for finding in validate.validate(path, programs=False) if finding.level == "error"]
    assert any(name in what for what in wrong if "digest" not in what), wrong


def test_a_file_of_before_calibration_is_valid_with_a_note(real, tmp_path):
    path = tmp_path / "metrics.h5"
    shutil.copy(real / "metrics.h5", path)
    with h5py.File(path, "r+") as file:
        for name in metrics.ADDED - {"bin"}:
            del file[name]
        file.attrs["content_digest"] = np.bytes_(b"")
    findings = validate.validate(path, programs=False)
    assert not [finding for finding in findings if finding.level == "error"], findings
    assert any("calibration" in finding.what for finding in findings if finding.level == "note")
