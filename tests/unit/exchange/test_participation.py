"""Schedules of participation: closed forms, the file, and what absence does to a run."""

import numpy as np
import pytest
from helpers.configs import settled
from helpers.runs_in_process import run, simulation
from helpers.same_runs import leaves

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import html, validation
from fedh2l_mpi.analysis.figures.presence import PRESENCE
from fedh2l_mpi.analysis.outcome import read_outcome
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.analysis.summary import summarise
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange.participation import Participation, build_participation
from fedh2l_mpi.launch.sweep import sweep, sweep_file
from fedh2l_mpi.metrics import posteriors
from fedh2l_mpi.planning import check
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.topology import Topology

ROUNDS = 4000


def participation(kind: str, participants: int, *overrides: str, seed: int = 0, **keys: object) -> Participation:
    settings = [f"faults.participation.{key}={value}" for key, value in {"kind": kind, **keys}.items()]
    config = settled(f"participants={participants}", f"seed={seed}", *settings, *overrides)
    topology = Topology(config.topology, participants, seed, config.rounds)
    made = build_participation(config.faults.participation, topology, participants, seed)
    assert made is not None
    return made


def schedule(made: Participation, rounds: int = ROUNDS) -> np.ndarray:
    return np.stack([made.present(index) for index in range(rounds)])


def test_everybody_takes_part_unless_the_config_says_otherwise():
    config = settled()
    assert config.faults.participation.kind == "always"
    topology = Topology(config.topology, config.size, 0, config.rounds)
    assert build_participation(config.faults.participation, topology, config.size, 0) is None


def test_bernoulli_participants_are_independent_of_each_other_and_of_the_round_before():
    present_RP = schedule(participation("bernoulli", 5, probability=0.7)).astype(float)
    # Five standard errors of a share of 4000, and of correlations.
    assert present_RP.mean(axis=0) == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / ROUNDS))
    between_PP = np.corrcoef(present_RP.T)
    assert np.abs(between_PP[~np.eye(5, dtype=bool)]).max() < 5 / np.sqrt(ROUNDS)
    assert abs(np.corrcoef(present_RP[1:].ravel(), present_RP[:-1].ravel())[0, 1]) < 5 / np.sqrt(5 * ROUNDS)
    for probability, expected in ((0.0, 0), (1.0, 1)):
        assert (schedule(participation("bernoulli", 3, probability=probability), 50) == expected).all()


def test_a_markov_chain_has_its_stationary_share_and_its_mean_times():
    present_RP = schedule(participation("markov", 40, mean_present=6, mean_absent=2))
    # Round 0 is stationary too: 6 / (6 + 2).
    assert present_RP.mean() == pytest.approx(0.75, abs=0.01)
    assert present_RP[:1].mean() == pytest.approx(0.75, abs=0.2)
    leaves_RP, returns_RP = present_RP[:-1] & ~present_RP[1:], ~present_RP[:-1] & present_RP[1:]
    assert leaves_RP.sum() / present_RP[:-1].sum() == pytest.approx(1 / 6, abs=0.01)
    assert returns_RP.sum() / (~present_RP[:-1]).sum() == pytest.approx(1 / 2, abs=0.01)
    # With one round of each, a participant comes and goes by turns.
    turns_RP = schedule(participation("markov", 4, mean_present=1, mean_absent=1), 20)
    assert (turns_RP[1:] == ~turns_RP[:-1]).all()


@pytest.mark.parametrize(("share", "expected"), [(0.05, 1), (0.3, 3), (0.45, 5), (1.0, 10)])
def test_a_fixed_share_draws_as_many_in_every_round_and_everybody_as_often(share, expected):
    present_RP = schedule(participation("fixed_share", 10, share=share))
    assert (present_RP.sum(axis=1) == expected).all()
    assert present_RP.mean(axis=0) == pytest.approx(expected / 10, abs=5 * np.sqrt(0.25 / ROUNDS))


