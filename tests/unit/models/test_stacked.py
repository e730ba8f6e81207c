"""Models computed as one by vmap: the numbers of each alone, and the models that are left alone, with the reason."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from fedh2l_mpi.models import build, memory_format, mixed_precision, stacked
from fedh2l_mpi.models.batched_linear import join_columns
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.rng import global_states
from fedh2l_mpi.sample_form import SampleForm

IMAGES = SampleForm.image(1, 8)
SERIES = SampleForm("series", (3, 12))
TOKENS = SampleForm("tokens", (9,), 20)


def samples(form: SampleForm = IMAGES, count: int = 6) -> torch.Tensor:
    return torch.randint(20, (count, *form.shape)) if form.kind == "tokens" else torch.randn(count, *form.shape)


class Own(nn.Module):
    """A user's own model: a layer, and what `extra` does with the images."""

    def __init__(self, extra=lambda self, images: images) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.register_buffer("seen", torch.zeros(3))
        self.extra = extra

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.extra(self, images))


class WithCount(Own):
    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(images)


class WithExtraState(Own):
    def get_extra_state(self) -> object:
        return 1

    def set_extra_state(self, state: object) -> None:
        pass


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Conv2d(1, 2, 1).requires_grad_(False)
        self.register_buffer("mean", torch.randn(64))
        self.again = self.frozen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.frozen(images).sum(dim=1).flatten(1)
        self.mean.mul_(0.9).add_(values.detach().mean(dim=0), alpha=0.1)
        return self.second(self.first(values - self.mean))


def contiguous() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    memory_format.keep_contiguous(model)
    return model


def mixed() -> nn.Module:
    model = build("cnn", IMAGES, 10, torch.initial_seed())
    mixed_precision.mix(model)
    return model


def casting() -> nn.Module:
    return Own(lambda self, images: images.float())


def of_zoo(name: str, form: SampleForm):
    return lambda: build(name, form, 10, torch.initial_seed())


def three(kind) -> list[nn.Module]:
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(kind())
    return models


KINDS = [
    *((name, of_zoo(name, IMAGES), IMAGES) for name in ("mlp", "lenet5", "cnn", "resnet8", "mobilenet", "vit")),
    ("cnn1d", of_zoo("cnn1d", SERIES), SERIES),
    ("text_transformer", of_zoo("text_transformer", TOKENS), TOKENS),
    ("mlp of tokens", of_zoo("mlp", TOKENS), TOKENS),
    ("tied, frozen, own statistics", Tied, IMAGES),
    ("contiguous", contiguous, IMAGES),
    ("bfloat16", mixed, IMAGES),
    ("casts to float32", casting, IMAGES),
]


@pytest.mark.parametrize(("kind", "form"), [row[1:] for row in KINDS], ids=[row[0] for row in KINDS])
def test_each_of_the_stacked_models_gets_the_numbers_that_it_gets_alone(kind, form):
    alone, together = three(kind), three(kind)
    inputs = torch.stack([samples(form) for _ in alone])
    flat = [FlatParameters(model) for model in alone]
    rows = [FlatParameters(model) for model in together]
    assert stacked.refusal(together, list(inputs)) == ""
    matrix = join_columns([torch.stack([row.vector for row in rows])])
    model = stacked.StackedModel(together, rows[0], matrix)
    for row, vector in zip(rows, matrix, strict=True):
        row.move_to(vector)
    # Rounding of bfloat16 or float32, of sums of up to a few thousand terms.
    close = 0.1 if kind is mixed else 1e-4
    for _ in range(2):
        logits = model(inputs)
        gradients = model.gradient(logits.square().mean(dim=(1, 2)))
        for member, one in enumerate(alone):
            own = one.train()(inputs[member])
            gradient = flat[member].gradient(own.square().mean())
            assert (logits[member] - own).norm() <= close * own.norm()
            assert (gradients[member] - gradient).norm() <= 2 * close * gradient.norm()
            # A model alone holds what the stacked passes have changed: running statistics and counters.
            for ours, theirs in zip(together[member].buffers(), one.buffers(), strict=True):
                assert torch.allclose(ours, theirs, atol=close, rtol=close)
    counters = [
        value for one in together for name, value in one.named_buffers() if name.endswith("num_batches_tracked")
    ]
    assert all(counter == 2 for counter in counters)


def random_projection() -> nn.Module:
    projection = torch.randn(64, 64)
    return Own(lambda self, images: (images.flatten(1) @ projection.to(images)).view(images.shape))


def hooked(register) -> nn.Module:
    model = Own()
    register(model)
    return model


def replacing(self: Own, images: torch.Tensor) -> torch.Tensor:
    self.seen = self.seen + 1
    return images


def drawing(self: Own, images: torch.Tensor) -> torch.Tensor:
    return images + random.random()


def drawing_by_numpy(self: Own, images: torch.Tensor) -> torch.Tensor:
    return images + np.random.rand()  # noqa: NPY002


REFUSED = [
    (lambda: nn.Sequential(Own(), nn.Dropout(0.5)), "it draws random numbers"),
    (lambda: Own(drawing), "it draws random numbers"),
    (lambda: Own(drawing_by_numpy), "it draws random numbers"),
    (lambda: Own(replacing), "a pass replaces a buffer or an attribute of the model"),
    (WithCount, "a pass replaces a buffer or an attribute of the model"),
    (WithExtraState, "WithExtraState has a state that is in no tensor"),
    (random_projection, "together, its participants get other numbers than alone"),
    (lambda: hooked(lambda model: model.register_forward_hook(print)), "a hook observes its passes"),
    (lambda: hooked(lambda model: model.layers[1].bias.register_hook(print)), "a hook observes a gradient"),
    (lambda: nn.Sequential(nn.BatchNorm2d(1, momentum=None), Own()), "RuntimeError: "),
    (lambda: Own(lambda self, images: images if images.sum() > 0 else -images), "RuntimeError: "),
    (lambda: nn.Sequential(Own(), nn.Linear(10, random.choice([9, 10, 11]))), "its participants have tensors of"),
]


@pytest.mark.parametrize(("kind", "reason"), REFUSED)
def test_models_whose_numbers_would_depend_on_others_or_that_vmap_cannot_run_are_refused(kind, reason):
    random.seed(3)
    models = three(kind)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    inputs = [samples() for _ in models]
    states = global_states()
    assert stacked.refusal(models, inputs).startswith(reason)
    assert global_states() == states
    for model, held in zip(models, before, strict=True):
        assert all(
            torch.equal(held[name], value) for name, value in model.state_dict().items() if torch.is_tensor(value)
        )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(12, 10)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.layer(series.transpose(0, 1))[0][-1]


def sparse() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 8, sparse=True), nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.parametrize(
    ("kind", "form", "reason"),
    [
        (of_zoo("gru", SERIES), SERIES, "vmap has no rule for aten::gru_cell"),
        (Recurrent, SERIES, "vmap has no rule for aten::gru.input"),
        (sparse, TOKENS, "RuntimeError: reshape is not implemented for sparse tensors"),
    ],
)
def test_what_vmap_cannot_compute_is_named(kind, form, reason):
    models = three(kind)
    assert stacked.refusal(models, [samples(form) for _ in models]) == reason


def test_models_with_a_tensor_in_common_are_refused():
    shared = torch.zeros(3)
    models = three(Own)
    for model in models:
        model.seen = shared
    assert stacked.refusal(models, [samples() for _ in models]) == "its participants have a tensor in common"
