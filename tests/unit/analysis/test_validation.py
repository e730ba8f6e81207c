"""Checking metrics files: what is sound passes, and each kind of damage has a line that says where."""

import shutil

import h5py
import numpy as np
import pytest
from helpers.written_runs import header, ring, table, write

from fedh2l_mpi import api, metrics
from fedh2l_mpi.analysis import validation
from fedh2l_mpi.analysis.validation import contents
from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World


def errors(path, programs=False):
    return [finding.what for finding in validation.validate(path, programs) if finding.level == "error"]


def notes(path, programs=False):
    return [finding.what for finding in validation.validate(path, programs) if finding.level == "note"]


def rewritten(path, rows=lambda round_index: table(round_index), graphs=None, **more):
    """A closed run whose writer was given other numbers."""
    path.mkdir()
    writer = metrics.MetricsWriter(path / "metrics.h5", header(**more))
    for since, edges in graphs or [(0, ring(3))]:
        writer.add_graph(since, edges)
    for round_index in range(12):
        writer.append(round_index, rows(round_index))
    writer.close("complete")
    return path


def test_a_sound_run_passes_every_check(run_path):
    findings = validation.validate(run_path)
    assert {finding.level for finding in findings} == {"ok"} or shutil.which("h5dump") is None
    told = validation.text(run_path, findings)
    assert told.startswith(f"{run_path}: valid\n")
    for part in (
        "a metrics file of fedh2l_mpi, schema 1",
        "the run is complete, 12 rounds",
        "44 arrays with their dimensions and units",
        "config.yaml next to the file is the same",
        "12 of 12 rounds, without a gap",
        "3 edges, 1 graph",
        "calibration_error agrees with the bins",
        "as many bytes received as sent",
        "content_digest",
        "every dimension has its scale attached",
    ):
        assert part in told
    assert validation.text(run_path, findings, quiet=True) == f"{run_path}: valid\n"


@pytest.mark.parametrize(
    "graph",
    [
        ["topology.kind=random_regular", "topology.degree=2", "topology.redraw_every=2"],
        # In the third round, two of three have no neighbour.
        ["topology=one_peer_exponential", "participants=3"],
    ],
)
def test_a_real_run_whose_graph_changes_is_valid(tmp_path, graph):
    overrides = ["participants=4", "rounds=4", "evaluation.every=2", "method.local_steps=2", "method.mutual_steps=2"]
    config = loading.load(None, [*overrides, *graph]).resolved(1, launched=False)
    api.assemble(config, World(None), RunReservation(RunDirectory(tmp_path / "run"))).run()
    assert errors(tmp_path / "run") == []


@pytest.mark.parametrize(("participants", "domains", "finished"), [(1, 1, 12), (2, 1, 12), (3, 2, 0)])
def test_the_smallest_runs_are_valid(tmp_path, participants, domains, finished):
    state = "complete" if finished else "stopped"
    assert errors(write(tmp_path / "run", participants, domains, finished=finished, state=state)) == []


def test_runs_that_ended_early_are_valid_and_noted(tmp_path):
    stopped = write(tmp_path / "stopped", finished=5, state="stopped")
    assert errors(stopped) == []
    assert notes(stopped) == ["the run has stopped before round 5: 5 of 12 rounds finished"]
    killed = write(tmp_path / "killed", finished=5, state=None, host="here", pid=1)
    assert errors(killed, programs=True) == []
    assert "the file was not closed, so it has no content_digest to compare with" in notes(killed)
    if shutil.which("h5dump"):
        assert "h5clear -s" in notes(killed, programs=True)[-1]


def test_a_file_of_an_older_version_is_valid_and_what_it_lacks_is_noted(run_path):
    with h5py.File(run_path / "metrics.h5", "r+") as file:
        for name in metrics.ADDED:
            del file[name]
        del file.attrs["content_digest"]
        file["loss"].attrs["long_name"] = np.bytes_(b"in other words")
    assert errors(run_path) == []
    told = " ".join(notes(run_path))
    assert "an older version recorded no bin, calibration_error" in told
    assert "another version wrote the long_name of loss" in told
    assert "an older version recorded no content_digest" in told


def test_one_changed_bit_of_a_value_is_found(run_path):
    path = run_path / "metrics.h5"
    raw, value = bytearray(path.read_bytes()), metrics.read(path)["loss_private"][5, 1]
    at = raw.find(value.tobytes())
    assert raw.find(value.tobytes(), at + 1) == -1
    raw[at] ^= 1
    path.write_bytes(raw)
    (error,) = errors(run_path)
    assert error.startswith("content_digest: got ")


