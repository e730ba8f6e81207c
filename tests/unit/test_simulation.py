"""Whole runs in one process: against an independent loop written with torch.optim, and against recorded numbers."""

import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from helpers import plain_loops, runs_in_process
from helpers.launching import ROOT
from scipy import optimize
from sklearn.metrics import confusion_matrix

from fedh2l_mpi import api, config, metrics, run_directory
from fedh2l_mpi.analysis import validation
from fedh2l_mpi.analysis.dataset import open_run
from fedh2l_mpi.config import loading
from fedh2l_mpi.data import sources
from fedh2l_mpi.data.sources import ArrayTable, Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import start
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.methods import METHODS
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.simulation import Simulation

ALONE = World(None)
GOLDEN = json.loads((ROOT / "tests" / "golden" / "metrics.json").read_text())


def run(folder: Path, *overrides: str) -> metrics.RunMetrics:
    settings = loading.load(None, overrides).resolved(1, launched=False)
    directory = RunDirectory(folder)
    api.assemble(settings, World(None), RunReservation(directory)).run()
    return metrics.read(directory.metrics)


def test_runs_that_begin_in_one_second_have_a_directory_each_and_none_before_they_are_sound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    settings = loading.load(None, ["models=[mlp]", "rounds=1"]).resolved(1, launched=False)
    claims = [start.reserve(ALONE, run_directory.choose(None, "default"), settings, "never") for _ in range(3)]
    assert not Path("runs").exists()
    made = [api.assemble(settings, ALONE, mine) for mine in claims]
    assert [each.supervisor.directory.path.name for each in made] == [
        f"default-20260102-030405{n}" for n in ("", "-2", "-3")
    ]
    late = start.reserve(ALONE, run_directory.choose(None, "default"), settings, "never")
    made.append(api.assemble(settings, ALONE, late))
    for each, reservation in zip(made, [*claims, late], strict=True):
        with reservation:
            each.run()
        assert metrics.read(each.supervisor.directory.metrics).rounds == 1
        assert not each.supervisor.directory.lock.exists()


CLASSIC = ("recipe=classic", "rounds=4", "method.local_steps=4", "method.mutual_steps=5")
# The average's decay is reached within the first round.
STANDARD = ("models=[cnn,mlp]", "participants=3", "rounds=2", "evaluation.every=1", "optimizer.average_decay=0.7")
SKEW = ("data.partition.kind=dirichlet", "data.partition.alpha=0.3")
# Other memory layouts and summation orders: equal up to rounding, 1e-6 to 1e-4 of a number after the first round's 20
# steps, which 20 more amplify. A term of a formula that is left out moves some number by 2e-2 or more.
ROUNDING = (1e-3, 5e-3)


@pytest.mark.parametrize(
    ("loop", "overrides", "rounding"),
    [
        (plain_loops.classic, (*CLASSIC, "topology.kind=ring"), (2e-3,)),
        (plain_loops.classic, (*CLASSIC, "topology.kind=star"), (2e-3,)),
        (plain_loops.standard, STANDARD, ROUNDING),
        (plain_loops.standard, (*STANDARD, *SKEW, "method.backoff=true"), ROUNDING),
        (plain_loops.standard, (*STANDARD, *SKEW, "method.name=seed_supervised"), ROUNDING),
    ],
    ids=["classic, ring", "classic, star", "standard", "standard, label skew", "standard, no exchange"],
)
def test_the_simulator_computes_what_a_plain_loop_computes(tmp_path, loop, overrides, rounding):
    overrides = [*overrides, "seed=3"]
    got = run(tmp_path / "run", *overrides)
    for name, expected in loop(loading.load(None, overrides).resolved(1, launched=False)).items():
        # Rounding may also move a test sample or two over the boundary of two classes.
        samples = 2 / 359 if name == "accuracy" else 0
        for ours, theirs, relative in zip(got[name][-len(expected) :], expected, rounding, strict=True):
            assert ours == pytest.approx(theirs, rel=relative, abs=samples, nan_ok=True), name


@pytest.mark.parametrize("case", GOLDEN)
def test_the_numbers_are_those_recorded(tmp_path, case):
    # A change that moves these is a change of a method or of a random stream: tests/golden/record.py, and say why.
    golden = GOLDEN[case]
    got = run(tmp_path / "run", *golden["overrides"])
    for name, values in golden["arrays"].items():
        assert got[name][-1] == pytest.approx(np.array(values), rel=5e-3, abs=1e-3), name


