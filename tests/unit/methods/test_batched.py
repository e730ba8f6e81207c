"""Like participants that step together: the same weights as one by one, and who may step together."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from fedh2l_mpi import api, losses, metrics
from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.methods import batched
from fedh2l_mpi.methods.batched import BatchedParticipants
from fedh2l_mpi.models import batched_linear, build
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.simulation import Simulation


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
        ["models=[mlp]", "method.name=independent"],
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
    for more in (["method.combine=gem_neighbours"], ["method.teachers=median"], ["method.name=dml"]):
        _, simulation = run(tmp_path / more[0], *sets, *more)
        assert simulation.training_units == simulation.participants
