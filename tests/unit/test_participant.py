"""A participant, FedH2L's phases, and mistakes that training code often makes."""

import copy
import random
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.rounds import a_round_of
from torch import nn

from fedh2l_mpi.config import EvaluationConfig, MethodConfig, OptimizerConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.errors import DivergedError, UserError
from fedh2l_mpi.evaluation import score
from fedh2l_mpi.methods import Round
from fedh2l_mpi.methods.fedh2l import FedH2L
from fedh2l_mpi.methods.independent import Independent
from fedh2l_mpi.models import batched_linear, build, memory_format, mixed_precision
from fedh2l_mpi.models.flat_parameters import FlatParameters, SharedState, shared_bytes
from fedh2l_mpi.participant import Minibatches, Participant
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph


def samples(count: int, seed: int = 0) -> Labelled:
    draw = torch.Generator().manual_seed(seed)
    return Labelled(torch.randn(count, 1, 8, 8, generator=draw), torch.randint(10, (count,), generator=draw))


def learner(model: nn.Module | str = "mlp", index: int = 0, **optimizer: object) -> Participant:
    built = build(model, SampleForm.image(1, 8), 10, seed=1) if isinstance(model, str) else model
    # Seed minibatches are smaller than the seed set; published and evaluated are the trained weights.
    settings = OptimizerConfig(**{"seed_batch_size": 32, "average": "none", **optimizer})
    return Participant(index, "test", built, samples(70), samples(10, 1), settings, EvaluationConfig(), seed=0)


def a_round(round_index: int = 0, count: int = 40) -> Round:
    some = samples(count, seed=2)
    return a_round_of(some, Graph(2, [(0, 1)]), index=round_index)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A user's model may draw from the other global generators, too.
        noise = random.random() + np.random.rand() if self.training else 0.0  # noqa: NPY002
        return self.layers(images + noise)


