"""Like participants that step together: the same weights as one by one, and who may step together."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.rounds import a_round_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedh2l_mpi import api, losses, methods, metrics
from fedh2l_mpi import build as build_module
from fedh2l_mpi.config import EvaluationConfig, OptimizerConfig, loading
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.methods import batched, gradients
from fedh2l_mpi.methods.batched import BatchedParticipants
from fedh2l_mpi.models import batched_linear, build, optimizers
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.participant import Participant, TrainingUnit
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.simulation import Simulation
from fedh2l_mpi.topology import Graph


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products have other bits with more threads, and many small convolutions take longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path, *overrides: str) -> tuple[metrics.RunMetrics, Simulation]:
    settings = loading.load(None, overrides).resolved(1, launched=False)
    directory = RunDirectory(folder)
    simulation = api.assemble(settings, World(None), RunReservation(directory))
    simulation.run()
    return metrics.read(directory.metrics), simulation


RING = ["models=[mlp]", "topology.kind=random_regular", "topology.degree=4", "data.partition.kind=dirichlet"]
BALANCED = ["method.prior_correction=balanced", "method.prior_strength=0.7"]
LOCAL = ["method.local_labels=private_and_seed"]


@pytest.mark.parametrize(
    "settings",
    [
        ["models=[mlp]", "topology.kind=random_regular", "topology.degree=4"],
        ["models=[mlp, cnn]", "method.combine=pcgrad", "optimizer.name=sgd", "optimizer.momentum=0.9"],
        ["models=[mlp]", "method.teachers=mean", "seed_set.views=both", "optimizer.batch_size=13"],
        ["models=[mlp]", "topology.kind=star", "method.temperature=2", "optimizer.weight_decay=0.01"],
        ["models=[mlp]", "method.name=seed_supervised", "data.augmentation=affine"],
        ["models=[mlp]", "method.name=independent", "data.augmentation=photo"],
        ["models=[mlp]", "method.name=dml", "topology.kind=star", "method.temperature=2", *BALANCED],
        ["models=[mlp]", "method.name=distributed_distillation", "seed_set.labelled=false"],
        ["models=[mlp]", "method.name=fedavg", "topology.kind=complete", "optimizer.average=ema"],
        ["models=[mlp]", "method.name=fedprox", "topology.kind=complete", "exchange.codec=float16"],
        ["models=[mlp]", "method.name=d_psgd", "topology.kind=star", *LOCAL],
        ["models=[mlp]", "method.name=d_psgd", "method.publish=start", "optimizer.name=sgd"],
        ["models=[mlp]", "topology.kind=star", "optimizer.average=ema", "optimizer.schedule=cosine"],
        [
            *RING,
            "method.teachers=right",
            "method.backoff=true",
            *BALANCED,
            "method.temperature=2",
            "seed_set.views=both",
        ],
        [*RING, "method.teachers=better", "method.backoff=true", *BALANCED, "method.combine=joint", *LOCAL],
        [*RING, "method.teachers=agreement", "seed_set.labelled=false", "topology.degree=6", *BALANCED],
        ["models=[mlp]", "method.name=pooled", "method.combine=joint", *BALANCED, *LOCAL],
        ["models=[mlp]", "method.name=seed_supervised", *LOCAL, "optimizer.seed_batch_size=20"],
        [
            *("models=[mlp, lenet5]", "seed_set.views=both", "optimizer.batch_size=13", *BALANCED),
            *("optimizer.name=adamw", "optimizer.weight_decay=0.1", "optimizer.schedule=linear"),
            *("optimizer.warmup_steps=9", "optimizer.label_smoothing=0.1"),
            "optimizer.per_model={mlp: {clip_norm: 0.5, lr: 0.01}}",
        ],
    ],
    ids=[
        "regular graph",
        "two architectures",
        "views, odd minibatches",
        "unlike degrees",
        "seed_supervised",
        "alone",
        "dml",
        "distributed distillation, no labels",
        "fedavg",
        "fedprox, means of half precision",
        "d_psgd, seed labels",
        "d_psgd, hidden exchange",
        "averaged weights, schedule",
        "right, corrected",
        "better, joint",
        "agreement",
        "pooled, joint",
        "seed labels in local steps",
        "recipe by model",
    ],
)
def test_members_of_a_cohort_get_the_weights_that_they_would_get_alone(tmp_path, settings):
    common = ["participants=7", "rounds=4", "evaluation.every=2", "data.partition.domains=4", *settings]
    alone, one_by_one = run(tmp_path / "alone", *common)
    together, simulation = run(tmp_path / "together", *common, "devices.batching=like")
    assert any(isinstance(learner, BatchedParticipants) for learner in simulation.training_units)
    for name in alone.arrays:
        if name not in metrics.TIMINGS:
            assert together[name].tobytes() == alone[name].tobytes(), name
    for ours, theirs in zip(simulation.participants, one_by_one.participants, strict=True):
        for name, value in theirs.state()["optimizer"].items():
            assert torch.equal(ours.state()["optimizer"][name], value), name
        for name, value in theirs.state().get("average", {}).items():
            assert torch.equal(ours.state()["average"][name], value), name
        assert torch.equal(ours.parameters.vector, theirs.parameters.vector)
        assert ours.optimizer.steps == theirs.optimizer.steps > 0


def chained(*widths: int) -> nn.Sequential:
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (lambda: build("mlp", SampleForm.image(1, 8), 2, torch.initial_seed()), 3),
        (lambda: build("mlp", SampleForm.image(1, 8), 3, torch.initial_seed()), 1),
        (lambda: chained(64, 3, 10), 8),
        (lambda: chained(64, 40, 1, 40, 10), 16),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False), nn.ReLU(), nn.Linear(5, 9, bias=False)), 8),
    ],
    ids=["2 classes, 3 samples", "3 classes, 1 sample", "few outputs", "one output, one input", "no biases"],
)
def test_products_of_few_numbers_give_every_member_its_own_bits_too(kind, batch):
    images, labels = torch.randn(5, batch, 1, 8, 8), torch.randint(2, (5, batch))
    alone = []
    for member in range(5):
        torch.manual_seed(member)
        alone.append(kind())
    flat = [FlatParameters(model) for model in alone]
    together = batched_linear.BatchedModel(
        alone[0], batched_linear.join_columns([torch.stack([one.vector for one in flat])])
    )
    logits = together(images)
    gradients = together.gradient(losses.cross_entropy(logits, labels))
    for member, model in enumerate(alone):
        own = model(images[member])
        assert torch.equal(logits[member], own)
        assert torch.equal(gradients[member], flat[member].gradient(losses.cross_entropy(own, labels[member])))


def test_rows_computed_at_once_equal_rows_one_by_one_but_for_rounding(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 6, 5, generator=draw, requires_grad=True), torch.randint(5, (4, 6), generator=draw)
    one, other = (torch.randn(4, 1000, generator=draw) for _ in range(2))
    flat = [FlatParameters(chained(64, 3, 1, 4)) for _ in range(4)]
    matrix = batched_linear.join_columns([torch.stack([each.vector for each in flat])])
    model, images = batched_linear.BatchedModel(chained(64, 3, 1, 4), matrix), torch.randn(4, 6, 8, 8, generator=draw)

    def computed() -> list[torch.Tensor]:
        loss = losses.cross_entropy(logits, labels, smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        products = gradients.InnerProducts.of(one, other)
        clipped = optimizers.clip(one.clone(), 20.0)
        weights = model.gradient(model(images).square().mean(dim=(1, 2)))
        return [loss.detach(), gradient, products.private, products.seed, products.cross, clipped, weights]

    rows = computed()
    monkeypatch.setattr(losses, "needs_single_rows", lambda values: False)
    for ours, theirs in zip(computed(), rows, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_chains_of_linear_layers_are_stacked():
    class Own(nn.Sequential):
        def forward(self, images):
            return super().forward(images) * 2

    layers = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)]
    assert batched_linear.chain(build("mlp", SampleForm.image(1, 8), 10, 0)) is not None
    assert batched_linear.chain(nn.Sequential(*layers)) is not None
    assert batched_linear.chain(nn.Sequential(nn.Flatten(), nn.Sequential(*layers[1:]))) is not None
    for other in ("lenet5", "cnn", "resnet8", "vit"):
        assert batched_linear.chain(build(other, SampleForm.image(1, 8), 10, 0)) is None
    assert batched_linear.chain(Own(*layers)) is None
    assert batched_linear.chain(nn.Sequential(*layers, nn.Dropout(0.1))) is None
    frozen = nn.Sequential(*layers)
    frozen[1].weight.requires_grad_(False)
    assert batched_linear.chain(frozen) is None
    shared = nn.Linear(64, 64)
    assert batched_linear.chain(nn.Sequential(nn.Flatten(), shared, shared)) is None
    more = nn.Sequential(*layers)
    more.scale = nn.Parameter(torch.ones(1))
    assert batched_linear.chain(more) is None


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.register_forward_hook(print),
        lambda model: model[1].register_forward_pre_hook(print),
        lambda model: model[1].register_full_backward_hook(print),
        lambda model: model.register_full_backward_pre_hook(print),
        lambda model: model[1].weight.register_hook(print),
        lambda model: model[3].bias.register_post_accumulate_grad_hook(print),
    ],
)
def test_a_model_whose_passes_or_gradients_somebody_listens_to_steps_alone(hook):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    assert batched_linear.chain(model) is not None
    hook(model)
    assert batched_linear.chain(model) is None


def test_a_model_alone_and_models_of_other_kinds_step_alone(tmp_path):
    sets = ["participants=4", "rounds=1", "models=[mlp, lenet5, cnn, lenet5]", "devices.batching=like"]
    _, simulation = run(tmp_path / "run", *sets)
    assert simulation.training_units == simulation.participants


def test_cohorts_are_of_bounded_size_and_lose_nobody(tmp_path):
    sets = ["participants=70", "rounds=1", "models=[mlp]", "method.local_steps=1", "method.mutual_steps=1"]
    _, simulation = run(tmp_path / "run", *sets, "data.partition.domains=4", "devices.batching=like")
    sizes = [len(learner.members) for learner in simulation.training_units if isinstance(learner, BatchedParticipants)]
    assert sizes == [batched.MEMBERS] * 4 + [6]
    members = [member.index for learner in simulation.training_units for member in learner.members]
    assert members == list(range(70))


def test_methods_that_look_at_one_participant_at_a_time_are_left_alone(tmp_path):
    sets = ["rounds=1", "models=[mlp]", "topology.kind=complete", "devices.batching=like"]
    for more in (["method.combine=gem_neighbours"], ["method.teachers=median"], ["method.name=fedmd"]):
        _, simulation = run(tmp_path / more[0], *sets, *more)
        assert simulation.training_units == simulation.participants


def some(form: SampleForm, count: int, seed: int, dtype: torch.dtype) -> Labelled:
    draw = torch.Generator().manual_seed(seed)
    shape = (count, *form.shape)
    values = torch.randn(shape, generator=draw).to(dtype)
    if form.kind == "tokens":
        values = torch.randint(20, shape, generator=draw)
    return Labelled(values, torch.randint(10, (count,), generator=draw))


def a_member(architecture: str, index: int, dtype: torch.dtype = torch.float32, **optimizer: object) -> Participant:
    form = FORMS[architecture]
    model = WithDropout() if architecture == "dropout" else build(architecture, form, 10, index)
    data = some(form, 40, index, dtype)
    settings = OptimizerConfig(**{"batch_size": 8, "seed_batch_size": 8, "average": "none", **optimizer})
    return Participant(index, architecture, model.to(dtype), data, data, settings, EvaluationConfig(), seed=0)


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.1))


IMAGES, SERIES, TOKENS = SampleForm.image(1, 8), SampleForm("series", (3, 12)), SampleForm("tokens", (9,), 20)
FORMS = {
    **dict.fromkeys(("mlp", "lenet5", "cnn", "resnet8", "resnet18", "mobilenet", "vit"), IMAGES),
    "cnn1d": SERIES,
    "text_transformer": TOKENS,
    "gru": SERIES,
    "dropout": IMAGES,
}


def play(
    units: Sequence[TrainingUnit],
    rounds: Sequence[int] = (0,),
    steps: int = 5,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Private and mutual steps of FedH2L in each round, with neighbours that publish whatever is drawn."""
    draw = torch.Generator().manual_seed(9)
    labelled = some(FORMS[units[0].members[0].architecture], 24, 9, dtype)
    theirs = {index: torch.randn(2, 24, 10, generator=draw).to(dtype).softmax(dim=-1) for index in range(3)}
    schedule = [f"method.local_steps={steps}", f"method.mutual_steps={steps}"]
    method = methods.build(loading.load(None, schedule).resolved(1, launched=False))
    for index in rounds:
        now = a_round_of(labelled, Graph(3, [(0, 1), (1, 2), (0, 2)]), index=index)
        for unit in units:
            method.local_phase(unit, now)
            method.mutual_phase(unit, now, unit.received(theirs))