def put(name, value, at=()):
    def change(file):
        file[name][at] = value

    return change


def set_attribute(name, value, array=None):
    def change(file):
        (file[array] if array else file).attrs[name] = value

    return change


def delete(name):
    def change(file):
        del file[name]

    return change


def replace(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("accuracy", 1.5, (3, 1, 0)), "accuracy of round 3, participant 1, domain 0: got 1.5, must be from 0 to 1"),
        (put("accuracy", 0.5, (4, 1, 0)), "accuracy of round 4, participant 1, domain 0: got 0.5, must be NaN in a"),
        (put("accuracy_all", 0.5, (4, 1)), "accuracy_all of round 4, participant 1: got 0.5, must be NaN in a round"),
        (put("accuracy", np.nan, (7, 2, 1)), "domain 1: got nan, must be a number in a round with evaluation"),
        (put("loss_private", np.inf, (2, 0)), "loss_private of round 2, participant 0: got inf, must be >= 0"),
        (put("loss_private", np.nan, (2, 0)), "loss_private of round 2, participant 0: got nan, must be a number"),
        (put("seconds_wait", -1.0, (2, 0)), "seconds_wait of round 2, participant 0: got -1.0, must be >= 0"),
        (put("bytes_sent", 201, (2, 0)), "sum of bytes_received of round 2: got 600, must be 601"),
        (put("degree", 3, (6, 2)), "degree of round 6, participant 2: got 3, must be 2"),
        (put("accuracy_all", 0.0, (11, 0)), "accuracy_all of round 11, participant 0: got 0.0, must be 0."),
        (put("accuracy_worst", 0.0, (11, 1)), "accuracy_worst of round 11, participant 1: got 0.0, must be 0."),
        (put("accuracy_own", 0.0, (11, 2)), "accuracy_own of round 11, participant 2: got 0.0, must be 0."),
        (put("calibration_share", 0.9, (3, 0, 0)), "sum of calibration_share of round 3, participant 0: got 1.9"),
        (put("calibration_error", 0.0, (7, 0)), "calibration_error of round 7, participant 0: got 0.0, must be 0."),
        (put("temperature", np.nan, (7, 0)), "temperature of round 7, participant 0: got nan, must be a number in a"),
        (put("temperature", 0.01, (7, 0)), "temperature of round 7, participant 0: got 0.01, must be from 0.05 to 20"),
        (put("label_histogram", 4, (1, 9)), "label_histogram of participant 1: got 31 samples, must be 30"),
        (put("domain_histogram", 31, (1, 1)), "domain_histogram of participant 1: got 31 samples, must be 30"),
        (put("own_domain", 2, 1), "own_domain of participant 1: got 2, must be from -1 to 1"),
        (put("architecture", b"vit", 1), "architecture of participant 1: got 'vit', must be 'mlp' by the config"),
        (put("graph_edges", [1, 3], 2), "edge 2: got [1, 3], must be participants from 0 to 2"),
        (put("graph_edges", [1, 1], 2), "edge 2: got [1, 1], must join two participants"),
        (put("graph_edges", [2, 0], 2), "the graph since round 0: the edge 0, 2 occurs twice"),
        (put("round", 0, slice(4, 6)), "missing rounds: 4 to 5"),
        (delete("loss"), "array 'loss' is missing or damaged"),
        (delete("participant"), "array 'participant' is missing or damaged"),
        (replace("loss", np.zeros((12, 3, 3))), "array 'loss': got length 3 along domain, must be 2"),
        (replace("degree", np.zeros((12, 3))), "array 'degree': got type float64, must be i8"),
        (replace("device", 3), "array 'device': got 0 dimensions, must be 1: participant"),
        (set_attribute("units", np.bytes_(b"bits"), "loss"), "array 'loss', attribute 'units': got 'bits', must be 'n"),
        (set_attribute("long_name", np.bytes_(b""), "loss"), "array 'loss', attribute 'long_name': got '', must be"),
        (set_attribute("schema_version", 2), "has schema 2, but this version reads schema 1"),
        (set_attribute("rounds_planned", 13), "got 12 rounds, must be 13 of a complete run"),
        (set_attribute("rounds_planned", 11), "got 12 rounds, 11 were planned"),
        (set_attribute("seed", 1), "config has seed 0, the file has attribute 'seed': 1"),
        (set_attribute("seed_set_digest", np.bytes_(b"none")), "attribute 'seed_set_digest': got 'none', must be 64"),
        (
            set_attribute("config", np.bytes_(b"rounds: 0")),
            "attribute 'config' is not a valid config: rounds: got 0, must",
        ),
        (set_attribute("config", np.bytes_(b"a: [")), "attribute 'config' is missing or damaged"),
    ],
)
def test_each_kind_of_damage_is_told_where_it_is(run_path, change, told):
    with h5py.File(run_path / "metrics.h5", "r+") as file:
        change(file)
    found = errors(run_path)
    assert [what for what in found if told in what], found
    assert len(found) == len(set(found))


