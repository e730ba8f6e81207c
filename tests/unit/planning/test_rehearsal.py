"""Users' own models and methods: what a run would find late is found before it, and what is sound is let through."""

import dataclasses
import functools
import random
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedh2l_mpi import ArraySpec, Method, methods, rng
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import PosteriorMethod
from fedh2l_mpi.planning import requirements
from fedh2l_mpi.planning.sizes import SampleCounts
from fedh2l_mpi.sample_form import SampleForm


def config_of(*overrides: str) -> Config:
    return loading.load(None, ["participants=3", "rounds=4", *overrides]).resolved(1, launched=False)


@functools.cache
def counts_of(*overrides: str) -> SampleCounts:
    return requirements.count_samples(federated.plan(config_of(*overrides), source()))


source = functools.cache(digits)


def rehearse(*overrides: str) -> None:
    config = config_of(*overrides)
    counts = counts_of(*(one for one in overrides if one.startswith(("evaluation", "data"))))
    requirements.compute(config, source(), methods.build(config), counts)


class Line(nn.Module):
    """A linear function of the pixels; the base of the models here."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(channels * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(images.flatten(1))


# Sound models.


class Views(nn.Module):
    """Flattens by `view`, as most lessons do."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(channels, 6, 3, padding=1), nn.Linear(6 * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.conv(images).relu().view(len(images), -1))


class Remembers(Line):
    """Keeps what is no tensor in its state dict, and lets it count."""

    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return super().forward(images) / (1 + self.seen)

    def get_extra_state(self) -> dict[str, object]:
        return {"seen": self.seen, "of": ["a", {"b": torch.ones(2)}, None]}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class Drawn(Line):
    """Draws from the global generators of Python and NumPy: in the constructor, and in training."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.out.weight.data *= random.random() + np.random.rand()  # noqa: NPY002

    def forward(self, images: Tensor) -> Tensor:
        noise = random.random() + np.random.rand() if self.training else 0.0  # noqa: NPY002
        return super().forward(images) + noise * images.flatten(1)[:, :10]


class Replaces(Line):
    """Puts a new tensor into its buffer in every pass."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean(0)
        return logits - self.mean


class Ties(nn.Module):
    """Uses one parameter twice, a frozen one, and one with sparse gradients."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.frozen = nn.Parameter(torch.ones(64, dtype=torch.float64), requires_grad=False)
        self.table = nn.Embedding(2, classes, sparse=True)
        self.out = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.two(self.one(images.flatten(1)).relu()) * self.frozen.float()
        return self.out(hidden) + self.table(torch.zeros(len(images), dtype=torch.int64))


class Compiled(nn.Module):
    """Has a part that TorchScript compiled."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.part = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))

    def forward(self, images: Tensor) -> Tensor:
        return self.part(images)


@pytest.mark.parametrize("kind", [Line, Views, Remembers, Drawn, Replaces, Ties])
def test_a_sound_model_is_let_through(kind):
    rehearse(f"models=[{__name__}:{kind.__name__}]")


# Models that cannot be trained, or whose numbers would depend on the number of ranks or on a restart.


class Auxiliary(Line):
    def forward(self, images: Tensor) -> object:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Detached(Line):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(images)


class Raises(Line):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + (self.missing if self.training else 0)


