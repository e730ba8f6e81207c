"""Recorded steps give what steps call by call give, in every method; what cannot be recorded is taken call by call."""

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.learners import STAR, method, samples
from helpers.tape import TapeRecorder
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fedh2l_mpi import build as run_parts
from fedh2l_mpi.config import Config, EvaluationConfig, OptimizerConfig
from fedh2l_mpi.config.data import AffineViews
from fedh2l_mpi.data import minibatches
from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.methods import Method, Round, batched
from fedh2l_mpi.models import build
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.runtime import step_graphs
from fedh2l_mpi.runtime.step_graphs import WARM_UP, Graphs, UnitGraphs
from fedh2l_mpi.runtime.step_recording import Waits
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SEED_SET = SeedSet(samples(40, seed=2), 40, 10, AffineViews(), 0)


def learner(
    model: nn.Module | str = "mlp", index: int = 0, augmentation: str = "none", **optimizer: Any
) -> Participant:
    built = build(model, SampleForm.image(1, 8), 10, seed=1) if isinstance(model, str) else model
    average = {"average": "none"} if optimizer.get("average") == "none" else {"average": "ema", "average_decay": 0.9}
    settings = OptimizerConfig(**{"seed_batch_size": 16, "batch_size": 8, **average, **optimizer})
    return Participant(
        index, "test", built, samples(64, seed=index), samples(10, 1), settings, EvaluationConfig(), 0,
        AUGMENTATIONS[augmentation], round_steps=11,
    )  # fmt: skip


def recording(participant: Any) -> TapeRecorder:
    recorder = TapeRecorder()
    participant.graphs = UnitGraphs(Graphs(recorder))
    return recorder


def a_round(index: int, graph: Graph = STAR) -> Round:
    """Round with new views of the seed samples, that is, other tensors than the round before."""
    return Round(index, graph, SEED_SET.of_round(index), (64, 64, 128, 64), SEED_SET, 40)


def theirs(index: int, neighbours: int = 3) -> Tensor:
    return torch.randn(neighbours, 40, 10, generator=torch.Generator().manual_seed(index)).softmax(dim=-1)


def play(learning: Method, unit: Any, rounds: range) -> list[dict[str, float]]:
    means = []
    for index in rounds:
        now, members = a_round(index), unit.members
        published = [learning.published(member, now) for member in members if learning.array(member, 40, 10)]
        learning.local_phase(unit, now)
        given = theirs(index) if len(members) == 1 else theirs(index)[:, None].expand(-1, len(members), -1, -1)
        if not learning.shares_parameters:
            learning.mutual_phase(unit, now, given)
        elif published:
            learning.mutual_phase(unit, now, published[0].flip(-1).expand(3, 1, -1).contiguous())
        means += [member.noted_means() for member in members]
    return means


