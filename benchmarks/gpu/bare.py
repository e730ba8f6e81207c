"""A bare loop: plain PyTorch that takes a run's steps in the most direct way, on any device.

Models step one after the other, each with torch.optim.Adam and two backward passes in a mutual step, in PyTorch's
default memory format. Pictures and row numbers lie on the device, so no step waits for the host. Of the program, it
uses the models' classes only.

Shape letters: B minibatch, S seed samples, N neighbours, C classes.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from benchmarks.gpu.pictures import CLASSES
from fedh2l_mpi.models import build
from fedh2l_mpi.runtime import arithmetic
from fedh2l_mpi.sample_form import SampleForm

BATCH, LR = 32, 1e-3
NEIGHBOURS = 2


@dataclass(frozen=True)
class Workload:
    """Participants of one architecture, and a round of theirs.

    Attributes
    ----------
    side : int
        Pixels of a picture's height, and of its width.
    private, seed_samples : int
        Private samples of each participant, and seed samples of a round.
    steps : int
        Steps of the local phase, and of the mutual phase.
    precision : {"float32", "tf32", "bfloat16"}
        As in `optimizer.precision`: float32 is IEEE's.
    method : {"fedh2l", "fedavg"}
        Mutual distillation on a ring, or steps on private pictures and the mean of all weights.
    """

    architecture: str
    channels: int
    side: int
    participants: int
    private: int
    seed_samples: int
    steps: int
    precision: str = "float32"
    method: str = "fedh2l"


def minibatches(samples: int, device: str) -> Iterator[Tensor]:
    """Yield rows (B,) on the device, epoch after epoch, without an epoch's incomplete last minibatch."""
    size = min(BATCH, samples)
    while True:
        yield from torch.randperm(samples).to(device).split(size)[: samples // size]


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let a GPU's matrix products and convolutions use TF32 or not; restore PyTorch's flags afterwards."""
    with arithmetic.restored():
        with warnings.catch_warnings(action="ignore"):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        # New names of PyTorch 2.9, which must agree with the old ones.
        cudnn: Any = torch.backends.cudnn
        for owner in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul) if hasattr(cudnn, "conv") else ():
            owner.fp32_precision = "tf32" if allowed else "ieee"
        yield


class Learner:
    """A model with its optimiser and its pictures on the device."""

    def __init__(self, work: Workload, device: str, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        form = SampleForm.image(work.channels, work.side)
        self.model: nn.Module = build(work.architecture, form, CLASSES, seed).train().to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR)
        self.images = torch.randn(work.private, work.channels, work.side, work.side, generator=draw).to(device)
        self.labels = torch.randint(CLASSES, (work.private,), generator=draw).to(device)
        self.rows = minibatches(work.private, device)
        self._device, self._mixes = device, work.precision == "bfloat16"

    def logits(self, images: Tensor) -> Tensor:
        """Return the model's logits, float32 (B, C)."""
        if not self._mixes:
            return self.model(images)
        # A context of its own for every pass: within one, PyTorch keeps the weights that it has rounded.
        with torch.autocast(self._device, torch.bfloat16):
            return self.model(images).float()

    def private_loss(self) -> Tensor:
        """Return the loss on the next private minibatch."""
        rows_B = next(self.rows)
        return cross_entropy(self.logits(self.images[rows_B]), self.labels[rows_B])

    def private_step(self) -> None:
        """Take one step on private pictures."""
        loss = self.private_loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def mutual_step(self, images_B: Tensor, labels_B: Tensor, theirs_NBC: Tensor) -> None:
        """Take one step with the gradients of both losses, combined so that neither loss rises."""
        parameters = list(self.model.parameters())
        private = torch.autograd.grad(self.private_loss(), parameters)
        logits_BC = self.logits(images_B)
        loss = cross_entropy(logits_BC, labels_B)
        for posteriors_BC in theirs_NBC:
            loss = loss + kl_div(log_softmax(logits_BC, 1), posteriors_BC, reduction="batchmean") / len(theirs_NBC)
        seed = torch.autograd.grad(loss, parameters)
        own, other, both = (_dot(a, b) for a, b in ((private, private), (seed, seed), (private, seed)))
        for parameter, a, b in zip(parameters, private, seed, strict=True):
            parameter.grad = a * (1 - (own + both).clamp(max=0) / own) + b * (1 - (other + both).clamp(max=0) / other)
        self.optimizer.step()


def _dot(one: Any, other: Any) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


class BareLoop:
    """All learners of a workload, and their rounds."""

    def __init__(self, work: Workload, device: str) -> None:
        self.work, self.device = work, device
        self.learners = [Learner(work, device, seed) for seed in range(work.participants)]
        first = self.learners[0]
        self.seed_images, self.seed_labels = first.images[: work.seed_samples], first.labels[: work.seed_samples]
        self.seed_rows = minibatches(work.seed_samples, device)

    def round(self) -> None:
        """Run the phases of a round: publish, local, mutual."""
        with tf32(self.work.precision == "tf32") if self.device == "cuda" else contextlib.nullcontext():
            if self.work.method == "fedavg":
                self._fedavg()
            else:
                self._fedh2l()

    def round_seconds(self) -> float:
        """Run a round, and return its seconds, until the device has finished."""
        self._wait()
        begin = time.perf_counter()
        self.round()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _fedh2l(self) -> None:
        posteriors = [self._publish(learner) for learner in self.learners]
        for learner in self.learners:
            for _ in range(self.work.steps):
                learner.private_step()
        count = len(self.learners)
        for index, learner in enumerate(self.learners):
            around = sorted({(index - 1) % count, (index + 1) % count} - {index})
            theirs_NSC = torch.stack([posteriors[other] for other in around]) if around else torch.empty(0)
            for _ in range(self.work.steps):
                rows_B = next(self.seed_rows)
                theirs_NBC = theirs_NSC[:, rows_B] if around else theirs_NSC
                learner.mutual_step(self.seed_images[rows_B], self.seed_labels[rows_B], theirs_NBC)

    @torch.no_grad()
    def _publish(self, learner: Learner) -> Tensor:
        learner.model.eval()
        posteriors_SC = learner.logits(self.seed_images).softmax(1)
        learner.model.train()
        return posteriors_SC

    def _fedavg(self) -> None:
        for learner in self.learners:
            for _ in range(2 * self.work.steps):
                learner.private_step()
        states = [learner.model.state_dict() for learner in self.learners]
        for name, value in states[0].items():
            if value.is_floating_point():
                mean = sum(state[name] for state in states) / len(states)
                for state in states:
                    state[name].copy_(mean)
