"""The leakage meter on runs: chance for a model that saw nothing, certainty for one that memorised."""

import shutil

import pytest
import torch
from helpers import runs_in_process

from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.privacy import leakage, page
from fedh2l_mpi.runtime.world import World

SETS = ["models=[mlp]", "participants=2", "topology.kind=complete", "rounds=2", "exchange.keep_posteriors=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("leakage") / "run"
    runs_in_process.run(out, *SETS, "method.local_steps=3", "method.mutual_steps=3")
    return out


def found(findings, *kind, participant=0):
    (one,) = (f for f in findings if (f.attacker, f.attack, f.measure) == kind and f.participant == participant)
    return one


def test_every_attack_has_a_row_for_each_participant_and_a_mean(run):
    findings = leakage.measure(leakage.collect(run), shadow_models=2)
    assert len(findings) == 3 * (2 * 2 * 2 + 2)
    for attacker in ("query", "observer"):
        one = found(findings, attacker, "lira", "auc")
        # After six steps, nothing is memorised.
        assert 0.35 < one.estimate.value < 0.65
        both = [found(findings, attacker, "labels", "distance", participant=p).estimate.value for p in (0, 1)]
        mean = found(findings, attacker, "labels", "distance", participant=leakage.MEAN)
        assert mean.estimate.value == pytest.approx(sum(both) / 2)
    assert len(page.csv(findings).splitlines()) == len(page.markdown(findings).splitlines()) - 1 == len(findings) + 1


def test_members_and_others_have_the_same_labels(run):
    evidence = leakage.collect(run)
    pool, members = leakage.matched(evidence.setup, 0, 0)
    assert len(pool) == 2 * members
    assert pool.labels[:members].bincount().tolist() == pool.labels[members:].bincount().tolist()


def test_a_model_that_memorised_gives_its_members_away(run):
    evidence = leakage.collect(run)
    participant = evidence.setup.participants[0]
    pool, members = leakage.matched(evidence.setup, 0, 0)

    class Memory(torch.nn.Module):
        """Certain of the label of a member, and uncertain of anything else."""

        def forward(self, inputs):
            same = (inputs.flatten(1)[:, None] == pool.stored[:members].flatten(1)[None]).all(dim=-1)
            return 9.0 * same.double() @ torch.nn.functional.one_hot(pool.labels[:members], 10).double()

    participant.model, participant.average = Memory(), None
    findings = leakage.measure(evidence, [0], shadow_models=0)
    assert found(findings, "query", "loss", "auc").estimate.value == 1.0
    assert found(findings, "query", "loss", "tpr").estimate.value == 1.0
    assert found(findings, "observer", "loss", "auc").estimate.value < 0.65


def test_a_run_without_a_checkpoint_is_attacked_by_its_posteriors_or_refused_in_one_line(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints")
    command = commands.parse(["leakage", str(out), "--shadows", "0", "--format", "csv", "--out", str(tmp_path / "a")])
    assert commands.execute(command, World(None)) == 0
    assert {line.split(",")[1] for line in (tmp_path / "a").read_text().splitlines()[1:]} == {"observer"}
    (out / "posteriors.h5").unlink()
    with pytest.raises(UserError, match="neither a checkpoint nor kept posteriors.*Fix: run it to its end"):
        leakage.collect(out)


@pytest.mark.parametrize(
    ("participants", "shadows", "says"),
    [([2], 0, r"--participants: got 2. Allowed: 0 to 1"), (None, 3, "--shadows: got 3. Allowed: 0 or an even number")],
)
def test_wrong_options_are_refused(run, participants, shadows, says):
    with pytest.raises(UserError, match=says):
        leakage.measure(leakage.collect(run), participants, shadows)
