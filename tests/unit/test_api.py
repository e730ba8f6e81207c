"""The front door: `fh.run` and what it returns, next to the command line that goes through the same code."""

import logging
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.launching import assert_same, launch
from torch import nn

import fedh2l_mpi as fh
from fedh2l_mpi import evaluation
from fedh2l_mpi.build import build_rank
from fedh2l_mpi.runtime import arithmetic
from fedh2l_mpi.runtime.world import World

SMALL = {"participants": 3, "rounds": 3, "models": ["mlp", "cnn"], "evaluation": {"every": 2}}
WORDS = ["participants=3", "rounds=3", "models=[mlp, cnn]", "evaluation.every=2"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return fh.run(SMALL, out=tmp_path_factory.mktemp("api") / "run", quiet=True)


def test_importing_loads_nothing_and_every_public_name_is_there():
    code = (
        "import sys, fedh2l_mpi as fh\n"
        "assert not {'torch', 'numpy', 'h5py', 'mpi4py', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "fh.load_config({'rounds': 2}); fh.UserError; fh.run\n"
        "assert not {'torch', 'h5py', 'mpi4py'} & set(sys.modules)\n"
        "assert all(getattr(fh, name) is not None for name in dir(fh))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        fh.runn  # noqa: B018


def test_a_dict_a_file_and_the_command_line_give_the_same_bits(ran, tmp_path):
    (tmp_path / "small.yaml").write_text("\n".join(["participants: 3", "rounds: 9", "models: [mlp, cnn]"]))
    from_file = fh.run(
        tmp_path / "small.yaml", set=["rounds=3", "evaluation.every=2"], out=tmp_path / "file", quiet=True
    )
    words = [word for one in WORDS for word in ("--set", one)]
    assert launch([*words, "--out", str(tmp_path / "cli"), "--quiet"]).code == 0
    from_config = fh.run(fh.load_config(SMALL), out=tmp_path / "config", quiet=True)
    for other in (from_file.file, tmp_path / "cli" / "metrics.h5", from_config.file):
        assert_same(ran.file, other)


def test_a_run_has_its_state_directory_config_and_arrays(ran):
    assert (ran.state, ran.path.name, ran.config["rounds"]) == ("complete", "run", 3)
    accuracy = ran["accuracy_all"]
    assert (accuracy.shape, accuracy.dtype) == ((3, 3), np.float64)
    assert np.isnan(accuracy[0]).all()
    assert np.isfinite(accuracy[1:]).all()
    assert float(ran.dataset()["accuracy_all"][-1].mean()) == accuracy[-1].mean()
    assert repr(ran) == f"Run({str(ran.path)!r}: complete, 3 rounds, 3 participants)"
    assert ran.summary().state.startswith("complete")
    printed = str(ran.summary()).splitlines()
    assert printed[0] == "after 3 rounds; accuracies on test data"
    (mean,) = [line.split() for line in printed if line.startswith("mean of 3")]
    assert mean[5] == f"{accuracy[-1].mean():.3f}"
    (file,) = ran.plot("curves")
    assert file.stat().st_size > 5_000
    with pytest.raises(fh.UserError, match=r"no array 'accurcy_all' \(did you mean 'accuracy_all'"):
        ran["accurcy_all"]


class Projected(nn.Module):
    """Draws random numbers in the constructor that its state dict does not hold."""

    def __init__(self, channels, side, classes):
        super().__init__()
        self.projection, self.out = torch.randn(channels * side * side, 16), nn.Linear(16, classes)

    def forward(self, images):
        return self.out(images.flatten(1) @ self.projection)


@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_model_scores_what_the_run_recorded(ran, average, tmp_path):
    config = SMALL
    if average == "ema":
        config = {**SMALL, "models": [f"{__name__}:Projected", "cnn"]}
        ran = fh.run(config, set="optimizer.average=ema", out=tmp_path / "run", quiet=True)
    setup = build_rank(fh.load_config(config).resolved(1, launched=False), World(None))
    for participant in setup.participants:
        model = ran.model(participant.index)
        assert not model.training
        participant.model.load_state_dict(model.state_dict())
        test = setup.federation.tests[0]
        with torch.no_grad():
            predicted = model(test.inputs(slice(0, len(test)))).argmax(dim=-1)
        recorded = float(ran["accuracy"][-1, participant.index, 0])
        assert float((predicted == test.labels).double().mean()) == pytest.approx(recorded, abs=1e-12)
        assert evaluation.score(participant, test).accuracy == recorded
    with pytest.raises(fh.UserError, match=r"got participant 3\. Allowed: 0 to 2"):
        ran.model(3)


def test_the_process_is_left_as_it_was_also_by_an_error(tmp_path, monkeypatch, ran):
    logger, threads = logging.getLogger("fedh2l_mpi"), torch.get_num_threads()
    before = (list(logger.handlers), logger.level, logger.propagate, signal.getsignal(signal.SIGTERM))
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    rounds = []
    # As on a GPU, whose flags PyTorch has here, too.
    set_up = arithmetic.set_up
    monkeypatch.setattr(arithmetic, "set_up", lambda device, precision: set_up(torch.device("cuda"), precision))

    def fail(index, arrays):
        rounds.append((index, arrays["accuracy_all"].shape, arrays["loss"].shape))
        assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32) == (1, False)
        if index == 1:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fh.run(SMALL, out=tmp_path / "run", on_round=fail, quiet=True)
    assert rounds == [(0, (3,), (3, 4)), (1, (3,), (3, 4))]
    assert (list(logger.handlers), logger.level, logger.propagate, signal.getsignal(signal.SIGTERM)) == before
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)
    assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32) == (0, True)
    resumed = fh.run(SMALL, out=tmp_path / "run", resume="auto", quiet=True)
    assert resumed.state == "complete"
    # On a CPU, a GPU's flags change no number.
    np.testing.assert_array_equal(resumed["loss"], ran["loss"])
    np.testing.assert_array_equal(resumed["loss_private"], ran["loss_private"])


def test_on_a_cpu_tf32_is_float32_and_the_log_says_so(tmp_path, ran):
    tf32 = fh.run({**SMALL, "optimizer": {"precision": "tf32"}}, out=tmp_path / "run", quiet=True)
    for name in ("loss", "accuracy", "loss_private", "loss_distillation"):
        np.testing.assert_array_equal(tf32[name], ran[name])
    assert "optimizer.precision=tf32 has no effect on a CPU" in (tf32.path / "log" / "rank-0000.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"round": 3}}, r"round: unknown key.*did you mean 'rounds'"),
        ({"config": {"rounds": 0}}, "rounds: got 0"),
        ({"set": "topology.kind=rign"}, "topology.kind: got 'rign'"),
        ({"resume": "always", "out": "x"}, "resume: got 'always'. Known: never, auto, require"),
        ({"resume": "auto"}, "resume='auto' needs out"),
        ({"config": "no/such.yaml"}, "no/such.yaml: cannot read the config"),
        ({"config": 3}, "config: got 3"),
    ],
)
def test_a_mistake_is_a_user_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fh.UserError, match=message):
        fh.run(**arguments)
    assert list(tmp_path.iterdir()) == []
