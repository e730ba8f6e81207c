"""What a sweep makes of the directories that it finds, and of the programs that it is to start."""

import re
import sys

import numpy as np
import pytest

from fedh2l_mpi import metrics
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch import sweep
from fedh2l_mpi.launch.sweep.progress import SweepProgress
from fedh2l_mpi.launch.sweep.run_files import SweepRunFiles
from fedh2l_mpi.launch.sweep.runner import Runner, child_environment, mpi_command
from fedh2l_mpi.launch.sweep.sweep import check_fit
from fedh2l_mpi.launch.sweep.sweep_file import Element
from fedh2l_mpi.lifecycle.lock import RunLock

PARTICIPANT = {
    "architecture": "mlp", "parameters": 9, "parameter_bytes": 36, "private_samples": 5, "own_domain": 0, "rank": 0,
    "host": "here", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def three(tmp_path):
    """A sweep of three seeds, and its directory."""
    (tmp_path / "three.yaml").write_text("set: {participants: 2, rounds: 1}\naxes: {seed: [0, 1, 2]}\n")
    return sweep.load(tmp_path / "three.yaml"), tmp_path / "out"


def write(root, element: Element, seed: int | None = None) -> SweepRunFiles:
    """A finished run of an element, or of another seed."""
    place = SweepRunFiles(root, element)
    config = element.config.model_copy(update={} if seed is None else {"seed": seed})
    place.run.path.mkdir(parents=True)
    place.run.config.write_text(config.to_yaml())
    attributes = {"config": config.to_yaml(), "seed": config.seed, "rounds_planned": 1}
    header = metrics.RunHeader(attributes, [PARTICIPANT] * 2, np.ones((2, 3), np.int64), ["plain"])
    writer = metrics.MetricsWriter(place.run.metrics, header)
    writer.append(0, np.stack([metrics.pack_row({"accuracy_all": 0.5}, [0.5], [1.0])] * 2))
    writer.close("complete")
    return place


ENDS = [("complete", "early stop in round 1, best round 1"), ("stopped", "")]


def test_a_run_that_stopped_early_has_finished_and_one_that_was_stopped_has_not(three):
    loaded, root = three
    header = metrics.RunHeader(
        *({"seed": 0, "rounds_planned": 9}, [PARTICIPANT] * 2, np.ones((2, 3), np.int64), ["plain"]),
        may_stop_early=True,
    )
    for element, (state, early) in zip(loaded.elements, ENDS, strict=False):
        place = SweepRunFiles(root, element)
        place.run.path.mkdir(parents=True)
        place.run.config.write_text(element.config.to_yaml())
        writer = metrics.MetricsWriter(place.run.metrics, header)
        writer.append(0, np.stack([metrics.pack_row({"accuracy_all": 0.5}, [0.5], [1.0])] * 2))
        writer.close(state, early)
        assert place.has_finished() == (state == "complete")


def damage(place: SweepRunFiles) -> None:
    place.run.metrics.write_bytes(b"no HDF5")


def test_a_run_that_another_process_is_at_work_on_is_not_moved(three):
    loaded, root = three
    place = SweepRunFiles(root, loaded.elements[0])
    place.run.path.mkdir(parents=True)
    lock = RunLock(place.run.lock)
    with pytest.raises(UserError, match="another process .* is writing this run"):
        place.set_aside()
    assert place.run.lock.exists()
    lock.release()
    assert place.set_aside()
    assert [path.name for path in root.iterdir()] == ["seed=0.unfinished-1"]
    # Nobody holds what was set aside.
    assert not list((root / "seed=0.unfinished-1").iterdir())


def test_an_unreadable_run_fails_alone(three, capsys):
    loaded, root = three
    write(root, loaded.elements[0])
    damage(write(root, loaded.elements[1]))
    write(root, loaded.elements[2])
    states = [line.split()[1] for line in sweep.listing(loaded, root).splitlines()]
    assert states == ["finished", "unreadable", "finished"]
    assert sweep.run(loaded, root) == 1
    said = capsys.readouterr()
    reason = f"{root}/seed=1/metrics.h5: cannot be read as HDF5: it does not begin as an HDF5 file does. "
    reason += f"To run this element again, move {root}"
    assert f"1 of 3 runs failed:\n  seed=1: {reason}/seed=1 away." in said.err
    assert len((root / "table.csv").read_text().splitlines()) == 3
    (root / "table.csv").unlink()
    sweep.tabulate(loaded, root)
    said = capsys.readouterr()
    assert f"the table leaves out seed=1: {reason}" in said.err
    assert "2 of 3 runs have finished" in said.out
    assert len((root / "table.csv").read_text().splitlines()) == 3


def test_a_run_that_cannot_be_read_any_more_when_its_turn_comes_ends_no_other(three, capsys):
    loaded, root = three
    runner = Runner(loaded.elements, root, 1, None, SweepProgress(quiet=False))
    damage(write(root, loaded.elements[0]))
    write(root, loaded.elements[1])
    write(root, loaded.elements[2], seed=7)
    runner.run()
    assert list(runner.outcomes) == ["seed=1"]
    assert list(runner.failed) == ["seed=0", "seed=2"]
    assert (
        "contains a finished run of a different config. It differs in seed (there 7, here 2)" in runner.failed["seed=2"]
    )
    # Of three, one is done, though two of them have had their turn.
    assert "1 of 3 runs: seed=1: all-domain 0.500, in another process, 1 failed" in capsys.readouterr().out


def test_another_configs_run_is_still_told_before_anything_runs(three):
    loaded, root = three
    write(root, loaded.elements[1], seed=7)
    assert "another config's  seed=1" in sweep.listing(loaded, root)
    for look in (sweep.run, sweep.tabulate):
        with pytest.raises(UserError, match="seed=1: this directory contains a finished run of a different config"):
            look(loaded, root)


def test_a_directory_that_cannot_be_written_is_told_as_a_mistake(three):
    loaded, root = three
    # Root may write anywhere, but not into a file that is a folder.
    (root / "seed=0.yaml").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(f"--out: {root}/seed=0.yaml cannot be written: Is a directory")):
        sweep.run(loaded, root, quiet=True)


