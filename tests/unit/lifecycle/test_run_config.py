"""The config of a run that is resumed: a run of an earlier revision resumes with the config it was started with."""

import tarfile
from pathlib import Path

import pytest
import torch
from helpers.launching import ROOT
from helpers.runs_in_process import run
from helpers.same_runs import assert_same_run

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import grouping
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.config import Config, loading, recipes
from fedh2l_mpi.config.comparison import what_counts
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import run_config
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.run_directory import RunDirectory

# A user's config, the run that was stopped after 2 of its 4 rounds, and the same run unbroken, by the last revision
# that knew no recipes. The instructions of the CPU and PyTorch decide about the last bits of the numbers.
EARLIER_RUN = ROOT / "tests" / "golden" / "earlier_run.tar.gz"
INSTRUCTIONS = "AVX512"
# Defaults as a later version may have them.
LATER = {
    "exchange.codec": recipes.STANDARD["exchange.codec"],
    "method.temperature": recipes.Rule("4.0", lambda value: 4.0),
    "optimizer.lr": recipes.Rule("0.5", lambda value: 0.5),
    "seed_set.share": recipes.Rule("0.1", lambda value: 0.1),
}


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    """Folder with the files of the earlier revision; the defaults have changed since."""
    with tarfile.open(EARLIER_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setattr(recipes, "STANDARD", LATER)
    return tmp_path


@pytest.mark.parametrize("named", [True, False])
def test_a_run_of_an_earlier_revision_goes_on_with_the_same_numbers(earlier, caplog, named):
    out, unbroken = earlier / "stopped", earlier / "unbroken"
    source = earlier / "mine.yaml" if named else None
    assert run(out, source=source, mode="require") == StopRequest.NOTHING
    changed = [record.message.split(" has changed")[0] for record in caplog.records if "has changed" in record.message]
    if changed == ["the code"] and torch.backends.cpu.get_cpu_capability() == INSTRUCTIONS:
        # A user's own model has contiguous weights since then, and its checkpoints say so.
        assert_same_run(unbroken, out, rounds=4, added=("contiguous", "domain_histogram"))
    assert changed in (["the code"], ["the code", "a library"])
    ours, theirs = (metrics.read(RunDirectory(path).metrics) for path in (out, unbroken))
    for name in ("loss", "loss_private", "loss_seed", "loss_distillation"):
        assert ours[name][-1] == pytest.approx(theirs[name][-1], rel=1e-4, nan_ok=True), name
    settings = [what_counts(load_run(path).flat_config()) for path in (out, unbroken)]
    assert grouping.differing(settings) == []
    stored = loading.load_stored(out / "config.yaml")
    assert (stored.recipe, stored.exchange.codec, stored.optimizer.lr) == ("classic", "float32", 0.01)


def test_a_run_of_an_earlier_revision_is_not_resumed_with_the_defaults_of_today(earlier):
    with pytest.raises(UserError) as error:
        run(earlier / "stopped", "recipe=standard", source=earlier / "mine.yaml", mode="auto")
    for difference in ("seed_set.share: there 0.2, here 0.1", "exchange.codec: there 'float32', here 'uint8'"):
        assert difference in str(error.value)
    assert "optimizer.lr" not in str(error.value), "the user's config names it"


@pytest.mark.parametrize(
    ("mode", "source", "overrides", "expected"),
    [
        # Another run, and one that starts again, have today's defaults.
        ("never", "mine.yaml", (), ("standard", 0.1, 4.0, 3)),
        ("auto", "mine.yaml", (), ("classic", 0.2, 1.0, 3)),
        ("auto", "mine.yaml", ("method.temperature=2", "participants=null"), ("classic", 0.2, 2.0, 3)),
        ("auto", None, ("participants=null",), ("classic", 0.2, 1.0, 3)),
        ("auto", {"recipe": "standard"}, (), ("standard", 0.1, 4.0, 3)),
    ],
)
def test_the_defaults_are_those_of_the_run_to_resume(earlier, mode, source, overrides, expected):
    if isinstance(source, str):
        source = earlier / source
    config = run_config.load(source, overrides, str(earlier / "stopped"), mode)
    assert (config.recipe, config.seed_set.share, config.method.temperature, config.participants) == expected


@pytest.mark.parametrize(
    ("source", "overrides", "limit"),
    [(None, (), None), (None, ("run.max_wall=9",), 9), ({"run": {"max_wall": 5}}, (), 5)],
)
def test_a_time_limit_is_that_of_the_command_and_not_the_one_of_the_command_before(tmp_path, source, overrides, limit):
    # As earlier versions stored it, and as it is stored now.
    started = Config(participants=4, run={"max_wall": 6})
    assert "max_wall: null" in run_config.stored_text(started)
    for name, text in (("earlier", started.to_yaml()), ("now", run_config.stored_text(started))):
        RunDirectory(tmp_path / name).create(text)
        assert run_config.load(source, overrides, str(tmp_path / name), "auto").run.max_wall == limit


@pytest.mark.parametrize(
    ("given", "participants", "decay", "rounds"),
    [
        ({}, 5, 0.9, 30),
        ({"rounds": 80}, 5, 0.9, 30),
        ({"participants": 6, "optimizer": {"average_decay": 0.5, "schedule_rounds": 10}}, 6, 0.5, 10),
        # What is averaged or scheduled in another way has no decay and no length of its own yet.
        ({"optimizer": {"average": "none", "schedule": "constant"}}, 5, None, None),
    ],
)
def test_a_run_keeps_what_its_null_became_when_it_started(tmp_path, given, participants, decay, rounds):
    averaging = {"average": "ema", "schedule": "cosine"}
    started = Config(participants=5, optimizer={**averaging, "average_decay": 0.9, "schedule_rounds": 30})
    RunDirectory(tmp_path / "run").create(started.to_yaml())
    source = {**given, "optimizer": {**averaging, **given.get("optimizer", {})}}
    config = run_config.load(source, (), str(tmp_path / "run"), "auto")
    assert (config.participants, config.optimizer.average_decay, config.optimizer.schedule_rounds) == (
        participants,
        decay,
        rounds,
    )
