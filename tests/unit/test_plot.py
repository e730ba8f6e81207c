"""The picture of a run: what is drawn, and what cannot be."""

import subprocess
import sys

import numpy as np
import pytest

from fedh2l_mpi import config_file, metrics
from fedh2l_mpi.analysis.plot import plot
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.simulation import Simulation
from fedh2l_mpi.world import World


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = RunDirectory(tmp_path_factory.mktemp("plot") / "run")
    settings = config_file.load(None, ["rounds=4", "evaluation.every=2"]).resolved(1, launched=False)
    Simulation(settings, World(None), directory).run(lambda round_index, table: None)
    return directory


@pytest.mark.parametrize(("ending", "starts"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_run_becomes_a_picture_of_each_kind(finished, tmp_path, ending, starts):
    plot(metrics.read(finished.metrics), tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").read_bytes().startswith(starts)


def test_the_command_draws_beside_the_file_and_loads_no_torch(finished):
    code = (
        "import sys; from pathlib import Path; from fedh2l_mpi import cli; from fedh2l_mpi.world import World\n"
        "cli.execute(cli.parse(['plot', sys.argv[1]]), World(None))\n"
        "assert not {'torch', 'mpi4py'} & set(sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, finished.path], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == f"plot: {finished.path}/plot.png\n"
    assert (finished.path / "plot.png").stat().st_size > 10_000


def test_many_participants_are_drawn_without_numbers(finished, tmp_path):
    run = metrics.read(finished.metrics)
    many = {name: np.repeat(values, 50, axis=1) if values.ndim > 1 else values for name, values in run.arrays.items()}
    many["architecture"] = np.repeat(run["architecture"], 50)
    plot(metrics.RunMetrics(run.attributes, many, True), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_what_cannot_be_drawn_is_told(finished, tmp_path):
    run = metrics.read(finished.metrics)
    empty = {**run.arrays, "accuracy_all": np.full_like(run["accuracy_all"], np.nan)}
    with pytest.raises(UserError, match="no round has been evaluated yet"):
        plot(metrics.RunMetrics(run.attributes, empty, True), tmp_path / "plot.png")
    with pytest.raises(UserError, match="cannot write the plot"):
        plot(run, tmp_path / "plot.docx")
    with pytest.raises(UserError, match="cannot write the plot"):
        plot(run, tmp_path / "nowhere" / "plot.png")