def assert_alike(ours: Participant, theirs: Participant, tolerance: float) -> None:
    """Weights, running statistics and the optimiser's state differ by less than a share of what they have moved."""
    start = a_member(ours.architecture, ours.index).parameters.vector
    moved = theirs.parameters.vector - start
    assert moved.norm() > 0
    assert (ours.parameters.vector - theirs.parameters.vector).norm() <= tolerance * moved.norm()
    for one, other in zip(ours.model.buffers(), theirs.model.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)
    for name, value in theirs.optimizer.state().items():
        assert (ours.optimizer.state()[name] - value).norm() <= tolerance * value.norm()
    for name, value in ({} if theirs.average is None else theirs.average.state()).items():
        assert torch.allclose(ours.average.state()[name], value, rtol=tolerance, atol=tolerance)
    assert ours.optimizer.steps == theirs.optimizer.steps
    assert ours.noted_means() == pytest.approx(theirs.noted_means(), rel=1e-3, abs=1e-3)


# Float32 rounds to 6e-8. Each of ten steps passes on what the ones before it have rounded, and BatchNorm of small
# images divides by the spreads of few numbers: the sum stays below 1e-3 of the way that the weights have gone.
TOLERANCE = 1e-3
# The last layers of these two see one pixel of eight images, whose spreads double an error at every layer. Float64 has
# digits to spare, and the larger one takes too long for more than a step.
PRECISION = {"mobilenet": (torch.float64, 5, 1e-6), "resnet18": (torch.float32, 1, TOLERANCE)}


