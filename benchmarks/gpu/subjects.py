"""Parts of the program to measure: a participant on the device, with random images, and a round for it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.findings import DEVICE, TINY
from fedh2l_mpi.sample_form import SampleForm


def config_of(*overrides: str) -> Any:
    """Return the default config on this device, with overrides, for one rank."""
    from fedh2l_mpi.config import loading

    return loading.load(None, [f"devices.kind={DEVICE}", *overrides]).resolved(1, launched=False)


@contextlib.contextmanager
def computing_as(precision: str) -> Iterator[None]:
    """Compute as a run with this `optimizer.precision` does, and restore PyTorch's settings afterwards."""
    import torch

    from fedh2l_mpi.runtime import arithmetic

    with arithmetic.restored():
        arithmetic.set_up(torch.device(DEVICE), precision)
        yield


def mix_if(precision: str, model: Any) -> None:
    """Let a model on the device compute as `optimizer.precision` asks, where that is the model's own matter."""
    from fedh2l_mpi.models import mixed_precision

    if precision == "bfloat16":
        mixed_precision.mix(model)


def participant_of(
    architecture: str,
    channels: int,
    side: int,
    *overrides: str,
    samples: int = 1000,
    index: int = 0,
    augment: Any = None,
) -> Any:
    """Return a participant of 10 classes on the device, with random images."""
    import torch

    from fedh2l_mpi.data.labelled import Labelled
    from fedh2l_mpi.models import build
    from fedh2l_mpi.participant import Participant

    config = config_of(*overrides)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(samples, channels, side, side, generator=draw).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (samples,), generator=draw)
    data = Labelled(images.to(DEVICE), labels.to(DEVICE))
    model = build(architecture, SampleForm.image(channels, side), 10, 0)
    return Participant(
        index, architecture, model, data, data, config.optimizer, config.evaluation, config.seed, augment
    )


def round_of(participant: Any, seed_samples: int, neighbours: int = 2) -> tuple[Any, Any]:
    """Return a round whose seed samples are the participant's first ones, and posteriors of its neighbours."""
    import torch

    from fedh2l_mpi.config import SeedSetConfig
    from fedh2l_mpi.data.labelled import Labelled
    from fedh2l_mpi.data.seed_set import SeedRound, SeedSet
    from fedh2l_mpi.methods import Round
    from fedh2l_mpi.topology import Graph

    labels = participant.private.labels[:seed_samples]
    samples = Labelled(participant.private.stored[:seed_samples], labels)
    seed = SeedRound(0, samples.stored, labels, labels)
    seed_set = SeedSet(samples, len(samples), 10, SeedSetConfig(views="none"), 0)
    graph = Graph(neighbours + 1, [(0, other) for other in range(1, neighbours + 1)])
    draw = torch.Generator().manual_seed(1)
    theirs = torch.rand(neighbours, seed_samples, 10, generator=draw).softmax(dim=-1)
    return Round(0, graph, seed, (len(participant.private),) * (neighbours + 1), seed_set, 40), theirs


def forget_notes(participant: Any) -> None:
    """Take the means of what its steps noted, as a round does, so that notes do not pile up."""
    participant.noted_means()


@dataclass(frozen=True)
class Phases:
    """The phases of one participant under the default method, as a round runs them.

    Attributes
    ----------
    steps : int
        Steps of the local phase, and of the mutual phase.
    """

    method: Any
    participant: Any
    now: Any
    theirs: Any
    steps: int

    def publish(self) -> None:
        """Compute the posteriors on the seed samples and bring them to the host."""
        self.method.publish(self.participant, self.now)

    def local(self) -> None:
        """Run the local phase."""
        self.method.local_phase(self.participant, self.now)
        forget_notes(self.participant)

    def mutual(self) -> None:
        """Run the mutual phase."""
        self.method.mutual_phase(self.participant, self.now, self.theirs)
        forget_notes(self.participant)


def phases_of(
    architecture: str, channels: int, side: int, *overrides: str, steps: int | None = None, augment: Any = None
) -> Phases:
    """Return the phases of a participant on the device; photographs have fewer samples than digits."""
    from fedh2l_mpi import methods

    steps = steps or (2 if TINY else 10)
    keys = (f"method.local_steps={steps}", f"method.mutual_steps={steps}", *overrides)
    is_small = side < 100
    samples = 1000 if is_small else 200
    participant = participant_of(architecture, channels, side, *keys, samples=samples, augment=augment)
    now, theirs = round_of(participant, 320 if is_small else 100)
    return Phases(methods.build(config_of(*keys)), participant, now, theirs, steps)