@pytest.mark.parametrize("kind", ["bernoulli", "markov", "fixed_share"])
def test_a_round_is_a_function_of_seed_and_number_in_whatever_order_rounds_are_asked_for(kind):
    keys = {"bernoulli": {"probability": 0.5}, "markov": {"mean_present": 3, "mean_absent": 2}}
    given = keys.get(kind, {"share": 0.5})
    forward_RP = schedule(participation(kind, 6, **given), 30)
    again = participation(kind, 6, **given)
    for index in (29, 3, 4, 17, 0, 29):
        assert (again.present(index) == forward_RP[index]).all()
    assert (schedule(participation(kind, 6, seed=1, **given), 30) != forward_RP).any()


def test_a_file_says_when_participants_are_there_and_who_is_not_named_always_is(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("participant,from,to\n0,0,1\n0,4,\n2,3,3\n")
    made = participation("file", 4, path=str(path))
    assert schedule(made, 6).T.astype(int).tolist() == [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert made.graph(2).edges == []
    assert made.graph(0).edges == [(0, 1), (0, 3)]
    before = made.digest()
    path.write_text("participant,from,to\n0,0,1\n0,4,\n2,3,4\n")
    assert participation("file", 4, path=str(path)).digest() != before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty. Fix: begin it with the line participant,from,to"),
        ("participant,to,from\n", "line 1: got the columns 'participant, to, from', must be participant, from, to"),
        ("participant,from,to\n0,1\n", "line 2: got 2 fields, must be 3: participant, from, to"),
        ("participant,from,to\n0,x,1\n", "line 2: got '0,x,1', must be three numbers; `to` may be empty"),
        ("participant,from,to\n4,0,1\n", "line 2: got participant 4. Participants are 0 to 3"),
        ("participant,from,to\n\n0,3,2\n", "line 3: got the rounds 3 to 2. They count from 0"),
        ("participant,from,to\n0,-1,2\n", "line 2: got the rounds -1 to 2"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(tmp_path, text, says):
    path = tmp_path / "times.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        participation("file", 4, path=str(path))
    assert says in str(error.value)
    assert str(error.value).startswith("faults.participation.path: ")


def test_a_wrong_file_is_refused_before_anything_is_trained(tmp_path):
    path, elements = tmp_path / "times.csv", tmp_path / "sweep.yaml"
    path.write_text("participant,from,to\n9,0,1\n")
    settings = ["faults.participation=file", f"faults.participation.path={path}"]
    text = f"elements: [{{name: one, faults.participation: {{kind: file, path: {path}}}}}]"
    elements.write_text(f"base: null\n{text}\n")
    steps = (
        lambda: check.check(settled(*settings)),
        lambda: sweep.check_fit(sweep_file.load(elements).elements, elements, jobs=1),
        lambda: run(tmp_path / "run", *settings),
    )
    for step in steps:
        with pytest.raises(UserError, match=r"line 2: got participant 9. Participants are 0 to 3"):
            step()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["faults.participation=sometimes"], "faults.participation.kind: got 'sometimes'; known: always, bernoulli"),
        (["faults.participation=bernoulli"], "faults.participation.probability: must be given for kind 'bernoulli'"),
        (["faults.participation={kind: bernoulli, probability: 1.5}"], "probability: got 1.5, must be <= 1"),
        (["faults.participation={kind: fixed_share, share: 0}"], "faults.participation.share: got 0, must be > 0"),
        (["faults.participation={kind: markov, mean_present: 0.5, mean_absent: 1}"], "got 0.5, must be >= 1"),
        (["faults.participation.share=0.5"], "faults.participation.share: got 0.5, but kind 'always' does not use it"),
        (
            ["faults.participation={kind: fixed_share, share: 0.5}", "network=lte"],
            "faults.participation.kind: got 'fixed_share', but network 'lte' has a clock",
        ),
    ],
)
def test_a_wrong_section_is_refused_by_its_key(overrides, says):
    with pytest.raises(UserError) as error:
        loading.load(None, overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


SHORT = ["participants=4", "rounds=4", "evaluation.every=1", "method.local_steps=2", "method.mutual_steps=2"]


def test_who_is_absent_keeps_every_bit_of_its_state_and_neither_learns_nor_sends(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("participant,from,to\n1,2,3\n3,0,0\n")
    states = []
    with simulation(
        tmp_path / "run",
        *(*SHORT, "models=[mlp]", "devices.batching=like", "faults.participation=file", "exchange.keep_posteriors=2"),
        f"faults.participation.path={path}",
        listener=lambda index, table: states.append([leaves(one.state()) for one in made.participants]),
    ) as made:
        before = [leaves(one.state()) for one in made.participants]
        made.run()
    got = metrics.read(RunDirectory(tmp_path / "run").metrics)
    assert got["present"].tolist() == [[1, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert got["degree"].tolist() == [[1, 0, 1, 2], [0, 0, 0, 0], [1, 2, 1, 0], [1, 2, 1, 0]]
    for index, after in enumerate(states):
        for participant in range(4):
            stays = after[participant] == before[participant]
            assert stays == (got["present"][index, participant] == 0), (index, participant)
        before = after
    absent_RP = got["present"] == 0
    assert np.isnan(got["loss_private"][absent_RP]).all()
    assert not np.isnan(got["loss_private"][~absent_RP]).any()
    assert (got["bytes_sent"][absent_RP] == 0).all()
    assert (got["bytes_received"] == got["bytes_sent"]).all()
    # Absent participants are evaluated as they are.
    assert (got["accuracy"][1, 1] == got["accuracy"][0, 1]).all()
    # What they published is kept, and nothing of those who were absent.
    kept, _ = posteriors.find(tmp_path / "run" / posteriors.FILE, made.recorder._keeping.shape, 4)
    published_PSC = kept.of_round(1)
    assert (np.isnan(published_PSC).all(axis=(1, 2)) == (got["present"][1] == 0)).all()
    assert [sorted(kept.of_participant(number)) for number in range(4)] == [[1, 3], [3], [1, 3], []]
    # Readers have shares of the rounds, and the losses of those who were there.
    told = summarise(load_run(tmp_path / "run"))
    assert told.own_arrays["present"].tolist() == [1.0, 0.5, 1.0, 0.25]
    page = html.render([load_run(tmp_path / "run")], [told])
    assert PRESENCE.caption in page
    assert f"{PRESENCE.title}: not drawn" not in page
    outcome = read_outcome(got, ["loss_private"])
    assert outcome.values["present"] == pytest.approx(11 / 16)
    assert outcome.curves_E["loss_private"] == pytest.approx(np.nanmean(got["loss_private"], axis=1))
    assert [one for one in validation.validate(tmp_path / "run") if one.level == "error"] == []


def test_a_chance_of_one_changes_no_number(tmp_path):
    run(tmp_path / "usual", *SHORT)
    run(tmp_path / "certain", *SHORT, "faults.participation={kind: bernoulli, probability: 1.0}")
    usual, certain = (metrics.read(RunDirectory(tmp_path / name).metrics) for name in ("usual", "certain"))
    assert (certain["present"] == 1).all()
    for name in usual.arrays:
        if name not in (*metrics.TIMINGS, "present"):
            assert usual[name].tobytes() == certain[name].tobytes(), name


def test_the_mean_of_everyone_is_the_mean_of_those_who_are_there(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("participant,from,to\n2,1,1\n")
    settings = [*SHORT, "models=[mlp]", "method.name=fedavg", "topology=complete", "rounds=1"]
    settings += ["faults.participation=file", f"faults.participation.path={path}", "optimizer.average=none"]
    with simulation(tmp_path / "run", *settings) as made:
        began = made.participants[2].parameters.vector.clone()
        made.run()
        vectors = [one.parameters.vector for one in made.participants]
    assert vectors[0].equal(vectors[1])
    assert vectors[0].equal(vectors[3])
    assert vectors[2].equal(began)
    assert not vectors[0].equal(began)