@pytest.mark.parametrize("architecture", [name for name in FORMS if name not in ("gru", "dropout")])
def test_stacked_members_get_the_weights_that_they_would_get_alone(architecture):
    recipe = {"name": "sgd", "lr": 0.02, "momentum": 0.9}
    dtype, steps, tolerance = PRECISION.get(architecture, (torch.float32, 5, TOLERANCE))
    alone, members = ([a_member(architecture, index, dtype, **recipe) for index in range(3)] for _ in range(2))
    (unit,) = batched.training_units(members, stacks=True)
    assert unit.members == members
    play(alone, steps=steps, dtype=dtype)
    play([unit], steps=steps, dtype=dtype)
    for ours, theirs in zip(members, alone, strict=True):
        assert_alike(ours, theirs, tolerance)


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "adam", "lr": 0.001, "average": "ema", "average_decay": 0.9, "clip_norm": 0.5},
        {"name": "adamw", "lr": 0.001, "weight_decay": 0.1, "label_smoothing": 0.1},
        {"name": "sgd", "lr": 0.01, "clip_norm": 0.1},
    ],
)
@pytest.mark.parametrize("is_exact", [True, False], ids=["rows", "all at once"])
def test_a_stack_keeps_the_states_of_optimisers_and_averages_and_can_be_stored_between_rounds(
    recipe, is_exact, monkeypatch
):
    monkeypatch.setattr(losses, "needs_single_rows", lambda values: is_exact)
    alone, members = ([a_member("cnn", index, **recipe) for index in range(3)] for _ in range(2))
    (unit,) = batched.training_units(members, stacks=True)
    play([unit])
    play(alone)
    for ours, theirs in zip(members, alone, strict=True):
        # Published and evaluated are the member's own model, in eval mode, with all that the stack has changed.
        with ours.averaged(), theirs.averaged():
            inputs = theirs.validation.inputs()
            assert torch.allclose(ours.logits(inputs), theirs.logits(inputs), rtol=1e-3, atol=1e-3)
        assert_alike(ours, theirs, 1e-3)
    # The second round goes on from the stored states: in other participants alone, and in the members of a stack.
    states = [member.state() for member in members]
    resumed, again = ([a_member("cnn", index, **recipe) for index in range(3)] for _ in range(2))
    (restored,) = batched.training_units(again, stacks=True)
    for one, other, state in zip(resumed, again, states, strict=True):
        one.restore(state)
        other.restore(state)
    play([unit], rounds=(1,))
    play(resumed, rounds=(1,))
    play([restored], rounds=(1,))
    for ours, theirs, same in zip(members, resumed, again, strict=True):
        for name, value in ours.model.state_dict().items():
            assert torch.equal(same.model.state_dict()[name], value), name
        assert ours.minibatches.position == theirs.minibatches.position
        assert_alike(ours, theirs, 1e-3)