def assert_same_state(one: Participant, other: Participant) -> None:
    first, second = one.state(), other.state()
    for key in ("optimizer_steps", "private_minibatches"):
        assert first[key] == second[key]
    for part in ("model", "average", "optimizer"):
        for key, value in first.get(part, {}).items():
            assert torch.equal(value, second[part][key]), (part, key)


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fedh2l, gem, teachers that are right, a ramp": (
        "fedh2l", {"combine": "gem", "teachers": "right", "backoff": True, "ramp_rounds": 2}, {},
    ),
    "fedh2l, joint, seed labels in all steps, priors": (
        "fedh2l",
        {"combine": "joint", "local_labels": "private_and_seed", "prior_correction": "balanced"},
        {"name": "adamw", "weight_decay": 0.1, "schedule": "cosine", "schedule_rounds": 5, "warmup_steps": 5},
    ),
    "dml": ("dml", {}, {"weight_decay": 0.01}),
    "distributed distillation": ("distributed_distillation", {}, {"clip_norm": 0.5}),
    "fedmd, after warm-up": ("fedmd", {"warmup_rounds": 2}, {}),
    "ds_fl": ("ds_fl", {}, {}),
    "seed_supervised": ("seed_supervised", {"combine": "pcgrad"}, {}),
    "independent": ("independent", {}, {"average": "none"}),
    "fedavg": ("fedavg", {}, {}),
    "fedprox": ("fedprox", {}, {}),
    "d_psgd": ("d_psgd", {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("augmentation", ["none", "photo"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("case", SETTINGS)
def test_recorded_steps_give_the_bits_of_steps_call_by_call(case, model, augmentation):
    name, keys, optimizer = SETTINGS[case]
    learning = method(name, **{**keys, "local_steps": 6, "mutual_steps": 5})
    alone, graphed = (learner(model, augmentation=augmentation, **optimizer) for _ in range(2))
    recorder = recording(graphed)
    assert play(learning, alone, range(4)) == play(learning, graphed, range(4))
    assert not graphed.graphs.refused
    assert graphed.graphs.replayed > 4 * 11 / 2
    assert recorder.recorded <= 4
    assert_same_state(alone, graphed)


@pytest.mark.parametrize(
    "optimizer", [{"momentum": 0.9, "weight_decay": 0.01}, {"schedule": "linear", "schedule_rounds": 3}]
)
def test_recorded_steps_of_sgd_differ_in_the_last_digits(optimizer):
    # On a CPU, the call with a number multiplies and adds with one rounding.
    learning = method("fedh2l", combine="sum", local_steps=6, mutual_steps=5)
    alone, graphed = (learner(name="sgd", lr=0.1, **optimizer) for _ in range(2))
    recording(graphed)
    play(learning, alone, range(4))
    play(learning, graphed, range(4))
    assert graphed.graphs.replayed > 30
    torch.testing.assert_close(graphed.parameters.vector, alone.parameters.vector, rtol=1e-5, atol=1e-6)
    assert not torch.equal(learner().parameters.vector, alone.parameters.vector)


@pytest.mark.parametrize("stacks", [False, True])
def test_participants_that_step_together_record_their_steps(stacks):
    learning = method("fedh2l", combine="gem", local_steps=6, mutual_steps=5)
    alone, graphed = (
        batched.training_units([learner("cnn" if stacks else "mlp", index) for index in range(3)], stacks)[0]
        for _ in range(2)
    )
    assert len(graphed.members) == 3
    recording(graphed)
    assert play(learning, alone, range(3)) == play(learning, graphed, range(3))
    assert not graphed.graphs.refused
    assert graphed.graphs.replayed > 16
    for one, other in zip(alone.members, graphed.members, strict=True):
        assert_same_state(one, other)


def test_a_participant_that_is_resumed_in_the_middle_records_its_steps_again():
    learning = method("fedh2l", combine="gem", local_steps=6, mutual_steps=5)
    whole, first, second = (learner("cnn", augmentation="affine") for _ in range(3))
    for one in (whole, first, second):
        recording(one)
    play(learning, whole, range(4))
    play(learning, first, range(2))
    # What is recorded stays right if its participant goes back to an earlier state.
    play(learning, second, range(1))
    second.restore(first.state())
    play(learning, second, range(2, 4))
    assert_same_state(whole, second)


def test_a_phase_may_have_more_steps_than_the_tables_or_fewer_than_the_warm_up(monkeypatch):
    monkeypatch.setattr(step_graphs, "PHASE_BYTES", 300)
    for local, mutual in ((11, 7), (1, 1)):
        learning = method("fedh2l", combine="gem", local_steps=local, mutual_steps=mutual)
        alone, graphed = (learner() for _ in range(2))
        recording(graphed)
        assert play(learning, alone, range(4)) == play(learning, graphed, range(4))
        assert_same_state(alone, graphed)
        assert graphed.graphs.replayed == 4 * (local + mutual) - 2 * WARM_UP


def test_participants_with_other_numbers_of_neighbours_have_their_own_recorded_steps():
    learning = method("dml", local_steps=0, mutual_steps=5)
    alone, graphed = (learner() for _ in range(2))
    recorder = recording(graphed)
    for index, neighbours in enumerate((3, 2, 0, 3, 2, 0)):
        for one in (alone, graphed):
            learning.mutual_phase(one, a_round(index), theirs(index, neighbours))
    assert recorder.recorded == 3
    assert_same_state(alone, graphed)


def test_dropout_draws_new_numbers_in_every_replay():
    class Dropping(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    torch.manual_seed(5)
    model = Dropping()
    alone, graphed = (learner(copy.deepcopy(model)) for _ in range(2))
    recording(graphed)
    learning = method("independent", local_steps=6, mutual_steps=5)
    assert play(learning, alone, range(2)) == play(learning, graphed, range(2))
    assert graphed.graphs.replayed
    assert_same_state(alone, graphed)


def test_a_number_of_a_step_must_be_an_argument():
    class Ramp(type(method("independent"))):
        """The loss grows from phase to phase, by a number that is an argument, or hidden in the method."""

        hides = False
        factor = 1.0

        def private_steps(self, participant: Any, steps: int) -> None:
            def step(factor: float) -> None:
                loss = self.private_loss(participant)
                participant.step(participant.gradient(loss * (self.factor if self.hides else factor)))

            participant.repeat(steps, step, 0.0 if self.hides else self.factor)
            self.factor *= 3

    def weights(hides: bool, records: bool) -> Tensor:
        participant, learning = learner(name="sgd", lr=0.1), Ramp(method("independent").config, labelled=True)
        learning.hides = hides
        if records:
            recording(participant)
        for _ in range(3):
            learning.private_steps(participant, 5)
        return participant.parameters.vector

    torch.testing.assert_close(weights(False, True), weights(False, False), rtol=1e-5, atol=1e-6)
    # The tape repeats the number that was hidden when it was made, as a CUDA graph would.
    assert not torch.allclose(weights(True, True), weights(True, False), rtol=1e-3, atol=1e-4)


def updates(learning: Method, participant: Any, loss_of: Callable[[Tensor], Tensor]) -> None:
    participant.step(participant.gradient(loss_of(learning.private_loss(participant))))


def with_a_number_from_around(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    factor = 1.0 + now.index
    return lambda now: updates(learning, participant, lambda loss: loss * factor)


def with_a_default(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now, factor=1.0 + now.index: updates(learning, participant, lambda loss: loss * factor)


def with_a_tensor_from_around(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    factor = torch.tensor(1.0 + now.index)
    return lambda now: updates(learning, participant, lambda loss: loss * factor)


def with_a_number_of_the_device(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss * (2.0 if loss.item() > 1 else 1.0))


def with_a_mask(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss * now.seed.inputs[now.seed.labels > 3].mean())


def with_the_rounds_number(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss / (1 + now.index))


def with_the_rounds_draws(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss * now.draw("mine").random())


def with_draws_on_the_host(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss * random.random())


def with_draws_of_numpy(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss * np.random.rand())  # noqa: NPY002


def with_two_minibatches(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    return lambda now: updates(learning, participant, lambda loss: loss + learning.private_loss(participant))


def with_a_note_in_some_steps(learning: Method, participant: Any, now: Round) -> Callable[..., None]:
    def noted(loss: Tensor) -> Tensor:
        if participant.optimizer.steps % 2 == 0:
            participant.note("loss_seed", loss)
        return loss

    return lambda now: updates(learning, participant, noted)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_a_number_from_around, "it takes 'factor' from around it"),
        (with_a_default, "it takes 'a default value' from around it"),
        (with_a_tensor_from_around, "it takes 'factor' from around it"),
        (with_a_number_of_the_device, "the host waits for the device in it (_local_scalar_dense)"),
        (with_a_mask, "the host waits for the device in it (index)"),
        (with_the_rounds_number, "it uses a fact of the round, such as now.index"),
        (with_the_rounds_draws, "it uses a fact of the round, such as now.index"),
        (with_draws_on_the_host, "it draws random numbers on the host"),
        (with_draws_of_numpy, "it draws random numbers on the host"),
        (with_two_minibatches, "it uses several private minibatches, or makes several updates"),
        (with_a_note_in_some_steps, "it notes 'loss_seed' in some steps only"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_taken_call_by_call_and_told_once(make, reason, caplog):
    learning = method("independent")
    alone, graphed = (learner() for _ in range(2))
    recording(graphed)
    with caplog.at_level(logging.INFO):
        for index in range(3):
            now = a_round(index)
            for one in (alone, graphed):
                one.begin(index, phase=1)
                one.repeat(4 if index else 5, make(learning, one, now), now)
    assert [text.startswith(reason) for text in graphed.graphs.refused.values()] == [True]
    assert graphed.graphs.replayed == 0
    assert alone.noted_means() == graphed.noted_means()
    assert_same_state(alone, graphed)
    told = [record.message for record in caplog.records]
    assert [text.startswith(f"devices.graphs: some steps are taken call by call: {reason}") for text in told] == [True]


def test_a_phase_without_steps_says_nothing_about_them():
    learning = method("independent")
    alone, graphed = (learner() for _ in range(2))
    recording(graphed)
    for one in (alone, graphed):
        for steps in (0, 5, 0, 4):
            learning.private_steps(one, steps)
    assert graphed.graphs.replayed == 9 - WARM_UP
    assert alone.noted_means() == graphed.noted_means()
    assert_same_state(alone, graphed)


def test_the_step_that_is_watched_makes_no_copy_of_its_own(monkeypatch):
    # On a GPU, the copy of a minibatch's rows to the device would be taken for a copy that the step makes.
    watching, moved = [], minibatches.to_device

    def to_device(tensor: Tensor, device: torch.device) -> Tensor:
        watching.append(any(isinstance(mode, Waits) for mode in _get_current_dispatch_mode_stack()))
        return moved(tensor, device)

    monkeypatch.setattr(minibatches, "to_device", to_device)
    monkeypatch.setattr(minibatches, "PHASE_BYTES", 1)
    participant = learner(augmentation="photo")
    recording(participant)
    method("independent").private_steps(participant, 5)
    assert participant.graphs.replayed == 5 - WARM_UP
    assert not any(watching)
    assert len(watching) == 5 * WARM_UP


def test_a_mistake_in_a_step_is_raised_as_without_graphs():
    learning, participant = method("independent"), learner()
    recording(participant)

    def step() -> None:
        learning.private_steps_that_do_not_exist(participant)

    with pytest.raises(AttributeError, match="private_steps_that_do_not_exist"):
        participant.repeat(5, step)


def test_a_replaced_tensor_of_the_model_ends_the_run():
    class Replacing(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * images.mean()
            return super().forward(images) + self.mean

    participant = learner(Replacing(), average="none")
    recording(participant)
    with pytest.raises(RuntimeError, match="a recorded step replaced a tensor of the model"):
        method("independent").private_steps(participant, 5)


def test_arguments_of_one_shape_share_memory_and_are_copied_once_a_round():
    graphs = Graphs(TapeRecorder())
    first, second = torch.ones(3), torch.full((3,), 2.0)
    static = graphs.load("labels", first)
    assert graphs.load("labels", second) is static
    assert static.tolist() == [2.0, 2.0, 2.0]
    static.zero_()
    assert graphs.load("labels", second).tolist() == [0.0, 0.0, 0.0]
    second.add_(1)
    assert graphs.load("labels", second).tolist() == [3.0, 3.0, 3.0]
    assert graphs.load("targets", second) is not static
    assert graphs.load("labels", torch.ones(4)) is not static


class Own(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


class OwnThatAllows(Own):
    records_steps = True


@pytest.mark.parametrize(
    ("name", "architecture", "model", "device", "graphs", "reason"),
    [
        ("fedh2l", "mlp", "mlp", "cuda", "auto", ""),
        ("fedh2l", "mine:Own", OwnThatAllows, "cuda", "auto", ""),
        ("fedh2l", "mine:Own", Own, "cuda", "auto", "model 'mine:Own' does not set records_steps"),
        ("fd", "mlp", "mlp", "cuda", "auto", "method 'fd' does not set records_steps"),
        ("fedh2l", "mlp", "mlp", "cuda", "off", None),
        ("fedh2l", "mlp", "mlp", "cpu", "auto", None),
    ],
)
def test_steps_are_recorded_on_a_gpu_if_the_config_the_method_and_the_model_allow_it(
    name, architecture, model, device, graphs, reason, monkeypatch, caplog
):
    monkeypatch.setattr(run_parts, "CudaRecorder", lambda device: TapeRecorder())
    participant = learner(model if isinstance(model, str) else model())
    participant.architecture = architecture
    settings = Config(method={"name": name}, devices={"graphs": graphs})
    with caplog.at_level(logging.INFO):
        run_parts._record_steps(settings, torch.device(device), method(name), [participant])
    assert (participant.graphs is not None) == (reason == "")
    assert [reason in record.message for record in caplog.records] == ([True] if reason else [])


def test_a_method_that_extends_another_one_has_to_ask_again():
    class Extended(type(method("fedh2l"))):
        pass

    assert method("fedh2l").records_steps
    assert not Extended.records_steps