@pytest.mark.parametrize(("method", "codec"), [("fedavg", "float32"), ("fedprox", "float32"), ("fedavg", "float16")])
def test_a_mean_that_a_rank_computes_once_has_the_bits_of_each_participants_own(tmp_path, monkeypatch, method, codec):
    settings = ["models=[cnn]", f"method.name={method}", "topology.kind=complete", "rounds=2", "participants=3"]
    settings += [f"exchange.codec={codec}", "data.partition.kind=quantity", "method.mutual_steps=1"]
    calls, original = [], METHODS[method].mutual_phase
    monkeypatch.setattr(METHODS[method], "mutual_phase", lambda *given: (calls.append(1), original(*given))[1])
    once = run(tmp_path / "once", *settings)
    # The codec loses digits of the others' parameters only, so the means differ.
    assert len(calls) == (0 if codec == "float32" else 6)
    monkeypatch.setattr(METHODS[method], "averages_everyone", False)
    each = run(tmp_path / "each", *settings)
    assert len(calls) == (6 if codec == "float32" else 12)
    for name in ("accuracy", "loss", "loss_private"):
        assert np.array_equal(once[name], each[name], equal_nan=True), name


def test_fedavg_averages_trained_weights_and_is_evaluated_with_one_average_of_them(tmp_path):
    settings = ["models=[cnn]", "method.name=fedavg", "topology.kind=complete", "rounds=3", "evaluation.every=1"]
    settings += ["participants=3", "method.local_steps=2", "method.mutual_steps=1", "data.partition.kind=iid"]

    def trained(name: str, *more: str) -> tuple[list[Participant], list[torch.Tensor], metrics.RunMetrics]:
        history: list[torch.Tensor] = []
        directory = RunDirectory(tmp_path / name)
        made = api.assemble(
            loading.load(None, [*settings, *more]).resolved(1, launched=False),
            *(World(None), RunReservation(directory)),
            listener=lambda index, table: history.append(first.shared_state.read().double()),
        )
        first = made.participants[0]
        history.append(first.shared_state.read().double())
        made.run()
        return made.participants, history, metrics.read(directory.metrics)

    _, usual, _ = trained("usual")
    participants, history, result = trained("averaged", "optimizer.average=ema", "optimizer.average_decay=0.25")
    assert all(torch.equal(one, other) for one, other in zip(history, usual, strict=True))
    # d is 0.25 from the third step on, so each round of 3 steps keeps 0.25^3.
    expected = history[0]
    for weights in history[1:]:
        expected = expected / 64 + weights * 63 / 64
    averages = []
    for participant in participants:
        with participant.averaged():
            averages.append(participant.shared_state.read())
    torch.testing.assert_close(averages[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(average, averages[0]) for average in averages)
    for losses in result["loss"]:
        assert (losses == losses[0]).all()


@pytest.mark.parametrize(
    "settings",
    [
        ["method.name=independent", "seed_set.samples_per_round=100"],
        ["method.prior_correction=balanced", "method.prior_strength=0.5", "seed_set.views=both"],
    ],
)
def test_calibration_fits_the_evaluated_weights_on_the_seed_rows_of_the_next_round(tmp_path, settings):
    given = ["rounds=3", "evaluation.every=2", "models=[mlp]", "optimizer.average=ema", *settings]
    usual = run(tmp_path / "usual", *given, "evaluation.calibration=none")
    directory = RunDirectory(tmp_path / "run")
    made = api.assemble(
        loading.load(None, [*given, "evaluation.calibration=seed_set"]).resolved(1, launched=False),
        *(World(None), RunReservation(directory)),
    )
    made.run()
    result = metrics.read(directory.metrics)
    changed = {"loss", "temperature", *(name for name in result.arrays if name.startswith("calibration"))}
    for name, values in result.arrays.items():
        if name not in metrics.TIMINGS:
            assert (values.tobytes() == usual[name].tobytes()) == (name not in changed), name
    assert np.isnan(usual["temperature"]).all()
    assert np.isnan(result["temperature"]).any(axis=1).tolist() == [True, False, False]
    seed_set = made.setup.federation.seed_set
    rows, counts_C = seed_set.of_round(3), np.bincount(seed_set.samples.labels, minlength=10) + 1
    strength = made.config.method.prior_strength
    prior_C = torch.tensor(strength * np.log(counts_C / counts_C.sum()))
    for participant, found in zip(made.participants, result["temperature"][-1], strict=True):
        with participant.averaged(), torch.no_grad():
            logits_SC = participant.model.eval()(rows.inputs).double()
        targets = rows.targets.double() if rows.targets.is_floating_point() else rows.targets

        def loss(temperature: float, z: torch.Tensor = logits_SC, targets: torch.Tensor = targets) -> float:
            return float(torch.nn.functional.cross_entropy(z / temperature + prior_C, targets))

        best = optimize.minimize_scalar(loss, bounds=(1 / 20, 20), method="bounded", options={"xatol": 1e-7})
        assert found == pytest.approx(best.x, rel=1e-4)
    assert [one.level for one in validation.validate(directory.path) if one.level == "error"] == []


def test_two_runs_of_one_seed_are_equal_to_the_bit_and_another_seed_differs(tmp_path):
    overrides = ["rounds=2", "topology.kind=erdos_renyi", "topology.redraw_every=1", "method.mutual_steps=3"]
    one, same = (run(tmp_path / name, *overrides) for name in ("one", "same"))
    other = run(tmp_path / "other", *overrides, "seed=1")
    for name, values in one.arrays.items():
        if name not in metrics.TIMINGS:
            assert values.tobytes() == same[name].tobytes(), name
    assert not np.array_equal(one["loss"][-1], other["loss"][-1])


def test_a_finished_run_holds_everything_a_later_analysis_needs(tmp_path):
    result = run(tmp_path / "run", "rounds=3", "evaluation.every=2", "topology.kind=star", "method.combine=gem")
    assert result.rounds == 3
    # Evaluated after rounds 1 and 2 (every second, and the last); NaN in between.
    assert np.isnan(result["accuracy"][0]).all()
    assert not np.isnan(result["accuracy"][1:]).any()
    assert result["accuracy_all"][2] == pytest.approx(result["accuracy"][2].mean(axis=1))
    assert result["accuracy_worst"][2] == pytest.approx(result["accuracy"][2].min(axis=1))
    assert result["accuracy_own"][2] == pytest.approx(result["accuracy"][2].diagonal())
    for name in ("loss_private", "loss_seed", "loss_distillation", "gradient_cosine", "conflict_rate"):
        assert not np.isnan(result[name]).any(), name
    assert (np.abs(result["gradient_cosine"]) <= 1).all()
    assert result["degree"].tolist() == [[3, 1, 1, 1]] * 3
    assert (result["bytes_sent"] == result["degree"] * (48 + 4 + 2 * 288 * 10)).all()
    assert result["graph_edges"].tolist() == [[0, 1], [0, 2], [0, 3]]
    assert config.Config.model_validate(yaml.safe_load(result.attributes["config"])).rounds == 3
    for name in ("git_revision", "versions", "started", "seed_set_digest", "seed_set_bytes", "threads", "ranks"):
        assert name in result.attributes


def test_parameters_that_are_published_as_they_lie_in_memory_arrive_as_they_were_then(tmp_path, monkeypatch):
    (tmp_path / "live_parameters.py").write_text(
        "from fedh2l_mpi.methods.d_psgd import DPsgd\n"
        "class Live(DPsgd):\n"
        "    def publish(self, participant, now):\n"
        "        super().publish(participant, now)\n"
        "        return participant.parameters.vector[None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sets = ["models=[mlp]", "participants=3", "rounds=2", "evaluation.every=1", "method.publish=start"]
    # Of a user's own method it is not known whether it learns seed labels.
    sets += ["evaluation.calibration=none"]
    copied = run(tmp_path / "copied", *sets, "method.name=d_psgd")
    live = run(tmp_path / "live", *sets, "method.name=live_parameters:Live")
    for name in ("loss_private", "loss", "accuracy"):
        assert live[name].tobytes() == copied[name].tobytes()


def test_a_local_test_gives_the_accuracy_on_the_own_distribution_and_no_training_sees_it(tmp_path):
    sets = ["models=[mlp]", "rounds=2", "evaluation.every=2", "data.partition.kind=dirichlet"]
    directory = RunDirectory(tmp_path / "run")
    settings = loading.load(None, [*sets, "evaluation.local_test_share=0.2"]).resolved(1, launched=False)
    made = api.assemble(settings, World(None), RunReservation(directory))
    made.run()
    result = metrics.read(directory.metrics)
    assert np.isnan(result["accuracy_local"][0]).all()
    for participant, accuracy in zip(made.participants, result["accuracy_local"][1], strict=True):
        held = participant.local_test
        with participant.averaged(), torch.no_grad():
            hits = participant.model.eval()(held.inputs()).argmax(dim=-1) == held.labels
        assert accuracy == pytest.approx(float(hits.double().mean()))
    # Under label skew, a participant is better on its own distribution than on that of all.
    assert result["accuracy_local"][1].mean() > result["accuracy_all"][1].mean()
    assert [one.level for one in validation.validate(directory.path) if one.level == "error"] == []


NOTING = """
import torch
from fedh2l_mpi.methods.fedh2l import FedH2L

def top2(logits, labels):
    return (logits.topk(2).indices == labels[:, None]).any(dim=1).double().mean()

class Noting(FedH2L):
    notes = {"steps_noted": "number of the step, mean over a round [1]"}

    def mutual_phase(self, participant, now, theirs):
        super().mutual_phase(participant, now, theirs)
        for step in range(3):
            participant.note("steps_noted", step + 10 * now.index + 100 * participant.index)
        if now.index == 2 and participant.index == self.options["strange"]:
            participant.note("strange", torch.tensor(1.0))

    options = {"strange": -1}
"""


def test_notes_and_chosen_metrics_are_arrays_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "noting.py").write_text(NOTING)
    monkeypatch.syspath_prepend(tmp_path)
    sets = ["models=[mlp]", "participants=2", "rounds=4", "evaluation.every=2", "method.name=noting:Noting"]
    sets += ["evaluation.metrics=[balanced_accuracy, auroc, noting:top2]", "evaluation.calibration=none"]
    result = run(tmp_path / "run", *sets)
    assert result["steps_noted"].tolist() == [[1 + 10 * r, 101 + 10 * r] for r in range(4)]
    assert result.fields["steps_noted"].long_name == "number of the step, mean over a round"
    for name in ("balanced_accuracy", "auroc", "top2"):
        assert np.isnan(result[name][[0, 2]]).all()
        assert result[name].shape == result["accuracy"].shape
    assert (result["top2"][[1, 3]] >= result["accuracy"][[1, 3]]).all()
    assert result["balanced_accuracy"][3] == pytest.approx(result["accuracy"][3], abs=0.05)
    assert [one.level for one in validation.validate(tmp_path / "run") if one.level == "error"] == []
    # The rehearsal does not play the round in which this note is made.
    with pytest.raises(UserError, match=r"participant 1 noted 'strange' in round 2, .* notes = \{'strange': "):
        run(tmp_path / "strange", *sets, "method.options.strange=1")


FORMS = {
    "vector": (
        *("models=[mlp, {name: mlp, hidden: [16]}]", "devices.batching=like", "seed_set.views=jitter"),
        *("data.augmentation=jitter", "data.partition.shift=[{kind: noise, step: 0.1}, {kind: offset, step: 0.1}]"),
    ),
    "series": (
        *("models=[cnn1d, gru, mlp]", "seed_set.views=mixup", "optimizer.precision=bfloat16"),
        "data.partition.shift=[{kind: time_warp, step: 0.2}, {kind: scale, step: 0.1}]",
    ),
    "tokens": (
        *("models=[gru, text_transformer, mlp]", "seed_set.views=word_dropout", "data.augmentation=word_dropout"),
        *("data.partition.domains=1", "data.partition.rotation_step_deg=0"),
    ),
    "image": ("models=[lenet5, vit]", "data.partition.shift=[{kind: colour, step: 0.2}, {kind: rotation, step: 9}]"),
}
SHAPES = {"vector": (12,), "series": (3, 10), "tokens": (9,), "image": (2, 6, 11)}


@pytest.mark.parametrize("kind", FORMS)
def test_samples_of_any_form_are_learned_and_a_resumed_run_is_the_whole_one(tmp_path, monkeypatch, kind):
    # Class c has its own mean, or its own word among those that all classes have.
    draw, labels = np.random.default_rng(0), np.arange(600) % 3
    form = SampleForm(kind, SHAPES[kind], 30 if kind == "tokens" else 0)
    if kind == "tokens":
        values = draw.integers(5, 30, (600, 9)) * (np.arange(9) < draw.integers(4, 10, (600, 1)))
        values[np.arange(600), draw.integers(0, 4, 600)] = 2 + labels
    else:
        values = (draw.normal(size=(3, *form.shape))[labels] + draw.normal(size=(600, *form.shape))).astype(np.float32)
    train, test = (ArrayTable(labels[part], values[part]) for part in (slice(400), slice(400, 600)))
    monkeypatch.setattr(sources, "digits", lambda: Source("digits", 3, form, 1.0, 0.0, 1.4, train, test))
    steps = ("method.mutual_steps=8", "evaluation.every=2", "optimizer.lr=0.01")
    wanted = ["participants=3", "rounds=4", *FORMS[kind], *steps]
    whole = api.run(set=wanted, out=tmp_path / "whole")
    api.run(set=[*wanted, "rounds=2"], out=tmp_path / "resumed")
    resumed = api.run(set=wanted, out=tmp_path / "resumed", resume="require")
    for name in ("accuracy", "loss", "loss_private"):
        assert np.array_equal(resumed.metrics[name], whole.metrics[name], equal_nan=True)
    assert whole.metrics["accuracy_own"][-1].mean() > 0.6
    assert type(whole.model(0)).__name__.lower() == wanted[2].split("[")[1].split(",")[0].strip("]")


def test_the_end_of_a_run_has_confusion_matrices_and_predictions_that_give_the_accuracies(tmp_path):
    sets = ["models=[mlp, cnn]", "participants=3", "rounds=3", "evaluation.every=2"]
    result = run(tmp_path / "run", *sets, "evaluation.predictions=true")
    samples = 359
    with open_run(tmp_path / "run") as data:
        assert data.logits.dims == ("participant", "sample", "class")
        assert data.logits.dtype == np.float32
        is_hit = data.logits.argmax("class") == data.label
        for domain in range(data.sizes["domain"]):
            of_domain = is_hit.isel(sample=(data.sample_domain == domain).values)
            assert of_domain.sizes["sample"] == samples
            assert of_domain.mean("sample").values == pytest.approx(result["accuracy"][-1, :, domain])
        for participant in range(3):
            guess = data.logits[participant].argmax("class").values
            expected = confusion_matrix(data.label.values, guess, labels=range(10))
            assert result["confusion"][participant].tolist() == expected.tolist()
            recall = expected.diagonal() / expected.sum(axis=1)
            assert result["accuracy_class"][participant] == pytest.approx(recall)
        assert data.confusion.dims == ("participant", "class", "predicted")
    assert [one.level for one in validation.validate(tmp_path / "run") if one.level == "error"] == []
    # Those of a run that was extended, or that has lost its file, do not count.
    (tmp_path / "run" / "predictions.h5").write_bytes(b"not HDF5")
    with open_run(tmp_path / "run") as data:
        assert "logits" not in data
        assert data.attrs["problems"].startswith("predictions.h5: damaged: ")


def test_a_run_that_was_stopped_or_failed_before_its_end_gets_it_when_it_is_resumed(tmp_path, monkeypatch):
    sets = ["models=[mlp]", "participants=2", "rounds=4", "evaluation.every=2", "evaluation.predictions=true"]
    sets += ["evaluation.local_test_share=0.1", "evaluation.metrics=[macro_f1, auroc]"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    runs_in_process.run(whole, *sets)
    assert runs_in_process.run(out, *sets, "checkpoint.every=2", stop_after=2).stops
    stopped = metrics.read(out / "metrics.h5")
    assert (stopped["confusion"] == -1).all()
    assert np.isnan(stopped["accuracy_class"]).all()
    assert not (out / "predictions.h5").exists()

    def fail(made: Simulation) -> None:
        made.recorder.finish()
        made.supervisor.checkpoints.finish()
        raise RuntimeError("no end")

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "_record_end", fail)
        with pytest.raises(RuntimeError, match="no end"):
            runs_in_process.run(out, mode="auto")
    assert runs_in_process.resumed_at(out) == 4
    runs_in_process.run(out, mode="auto")
    one, other = metrics.read(whole / "metrics.h5"), metrics.read(out / "metrics.h5")
    for name in one.arrays:
        if name not in metrics.TIMINGS:
            assert one[name].tobytes() == other[name].tobytes(), name
    assert logits_of(whole) == logits_of(out)


def logits_of(out: Path) -> bytes:
    with h5py.File(out / "predictions.h5") as file:
        return bytes(file["logits"][()].tobytes() + file["label"][()].tobytes() + file["sample_domain"][()].tobytes())


def test_one_participant_alone_is_an_ordinary_run(tmp_path):
    result = run(tmp_path / "run", "participants=1", "rounds=2", "topology.kind=complete")
    assert result["degree"].tolist() == [[0], [0]]
    assert result["bytes_sent"].sum() == 0
    assert not np.isnan(result["loss"][-1]).any()


@pytest.mark.parametrize("steps", ["method.local_steps=0", "method.mutual_steps=0"])
def test_either_phase_may_be_empty(tmp_path, steps):
    result = run(tmp_path / "run", "rounds=1", "method.combine=gem", "method.local_labels=private", steps)
    assert np.isnan(result["gradient_cosine"]).all() == (steps == "method.mutual_steps=0")
    assert not np.isnan(result["loss_private"]).any()