def test_random_models_and_what_vmap_cannot_compute_step_alone_and_one_line_says_why(caplog):
    caplog.set_level(logging.INFO, "fedh2l_mpi")
    kinds = ["dropout", "gru", "cnn", "dropout", "gru", "cnn"]
    members = [a_member(kind, index) for index, kind in enumerate(kinds)]
    units = batched.training_units(members, stacks=True)
    assert [[member.index for member in unit.members] for unit in units] == [[0], [1], [2, 5], [3], [4]]
    start = "devices.batching: participants with"
    assert [record.getMessage() for record in caplog.records] == [
        f"{start} dropout step one by one, because it draws random numbers",
        f"{start} gru step one by one, because vmap has no rule for aten::gru_cell",
    ]


class Calls(TorchDispatchMode):
    """Count the operations that compute, whatever they are called on; views of tensors compute nothing."""

    VIEWS = (
        *("detach", "alias", "view", "_unsafe_view", "permute", "transpose", "t"),
        *("expand", "unsqueeze", "slice", "select", "split"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation._schema.name.removeprefix("aten::") not in self.VIEWS
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["mlp", "lenet5", "cnn"])
def test_a_stacked_step_makes_no_more_calls_for_more_members(architecture, monkeypatch):
    monkeypatch.setattr(losses, "needs_single_rows", lambda values: False)

    def calls_of_a_step(members: int) -> int:
        """Calls of a private and a mutual step: those of three of each without those of two."""
        counts = []
        units = batched.training_units([a_member(architecture, index) for index in range(members)], stacks=True)
        for steps in (2, 2, 3):
            with Calls() as calls:
                play(units, steps=steps)
            counts.append(calls.count)
        return counts[2] - counts[1]

    alone, two, three = (calls_of_a_step(members) for members in (1, 2, 3))
    assert 0 < two == three < 2 * alone


def test_a_cpu_stacks_chains_of_linear_layers_alone():
    members = [a_member(kind, index) for index, kind in enumerate(["cnn", "mlp", "cnn", "mlp"])]
    units = batched.training_units(members)
    assert [[member.index for member in unit.members] for unit in units] == [[0], [1, 3], [2]]


@pytest.mark.parametrize("method", ["method.name=fedh2l", "method.name=fedavg", "method.name=dml"])
def test_a_run_of_stacked_participants_is_as_good_as_one_of_single_ones(tmp_path, monkeypatch, method):
    common = ["participants=5", "rounds=3", "evaluation.every=1", "models=[cnn]", "optimizer.lr=0.002", method]
    common += ["topology.kind=complete", "method.local_steps=6", "method.mutual_steps=4", "data.partition.domains=2"]
    alone, _ = run(tmp_path / "alone", *common)
    monkeypatch.setattr(build_module.batched, "training_units", partial(batched.training_units, stacks=True))
    together, simulation = run(tmp_path / "together", *common, "devices.batching=like")
    (unit,) = simulation.training_units
    assert isinstance(unit, BatchedParticipants)
    # Adam divides by the size of a gradient, which lets rounding decide where a gradient is nearly zero. So some of the
    # test samples of a domain that are as likely one class as another fall to the other side.
    assert np.nanmax(np.abs(together["accuracy"] - alone["accuracy"])) <= 0.02
    assert np.nanmax(np.abs(together["loss_private"] - alone["loss_private"])) <= 0.02
    assert np.nanmin(together["accuracy_own"][-1] - together["accuracy_own"][0]) > 0
