"""The early stop: its rule on made-up accuracies, and whole runs that end by it, go on, or are killed before it."""

import math
import shutil

import numpy as np
import pytest
from helpers.runs_in_process import ALONE, run, simulation
from helpers.same_runs import assert_same_run

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import validation
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.config import EarlyStopConfig, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files, start, status
from fedh2l_mpi.lifecycle.early_stop import EarlyStop, Progress
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

SETTINGS = ["models=[mlp]", "participants=3", "rounds=200", "method.local_steps=3", "method.mutual_steps=3"]
SETTINGS += ["evaluation.every=2", "checkpoint.every=4", "run.early_stop.patience=2"]


@pytest.mark.parametrize(
    ("means", "patience", "says"),
    [
        ([0.5, 0.6, 0.6, 0.55], 2, "early stop in round 8, best round 4"),
        ([0.5, 0.6, 0.6, 0.61], 2, None),
        ([0.5, 0.4], 1, "early stop in round 4, best round 2"),
        ([0.5, 0.4], 2, None),
        ([0.0], 1, None),
    ],
)
def test_the_run_ends_after_so_many_evaluations_without_a_new_highest_mean(means, patience, says):
    rule, early = EarlyStopConfig(patience=patience), None
    early = EarlyStop(World(None), 3, rule, Progress(), deadline_s=1.0)
    for number, mean in enumerate(means):
        assert not early.stops
        # The third participant has no validation samples.
        accuracies = (mean - 0.0625, mean + 0.0625, math.nan)
        early.note(2 * number + 2, {index: {rule.measure: value} for index, value in enumerate(accuracies)})
    assert early.stops == (says is not None)
    assert says is None or str(early) == says
    assert not early.progress.stops(EarlyStopConfig(patience=patience + 2))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that ended early."""
    out = RunDirectory(tmp_path_factory.mktemp("early") / "run")
    assert run(out.path, *SETTINGS) == StopRequest.NOTHING
    return out


@pytest.fixture
def copy(ended, tmp_path):
    return RunDirectory(shutil.copytree(ended.path, tmp_path / "run"))


def test_a_run_that_ended_early_is_complete_and_its_files_say_how(ended):
    now, result = status.read(ended.status), metrics.read(ended.metrics)
    mean_E = result["accuracy_validation"][1::2].mean(axis=1)
    best = int(mean_E.argmax())
    assert (now.state, now.rounds, now.round) == ("complete", 200, result.rounds)
    assert result.rounds == 2 * (best + 1 + 2) < 200
    says = f"early stop in round {result.rounds}, best round {2 * (best + 1)}"
    assert now.reason == result.attributes["early_stop"] == says
    assert now.checkpoint == now.round
    loaded = load_run(ended.path)
    assert str(loaded.condition) == f"complete, {result.rounds} rounds: {says}"
    assert not [warning for warning in loaded.summary().warnings if "unfinished" in warning]
    assert not [finding for finding in validation.validate(ended.path) if finding.level == "error"]


@pytest.mark.parametrize("changes", [[], ["rounds=300"], ["run.early_stop.patience=1"]])
def test_it_does_not_go_on_by_itself(copy, changes):
    before = copy.metrics.read_bytes()
    config = loading.load(copy.config, changes)
    with start.reserve(ALONE, copy, config, "auto") as reservation:
        assert reservation.kind == "done"
    assert copy.metrics.read_bytes() == before
    assert status.read(copy.status).state == "complete"


def test_it_goes_on_with_more_patience_and_is_the_run_that_had_it_from_the_start(copy, tmp_path, caplog):
    caplog.set_level("INFO")
    ended_at = status.read(copy.status).round
    run(copy.path, "run.early_stop.patience=3", mode="auto")
    assert f"goes on after its early stop in round {ended_at}" in caplog.text
    run(tmp_path / "patient", *SETTINGS, "run.early_stop.patience=3")
    now = status.read(copy.status)
    assert now.round > ended_at
    assert (now.reason, now.round) == (status.read(tmp_path / "patient" / "status").reason, now.round)
    assert_same_run(tmp_path / "patient", copy.path, now.round)
    # Without the rule, a run ends at its last round, and no longer says that it stopped early.
    run(copy.path, "run.early_stop=null", f"rounds={now.round + 1}", mode="auto")
    assert (status.read(copy.status).round, status.read(copy.status).reason) == (now.round + 1, "")
    assert "early_stop" not in metrics.read(copy.metrics).attributes


@pytest.mark.parametrize("back", [0, 4], ids=["after the last checkpoint", "before it"])
def test_a_run_that_was_killed_before_it_could_say_so_ends_in_the_same_round(ended, copy, back):
    rounds = status.read(ended.status).round
    with simulation(copy.path, "run.early_stop.patience=99", mode="auto") as made:
        made.recorder.close("failed")
    if back:
        for folder in copy.checkpoints.glob("round-*"):
            if folder != copy.checkpoint(rounds - rounds % 4 - (0 if rounds % 4 else 4)):
                shutil.rmtree(folder)
        checkpoint_files.clear(copy.checkpoints)
    assert run(copy.path, "run.early_stop.patience=2", mode="require") == StopRequest.NOTHING
    assert status.read(copy.status).reason == status.read(ended.status).reason
    assert_same_run(ended.path, copy.path, rounds)


def test_local_tests_may_be_the_measure(tmp_path):
    settings = [*SETTINGS, "run.early_stop.measure=accuracy_local"]
    with pytest.raises(UserError) as error:
        loading.load(None, settings)
    assert str(error.value) == (
        "run.early_stop.measure: got 'accuracy_local', but evaluation.local_test_share is null. Fix: keep a share of "
        "the private data, such as evaluation.local_test_share=0.1."
    )
    run(tmp_path / "run", *settings, "evaluation.local_test_share=0.2")
    result = metrics.read(RunDirectory(tmp_path / "run").metrics)
    mean_E = np.nanmean(result["accuracy_local"][1::2], axis=1)
    assert result.rounds == 2 * (int(mean_E.argmax()) + 1 + 2)


def test_a_run_without_validation_data_cannot_end_by_them(tmp_path):
    with pytest.raises(UserError, match="run.early_stop.measure: .* evaluation.validation_share is 0.0. Fix: keep a s"):
        loading.load(None, [*SETTINGS, "evaluation.validation_share=0"])
    few = ["data.partition.samples_per_participant=5", "evaluation.validation_share=0.01"]
    with pytest.raises(UserError, match="evaluation.validation_share=0.01 gives no participant a validation sample"):
        run(tmp_path / "run", *SETTINGS, *few)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("run.early_stop.measure=accuracy_validation", "run.early_stop.patience: must be given with a measure"),
        ("run.early_stop.measure=accuracy_all", "run.early_stop.measure: got 'accuracy_all'; known: accuracy_local, "),
        ("run.early_stop={patience: 0}", "run.early_stop.patience: got 0, must be >= 1"),
        ("run.early_stop=5", "run.early_stop: got 5, must be a section of keys and values"),
        ("run.early_stop.patients=5", "run.early_stop.patients: unknown key; .*did you mean 'patience'"),
    ],
)
def test_a_wrong_rule_is_refused(given, says):
    with pytest.raises(UserError, match=says):
        loading.load(None, [given, *(["run.early_stop.patience=1"] if "accuracy_all" in given else [])])