class Mixed(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.scale = nn.Parameter(torch.ones(classes, dtype=torch.bfloat16))


class Complex(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.out.to(torch.complex64)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(torch.complex64)).real


class Shares(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.again = nn.Parameter(self.out.weight.detach())


class Grows(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen = torch.zeros(len(images))
        return super().forward(images)


class Lazy(Line):
    def forward(self, images: Tensor) -> Tensor:
        if self.training and not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(()))
        return super().forward(images) * (self.late if self.training else 1)


class NeverUsed(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.other = nn.LazyLinear(3)


class Counts(Line):
    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += self.training
        return super().forward(images) / (1 + self.seen if self.training else 1)


class OwnGenerator(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.draw = np.random.default_rng(0)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (self.draw.random() if self.training else 1)


class StaleView(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.turned = self.out.weight.detach().t()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images.flatten(1) @ self.turned


class Forgets(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.register_buffer("mean", torch.zeros(10), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.training:
            self.mean.lerp_(logits.detach().mean(0) + 1, 0.5)
        return logits - self.mean


class Unreadable(Line):
    def get_extra_state(self) -> object:
        return {"threshold": np.float64(0.5), "of": np.ones(2)}

    def set_extra_state(self, state: object) -> None: ...


class MovesInEvaluation(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.mean += 0.1
        return logits


class SameTensor(Line):
    cached: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.training:
            return logits
        self.cached = logits.clone() if self.cached is None else self.cached.copy_(logits)
        return self.cached


class Squeezes(Line):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze()


class TurnsGradientsOff(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        torch.set_grad_enabled(False)


class CannotBeCopied(Line):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(channels, side, classes)
        self.log = open(__file__)  # noqa: SIM115


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Auxiliary, r"maps inputs \(4, 1, 8, 8\) to tuple in training"),
        (Detached, "its logits in training do not depend on a trainable parameter"),
        (Raises, r"fails when it is trained: AttributeError in test_rehearsal\.py, line \d+: 'Raises' object has no"),
        (Mixed, r"must be of one real dtype; got torch\.bfloat16 \(scale\), torch\.float32 \(out\.weight\)\.$"),
        (Complex, r"must be of one real dtype; got torch\.complex64 \(out\.weight\)\.$"),
        (Shares, r"parameters 'again' and 'out\.weight' share memory, but are two parameters"),
        (Grows, r"changes 'seen' of its state_dict from \(0,\) to \(4,\), so no checkpoint would fit"),
        (Lazy, "a pass in training adds, replaces or freezes parameters"),
        (NeverUsed, r"does not use its lazy parameter 'other\.weight' in eval mode"),
        (Counts, "a step after a resume gives other weights than the same step without it"),
        (OwnGenerator, "a step after a resume gives other weights than the same step without it"),
        (StaleView, r"'turned' is a view of parameter 'out\.weight'"),
        (Forgets, "a new model with the trained state_dict gives other logits"),
        (Unreadable, r"keeps '_extra_state' in state_dict, which a checkpoint cannot give back \(UnpicklingError\)"),
        (MovesInEvaluation, "a pass in eval mode changes 'mean'"),
        (Compiled, "has parts that TorchScript compiled"),
        (SameTensor, "returns a tensor that its next pass changes"),
        (TurnsGradientsOff, "changes PyTorch's gradient mode from True to False"),
        (CannotBeCopied, "fails when it is copied and given to a participant: TypeError"),
    ],
)
def test_a_model_that_a_run_would_fail_with_is_refused_in_one_line(kind, says):
    with pytest.raises(UserError, match=rf"^models: '{__name__}:{kind.__name__}'.*{says}") as refused:
        rehearse(f"models=[{__name__}:{kind.__name__}]")
    assert "\n" not in str(refused.value)
    assert torch.is_grad_enabled()


def test_a_model_must_evaluate_a_single_image_where_a_run_has_one():
    model = f"models=[{__name__}:Squeezes]"
    rehearse(model, "evaluation.test_samples_per_domain=64", "evaluation.batch_size=64")
    with pytest.raises(UserError, match=r"maps inputs \(1, 1, 8, 8\) to \(10,\) in evaluation"):
        rehearse(model, "evaluation.test_samples_per_domain=65", "evaluation.batch_size=64")


def test_a_model_of_one_channel_and_of_three_gets_contiguous_images_and_weights():
    for channels in (1, 3):
        model = requirements.models.build(f"{__name__}:Views", SampleForm.image(channels, 8), 10, seed=0)
        participant = requirements.stand_in_participant(
            loading.load(None, []).resolved(1, launched=False),
            dataclasses.replace(source(), form=SampleForm.image(channels, 8)),
            model,
            samples=4,
        )
        images, labels = participant.private_minibatch()
        assert images.is_contiguous(memory_format=torch.channels_last)
        gradient = participant.gradient(functional.cross_entropy(participant.model(images), labels))
        assert len(gradient) == len(participant.parameters.vector)
        assert model.conv.weight.stride() == (9 * channels, 9, 3, 1)


# Methods.

ISOLATED = "topology={kind: erdos_renyi, probability: 0.0, connected: false}"


class Sound(PosteriorMethod):
    options = MappingProxyType({"weight": 1.0, "views": 2, "name": "a", "deep": {"a": 1}})

    def mutual_phase(self, participant, now, theirs):
        participant.begin(now.index, phase=1)
        self.private_steps(participant, self.config.mutual_steps)


class ByName(Sound):
    shape = (1, 10)

    def array(self, participant, samples, classes):
        return ArraySpec("numbers", samples, classes)


class Wide(ByName):
    def publish(self, participant, now):
        return torch.zeros(len(now.seed), 3)


class Double(ByName):
    def publish(self, participant, now):
        return torch.zeros(len(now.seed), 10, dtype=torch.float64)


class NotFinite(ByName):
    def publish(self, participant, now):
        return torch.full((len(now.seed), 10), np.nan)


class NoTensor(ByName):
    def publish(self, participant, now):
        return np.zeros((len(now.seed), 10), np.float32)


class NoPublish(Method):
    def array(self, participant, samples, classes):
        return ArraySpec("numbers", samples, classes)


class NoSpec(Sound):
    def array(self, participant, samples, classes):
        return (samples, classes)


class ByWidth(Sound):
    def array(self, participant, samples, classes):
        return ArraySpec("weights", 1, len(participant.parameters.vector))

    def publish(self, participant, now):
        return participant.parameters.vector[None].clone()


class Wrong(Sound):
    def mutual_phase(self, participant, now, theirs):
        return self.config.no_such_key


class NeedsNeighbours(Sound):
    def mutual_phase(self, participant, now, theirs):
        super().mutual_phase(participant, now, theirs)
        theirs.amax(dim=0)


class Remembering(Sound):
    """Keeps a participant's number of rounds on the method, which serves all participants of a rank."""

    rounds = 0

    def mutual_phase(self, participant, now, theirs):
        self.rounds += 1
        participant.begin(now.index, phase=1)
        participant.step(self.rounds * participant.gradient(self.private_loss(participant)))


class GlobalNumbers(Sound):
    """Draws from a generator that no participant has seeded."""

    draw = np.random.default_rng(3)

    def mutual_phase(self, participant, now, theirs):
        participant.begin(now.index, phase=1)
        participant.step(self.draw.random() * participant.gradient(self.private_loss(participant)))


class Together(Sound):
    """Averages the losses of participants that step together; a gradient's length matters to SGD."""

    takes_batches = True

    def mutual_phase(self, participant, now, theirs):
        participant.begin(now.index, phase=1)
        participant.step(participant.gradient(self.private_loss(participant).mean()))


class SumsApart(Sound):
    takes_batches = True

    def mutual_phase(self, participant, now, theirs):
        participant.begin(now.index, phase=1)
        participant.step(participant.gradient(self.private_loss(participant)))


class KeepsObjects(Sound):
    def publish(self, participant, now):
        participant.kept["draw"] = np.ones(2)
        return super().publish(participant, now)


class Notes(Sound):
    notes = MappingProxyType({"trust": "share of trusted teachers [1]"})

    def mutual_phase(self, participant, now, theirs):
        super().mutual_phase(participant, now, theirs)
        participant.note("trust", 0.5)
        participant.note("loss_seed", torch.tensor(2.0))


class NotesMore(Notes):
    def local_phase(self, participant, now):
        super().local_phase(participant, now)
        participant.note("f1", torch.tensor(0.5))


class NotesVector(Notes):
    def local_phase(self, participant, now):
        participant.note("trust", torch.ones(2))


class BadNotes(Sound):
    notes = ("trust",)


class BadOptions(Sound):
    options = ("weight",)


class Unbuildable(Sound):
    def __init__(self, config, labelled):
        super().__init__(config, labelled)
        raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.name={}:Sound", "method.options.weight=2", "method.options.name=null"],
        ["method.name={}:Sound", "models=[mlp, lenet5]", "optimizer.seed_batch_size=1"],
        ["method.name={}:NeedsNeighbours"],
        ["method.name={}:SumsApart", "devices.batching=like"],
        ["method.name={}:ByWidth"],
        ["method.name={}:Notes"],
    ],
)
def test_a_sound_method_is_let_through(overrides):
    rehearse("models=[mlp]", *(one.format(__name__) for one in overrides))


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    [
        (
            Wide,
            [],
            r"fails when it is published: RuntimeError: numbers of participant 2: got torch\.float32 \(\d+, 3\)",
        ),
        (Double, [], r"published: RuntimeError: numbers of participant 2: got torch\.float64"),
        (NotFinite, [], "published: RuntimeError: numbers of participant 2, row 0: .* is not finite"),
        (NoTensor, [], r"published: TypeError: publish\(\) returned a ndarray, must return a float32 tensor"),
        (NoPublish, [], r"published: NotImplementedError: NoPublish defines array\(\), so it must define publish"),
        (NoSpec, [], r"array\(\) returned a tuple, must return an ArraySpec"),
        (
            ByWidth,
            ["models=[mlp, lenet5]"],
            r"publishes arrays of different shapes: \(1, \d+\) with mlp, \(1, \d+\) with",
        ),
        (Wrong, [], r"in its mutual phase: AttributeError in test_rehearsal\.py, line \d+"),
        (
            NeedsNeighbours,
            ["topology={kind: erdos_renyi, probability: 0.0, connected: false}"],
            "in its mutual phase: IndexError in",
        ),
        (Remembering, [], "a step after a resume gives other weights than the same step without it, or on another"),
        (GlobalNumbers, [], "a step after a resume gives other weights than the same step without it, or on another"),
        (Together, ["devices.batching=like"], "participants that step together get other weights than each alone"),
        (KeepsObjects, [], r"keeps 'draw' in participant\.kept, which a checkpoint cannot give back"),
        (
            NotesMore,
            [],
            r"notes 'f1', which it does not declare\. Fix: add it to the class: notes = \{'f1': 'what it is'\}",
        ),
        (
            NotesVector,
            [],
            r"in its local phase: ValueError.*note\('trust'\) got a tensor of shape \(2,\), must be a scalar",
        ),
        (BadNotes, [], r"notes must be a dict of names and meanings, .* got \('trust',\)"),
        (BadOptions, [], r"options must be a dict of names and defaults, got \('weight',\)"),
        (Unbuildable, [], r"cannot be built: ZeroDivisionError in test_rehearsal\.py, line \d+: no\.$"),
    ],
)
def test_a_method_that_a_run_would_fail_with_is_refused_in_one_line(kind, overrides, says):
    with pytest.raises(UserError, match=rf"^method\.name: '{__name__}:{kind.__name__}'.*{says}"):
        rehearse("models=[mlp]", f"method.name={__name__}:{kind.__name__}", *overrides)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("weight=many", "weight: got 'many', must be a number like its default 1.0"),
        ("weight=true", "weight: got True, must be a number like its default 1.0"),
        ("name=3", "name: got 3, must be a text like its default 'a'"),
        ("deep=[1]", r"deep: got \[1\], must be a map like its default \{'a': 1\}"),
    ],
)
def test_an_option_of_another_kind_than_its_default_is_refused(option, says):
    with pytest.raises(UserError, match=rf"method\.options\.{says}"):
        rehearse(f"method.name={__name__}:Sound", f"method.options.{option}")


def test_the_mistake_of_two_classes_is_that_of_the_one_whose_line_failed():
    with pytest.raises(UserError, match=rf"^models: '{__name__}:Raises'"):
        rehearse(f"models=[{__name__}:Raises]", f"method.name={__name__}:Sound")


def test_a_rehearsal_leaves_the_random_numbers_as_they_were():
    def drawn() -> tuple[float, float, float]:
        return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002

    with rng.global_generators(1):
        expected = drawn()
    with rng.global_generators(1):
        rehearse(f"models=[{__name__}:Drawn]")
        assert drawn() == expected