def test_an_epoch_uses_every_sample_once_and_the_next_another_order():
    batches = Minibatches(samples=64, batch_size=32, seed=0, participant=0)
    first, second = (torch.cat([batches.next(), batches.next()]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(64))
    assert first.tolist() != second.tolist()


def test_minibatches_depend_on_their_position_alone():
    walked, jumped = (Minibatches(70, 32, seed=3, participant=1) for _ in range(2))
    rows = [walked.next() for _ in range(9)]
    jumped.position = 7
    assert torch.equal(jumped.next(), rows[7])
    assert torch.equal(jumped.next(), rows[8])


def test_participants_and_seeds_walk_apart():
    orders = [Minibatches(64, 64, seed, index).next().tolist() for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_data_smaller_than_a_minibatch_are_one_minibatch():
    assert sorted(Minibatches(5, 32, 0, 0).next().tolist()) == list(range(5))


@pytest.mark.parametrize(("count", "steps"), [(40, 1), (40, 5), (20, 3), (32, 2), (40, 0)])
def test_every_mutual_step_gets_its_seed_minibatch(count, steps):
    rows = list(learner().seed_minibatches(count, round_index=3, steps=steps))
    assert [len(row) for row in rows] == [min(32, count)] * steps
    assert all(row.max() < count for row in rows)


def test_published_posteriors_are_float32_rows_that_sum_to_one_and_change_nothing():
    participant = learner("cnn")
    before = {name: value.clone() for name, value in participant.model.state_dict().items()}
    participant.model.train()
    published = FedH2L(MethodConfig(), labelled=True).publish(participant, a_round())
    assert (published.dtype, tuple(published.shape), published.requires_grad) == (torch.float32, (40, 10), False)
    assert (published.sum(dim=1) - 1).abs().max() < 1e-6
    assert all(torch.equal(before[name], value) for name, value in participant.model.state_dict().items())


def test_posteriors_are_those_of_eval_mode():
    # In train mode, batch statistics would make a sample's posterior depend on its companions.
    participant, method = learner("cnn"), FedH2L(MethodConfig(local_steps=5), labelled=True)
    method.local_phase(participant, a_round())
    alone = a_round(count=40)
    alone = replace(alone, seed=replace(alone.seed, inputs=alone.seed.inputs[:1]))
    torch.testing.assert_close(method.publish(participant, a_round())[:1], method.publish(participant, alone))


def test_the_optimiser_lives_as_long_as_the_run():
    participant = learner()
    method = FedH2L(MethodConfig(local_steps=3, mutual_steps=2), labelled=True)
    for round_index in range(4):
        method.local_phase(participant, a_round(round_index))
        method.mutual_phase(participant, a_round(round_index), torch.full((1, 40, 10), 0.1))
    assert participant.optimizer.steps == 4 * (3 + 2)
    assert participant.minibatches.position == 4 * (3 + 2)


def test_dropout_is_the_same_whoever_else_is_hosted():
    def weights(disturbed: bool) -> torch.Tensor:
        torch.manual_seed(7)
        model = WithDropout()
        participant, other = learner(model), learner(WithDropout(), index=1)
        method = FedH2L(MethodConfig(local_steps=3), labelled=True)
        for round_index in range(2):
            if disturbed:
                method.local_phase(other, a_round(round_index))
                torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
            method.local_phase(participant, a_round(round_index))
        return participant.parameters.vector.clone()

    assert torch.equal(weights(False), weights(True))


def test_dropout_differs_between_participants_and_rounds():
    participant, other = learner(WithDropout()), learner(WithDropout(), index=1)
    images = torch.ones(4, 1, 8, 8)

    def dropped(who: Participant, round_index: int) -> list[bool]:
        who.begin(round_index, phase=0)
        return (who.model.layers[2](torch.ones(64)) == 0).tolist()

    assert dropped(participant, 0) == dropped(participant, 0)
    assert dropped(participant, 0) != dropped(participant, 1)
    assert dropped(participant, 0) != dropped(other, 0)
    assert images.shape == (4, 1, 8, 8)


def test_an_isolated_participant_learns_from_seed_labels_without_nan():
    participant = learner()
    method = FedH2L(MethodConfig(local_steps=0, mutual_steps=5), labelled=True)
    method.mutual_phase(participant, a_round(), torch.empty(0, 40, 10))
    means = participant.noted_means()
    assert means["loss_distillation"] == 0.0
    assert means["loss_seed"] > 0.0
    assert torch.isfinite(participant.parameters.vector).all()


def test_an_unlabelled_seed_set_teaches_by_posteriors_alone():
    participant = learner()
    method = FedH2L(MethodConfig(local_steps=0, mutual_steps=3), labelled=False)
    method.mutual_phase(participant, a_round(), torch.full((2, 40, 10), 0.1))
    assert "loss_seed" not in participant.noted_means()
    # And without neighbours there is nothing to learn from it, which is no error either.
    method.mutual_phase(participant, a_round(), torch.empty(0, 40, 10))
    assert torch.isfinite(participant.parameters.vector).all()


def test_a_mutual_step_is_the_formula():
    # One step of plain SGD along `sum`: the weights move by the gradient of all three losses at the same weights.
    weights = {"temperature": 2.0, "weight_ce": 0.5, "weight_kd": 3.0}
    config = MethodConfig(local_steps=0, mutual_steps=1, combine="sum", prior_correction="none", **weights)
    participant = learner(name="sgd", lr=0.1)
    reference = build("mlp", SampleForm.image(1, 8), 10, seed=1).train()
    theirs = torch.rand(2, 40, 10).softmax(dim=-1)
    now = a_round()
    seed = now.seed
    (seed_rows,) = learner().seed_minibatches(40, 0, 1)
    private_rows = learner().minibatches.next()

    cross_entropy = nn.functional.cross_entropy
    logits = reference(seed.inputs[seed_rows])
    own_log = (logits / 2.0).log_softmax(-1)
    distillation = torch.stack(
        [nn.functional.kl_div(own_log, teacher[seed_rows], reduction="batchmean") for teacher in theirs]
    ).mean()
    private = samples(70)
    loss = (
        cross_entropy(reference(private.stored[private_rows]), private.labels[private_rows])
        + 0.5 * cross_entropy(logits, seed.labels[seed_rows])
        + 3.0 * 2.0**2 * distillation
    )
    loss.backward()
    expected = [parameter.detach() - 0.1 * parameter.grad for parameter in reference.parameters()]

    FedH2L(config, labelled=True).mutual_phase(participant, now, theirs)
    for parameter, value in zip(participant.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-7)
    assert participant.noted_means()["loss_distillation"] == pytest.approx(distillation.item(), rel=1e-5)


def test_a_diverged_participant_is_named():
    participant = learner()
    participant.note("loss_private", torch.tensor(float("nan")))
    with pytest.raises(DivergedError, match="participant 0 diverged: loss_private is nan"):
        participant.noted_means()


def test_scores_are_accuracy_and_cross_entropy_and_nan_on_nothing():
    participant = learner()
    some = samples(300, seed=5)
    logits = participant.logits(some.stored)
    found = score(participant, some)
    assert found.accuracy == pytest.approx((logits.argmax(1) == some.labels).double().mean().item())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, some.labels).item())
    empty = score(participant, Labelled(some.stored[:0], some.labels[:0]))
    assert np.isnan(empty.accuracy)
    assert np.isnan(empty.loss)


def test_a_model_that_has_blown_up_in_its_last_step_is_no_result():
    participant = learner()
    participant.parameters.vector.fill_(torch.inf)
    with pytest.raises(DivergedError, match="participant 0 diverged: its loss on held-out data is"):
        score(participant, samples(10))