def test_the_environments_own_mpirun_may_lie_in_a_folder_with_blanks(tmp_path, monkeypatch):
    folder = tmp_path / "jane doe"
    folder.mkdir()
    (folder / "mpirun").touch()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert mpi_command(2, {}) == [str(folder / "mpirun"), "-n", "2"]
    assert mpi_command(2, {"MPIEXEC": f"{sys.prefix}/bin/python -x 'a b'"}) == [
        *(f"{sys.prefix}/bin/python", "-x", "a b", "-n", "2")
    ]


@pytest.mark.parametrize(
    ("named", "says"),
    [("/nowhere/mpiexec -x", "there is no program /nowhere/mpiexec."), ("mpirun 'a", "No closing quotation")],
)
def test_an_mpiexec_that_cannot_be_started_is_told_before_anything_is(named, says):
    with pytest.raises(UserError, match=f"MPIEXEC: got .*{re.escape(says)}"):
        mpi_command(2, {"MPIEXEC": named})


def test_runs_at_a_time_are_not_bound_to_the_same_cores_unless_the_user_binds_them():
    own = {"PRTE_MCA_hwloc_default_binding_policy": "core", "PMI_SIZE": "4"}
    assert child_environment(own) == {
        "PRTE_MCA_hwloc_default_binding_policy": "core",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }
    assert child_environment({})["PRTE_MCA_hwloc_default_binding_policy"] == "none"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("axes: {models: [[lenet5], [lenet6]]}", "models: got 'lenet6'. Known: .* \\(in models=lenet6\\)"),
        (
            "set: {exchange.codec: uint8, models: [mlp]}\naxes: {method: [fedh2l, d_psgd], seed: [0, 1]}",
            "exchange.codec: got 'uint8', .* \\(in d_psgd,seed=0; d_psgd,seed=1\\)",
        ),
        ("axes: {models: [[mlp], [no_such:Net]]}", "cannot import no_such: ModuleNotFoundError: .* \\(in models="),
        ("set: {weights: {mlp: /nowhere.pt}, models: [mlp]}\naxes: {seed: [0]}", "/nowhere.pt"),
    ],
)
def test_models_weights_and_codecs_that_do_not_fit_are_told_at_once(tmp_path, text, says):
    path = tmp_path / "sweep.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=says):
        check_fit(sweep.load(path).elements, path, jobs=1)


def test_each_combination_of_models_method_and_codec_is_tried_once_and_users_own_too(tmp_path, monkeypatch):
    from fedh2l_mpi.planning import requirements

    tried = []
    monkeypatch.setattr(
        requirements, "compute", lambda config, *rest: tried.append((config.models, config.method.name))
    )
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "axes: {seed: [0, 1], method: [fedh2l, fedmd], models: [[mlp], [mine:Net]], optimizer.lr: [0.1, 0.2]}\n"
    )
    check_fit(sweep.load(path).elements, path, jobs=1)
    assert sorted(tried) == [((name,), method) for name in ("mine:Net", "mlp") for method in ("fedh2l", "fedmd")]