def test_many_failures_of_one_check_are_one_line(tmp_path):
    def off_by_a_lot(round_index):
        rows = table(round_index)
        rows[:, 0] += 0.0 if round_index < 7 else 2.0
        return rows

    (out_of_range, not_own) = errors(rewritten(tmp_path / "run", off_by_a_lot))
    assert out_of_range.startswith("accuracy_own of round 7, participant 0")
    assert out_of_range.endswith("must be from 0 to 1 (6 such)")
    assert not_own.endswith("(6 such)")


def test_a_run_that_was_made_longer_is_valid_with_the_evaluation_of_its_former_last_round(tmp_path):
    assert errors(rewritten(tmp_path / "run", lambda r: table(r, rounds=6 if r < 6 else 12))) == []


def test_a_redrawn_graph_without_edges_leaves_no_degree(tmp_path):
    def rows(round_index):
        values = table(round_index)
        if round_index >= 6:
            values[:, 14:17] = 0
        return values

    overrides = ["topology.kind=erdos_renyi", "topology.redraw_every=6", "topology.connected=false"]
    graphs = [(0, ring(3)), (6, [])]
    assert errors(rewritten(tmp_path / "run", rows, graphs, overrides=overrides)) == []


def test_without_calibration_no_temperature_is_fitted(tmp_path):
    (found,) = errors(rewritten(tmp_path / "run", overrides=["evaluation.calibration=none"]))
    assert found.startswith(
        "temperature of round 3, participant 0: got 1.5, must be NaN without evaluation.calibration"
    )


def test_a_users_own_classes_are_not_imported(tmp_path):
    overrides = ["method.name=nowhere.mine:Method", "models=[nowhere.mine:Net]"]
    run = rewritten(tmp_path / "run", overrides=overrides)
    assert errors(run) == ["architecture of participant 0: got 'lenet5', must be 'nowhere.mine:Net' by the config"]


def test_the_config_beside_the_file_must_be_the_files(run_path):
    (run_path / "config.yaml").write_text("rounds: 12\n")
    assert errors(run_path) == ["config.yaml next to the file differs from the attribute 'config'"]


def test_a_scale_that_is_not_attached_is_found(run_path):
    with h5py.File(run_path / "metrics.h5", "r+") as file:
        file["loss"].dims[2].detach_scale(file["domain"])
        file["accuracy"].dims[1].attach_scale(file["domain"])
    assert errors(run_path, programs=True) == [
        "array 'accuracy': got scales ['/participant', '/domain'] for dimension 1, must be 'participant' alone",
        "array 'loss': got scales [] for dimension 2, must be 'domain' alone",
    ]


def test_programs_that_fail_or_never_end_are_told(run_path, monkeypatch, tmp_path):
    program = tmp_path / "h5dump"
    monkeypatch.setattr(contents.shutil, "which", lambda _: str(program))
    program.write_text("#!/bin/sh\necho 'h5dump error: unable to open file' >&2\nexit 1\n")
    program.chmod(0o755)
    assert errors(run_path, programs=True)[0] == "h5dump -H: exit code 1: h5dump error: unable to open file"
    monkeypatch.setattr(contents, "PROGRAM_SECONDS", 0.01)
    found = errors(run_path, programs=True)
    assert "dimension scales cannot be followed: still running after 0.01 s" in found
    monkeypatch.setattr(contents.shutil, "which", lambda _: None)
    assert "h5dump was not tried: it is not installed" in notes(run_path, programs=True)


def test_what_is_no_run_is_not_valid(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    assert errors(tmp_path / "text.h5") == ["cannot be read as HDF5: it does not begin as an HDF5 file does"]
    assert errors(tmp_path / "nothing.h5") == ["no such file"]
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    (finding,) = validation.validate(tmp_path / "other.h5")
    assert validation.text(tmp_path / "other.h5", [finding], quiet=True) == (
        f"{tmp_path / 'other.h5'}: not valid: 1 error\n  file\n    error  not a metrics file of fedh2l_mpi\n"
    )