def test_what_sharing_parameters_would_send_counts_running_statistics_too():
    participant = learner("cnn")
    floats = sum(v.numel() for v in participant.model.state_dict().values() if v.is_floating_point())
    assert shared_bytes(participant.model) == 4 * floats
    assert floats == participant.parameter_count + 2 * (16 + 32)


class Unusual(nn.Sequential):
    """Weights that two layers share, a frozen bias, and buffers that no file keeps or of another type."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
        self[2].weight = self[1].weight
        self[1].bias.requires_grad_(False)
        self.register_buffer("scratch", torch.zeros(100), persistent=False)
        self.register_buffer("exact", torch.zeros(3, dtype=torch.float64))


def test_what_sharing_parameters_would_send_is_what_it_sends():
    model = Unusual()
    expected = 64 * 64 + 64 + 100 + 3
    assert shared_bytes(model) == 4 * SharedState(model, FlatParameters(model)).size == 4 * expected


@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn"])
def test_in_bfloat16_logits_and_gradients_are_float32_and_near_those_of_float32(name):
    exact, mixed = learner(name), learner(name, precision="bfloat16")
    assert mixed.model.state_dict().keys() == exact.model.state_dict().keys()
    images = samples(40, seed=3).stored
    ours, theirs = mixed.logits(images), exact.logits(images)
    assert ours.dtype == torch.float32
    # bfloat16 has 8 digits of 2.
    assert 0 < (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
    learning = Independent(MethodConfig(name="independent"), labelled=True)
    g_mixed, g_exact = (one.gradient(learning.private_loss(one)) for one in (mixed, exact))
    assert g_mixed.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(g_mixed, g_exact, dim=0) > 0.99


@pytest.mark.parametrize("patched", [False, True])
def test_a_copy_of_a_model_in_bfloat16_has_weights_of_its_own(patched):
    model, images = build("mlp", SampleForm.image(1, 8), 10, 0), samples(5).stored
    if patched:
        plain = model.forward
        model.forward = lambda images: 2 * plain(images)
    before = model(images)
    mixed_precision.mix(model)
    mixed = model(images)
    torch.testing.assert_close(mixed, before, rtol=0.05, atol=0.05)
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # What was put on a model in place of its forward pass is that model's, wherever it is copied to.
    assert torch.equal(teacher(images), model(images) if patched else mixed)


@pytest.mark.parametrize("has_it", [False, True])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_gpu_without_a_number_format_is_refused_by_name(monkeypatch, has_it, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    # Turing, the last one without TF32, and Ampere.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if has_it else (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    mixed_precision.refuse_without_hardware(torch.device("cpu"), precision)
    says = rf"optimizer.precision: got '{precision}', but cuda:1 \(Old GPU\) has no arithmetic for it\. Use float32"
    with nullcontext() if has_it or precision == "float32" else pytest.raises(UserError, match=says):
        mixed_precision.refuse_without_hardware(torch.device("cuda:1"), precision)


def test_models_in_bfloat16_learn_and_are_not_stacked():
    mixed = learner("mlp", precision="bfloat16")
    before = score(mixed, mixed.private).loss
    Independent(MethodConfig(name="independent"), labelled=True).private_steps(mixed, 30)
    assert score(mixed, mixed.private).loss < 0.8 * before
    assert batched_linear.chain(mixed.model) is None


class Remembers(nn.Sequential):
    """Keeps what is no tensor, and a tensor in it, in its state dict."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3 * 7 * 7, 10))
        self.kept = {"seen": [0, "a"], "mean": torch.zeros(2)}

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = state


def test_a_state_is_a_copy_of_what_a_model_keeps_beyond_tensors():
    participant = learner(Remembers())
    state = participant.state()
    participant.model.kept["seen"][0] = 5
    participant.model.kept["mean"] += 1
    assert state["model"]["_extra_state"]["seen"] == [0, "a"]
    participant.restore(state)
    assert participant.model.kept["seen"] == [0, "a"]
    assert participant.model.kept["mean"].tolist() == [0.0, 0.0]


def test_an_optimiser_that_was_stored_with_channels_last_is_read_in_the_order_of_contiguous_weights():
    last, model = learner(Remembers()), Remembers()
    memory_format.keep_contiguous(model)
    own = learner(model)
    weights = [torch.arange(parameter.numel()).view(parameter.shape).float() for parameter in model.parameters()]
    state = last.state()
    state["optimizer"]["first"] = last.parameters._flatten(weights)
    own.restore(state)
    assert torch.equal(own.optimizer.first, torch.cat([weight.reshape(-1) for weight in weights]))
    assert not torch.equal(own.optimizer.first, state["optimizer"]["first"])
    again = own.state()
    own.restore(again)
    assert torch.equal(own.optimizer.first, again["optimizer"]["first"])
