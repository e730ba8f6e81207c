"""Runs that have learned nothing say so, and no other run does."""

import math

import numpy as np
import pytest
from helpers.launching import ROOT
from helpers.runs_in_process import ALONE

from fedh2l_mpi import api
from fedh2l_mpi.analysis import learning
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.config import loading
from fedh2l_mpi.runtime.logs import RunLog

READY = ROOT / "configs" / "digits_ring.yaml"


def test_the_best_guess_and_its_luck_are_those_of_the_test_samples():
    # 3 of 4 samples: q = 3/4, and the standard error is sqrt(3/4 * 1/4 / 4) = sqrt(3) / 8.
    assert learning.chance_level(2, 3, 4) == pytest.approx((0.75, 0.75 + 3 * math.sqrt(3) / 8))
    # Of 100,000 guesses, about 135 are luckier than 3 standard errors.
    guess, limit = learning.chance_level(10, 100, 1000)
    lucky = np.random.default_rng(0).binomial(1000, guess, size=100_000) / 1000 > limit
    assert 20 < lucky.sum() < 400
    # A file of an earlier version does not say how many samples there were; a damaged one says nonsense.
    assert learning.chance_level(10, None, None) == learning.chance_level(10, 5, 0) == pytest.approx((0.1, 0.19))


def test_a_loss_explodes_far_above_that_of_equal_posteriors():
    loss_P = np.array([math.log(10), 1.9 * math.log(10), 2.1 * math.log(10), 1e9, math.nan])
    assert learning.has_exploded(loss_P, classes=10).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rounds=1"], []),
        (["rounds=1", "recipe=classic"], []),
        (["rounds=1", "participants=16"], []),
        (["rounds=1", "data.partition={kind: dirichlet, alpha: 0.5}"], []),
        (["rounds=2", "optimizer.lr=1e-7"], ["is at chance level (0.145 for the best guess)"]),
        (["rounds=2", "optimizer.lr=1000"], ["is at chance level (0.145", "loss of 4 of 4 participants has exploded"]),
    ],
)
def test_a_complete_run_says_whether_it_has_learned_nothing(tmp_path, overrides, said):
    config = loading.load(READY, [*overrides, "data.root=null"]).resolved(1, launched=False)
    with RunLog() as run_log:
        ended = api.execute(config, ALONE, run_log, out=str(tmp_path / "run"))
    assert all(words in ended.verdict for words in said)
    assert bool(ended.verdict) == bool(said)
    logged = (tmp_path / "run" / "log" / "rank-0000.log").read_text()
    assert logged.count("WARNING the mean all-domain accuracy") == bool(said)
    cautions = [caution.partition(":")[0] for caution in learning.cautions(load_run(tmp_path / "run"))]
    assert ("exploded" in cautions) == (len(said) == 2)


def test_a_run_that_is_stopped_early_is_not_judged(tmp_path):
    config = loading.load(READY, ["rounds=9", "optimizer.lr=1e-7", "models=[mlp]"]).resolved(1, launched=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    with RunLog() as run_log:
        ended = api.execute(config, ALONE, run_log, out=str(tmp_path / "run"))
    assert (ended.request.reason, ended.verdict) == ("file STOP", "")
