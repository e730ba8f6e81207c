"""CPU time of alternative ways to make a step, measured side by side.

    python -m benchmarks.variants

Each model trains on minibatches of 32 images of 28 x 28 with one thread, in three ways. The first is `torch.compile`,
with the seconds of its first step when nothing is cached. The second is `optimizer.precision=bfloat16`. The third
computes both gradients of a mutual step from one forward pass of both minibatches. The simulator offers only the
second, because of these numbers. The median of each way's CPU time is printed relative to the usual way, with its
range.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measuring import ratios, step_seconds
from fedh2l_mpi import losses
from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models import build, mixed_precision, optimizers
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.sample_form import SampleForm

BATCH, STEPS, REPEATS = 32, 20, 9
MODELS = ("mlp", "lenet5", "cnn", "resnet8")


def stepping(name: str, way: str, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that makes one optimiser step of a new model."""
    model = build(name, SampleForm.image(1, 28), 10, 0).train()
    flat = FlatParameters(model)
    mover = optimizers.build(flat.vector, OptimizerConfig(name="sgd", lr=0.01, momentum=0.9))
    if way == "bfloat16":
        mixed_precision.mix(model)
    called: Callable[[Tensor], Tensor] = torch.compile(model) if way == "compiled" else model
    return lambda: mover.step(flat.gradient(losses.cross_entropy(called(images), labels)))


def two_gradients(name: str, together: bool, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a function that computes the gradients of a private and a seed minibatch at the same weights."""
    model = build(name, SampleForm.image(1, 28), 10, 0).train()
    flat, both = FlatParameters(model), torch.cat([images, images])

    def loss(logits: Tensor) -> Tensor:
        return losses.cross_entropy(logits, labels)

    def from_one_pass() -> object:
        private, seed = model(both).split(BATCH)
        return flat.gradient(loss(private), again=True), flat.gradient(loss(seed))

    return from_one_pass if together else lambda: [flat.gradient(loss(model(images))) for _ in range(2)]


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randn(BATCH, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    print(
        f"{'model':10}{'a step':>10}  {'compiled':>22}  {'first step':>10}  {'bfloat16':>22}  {'one forward pass':>22}"
    )
    with tempfile.TemporaryDirectory() as nothing_cached:
        # The start of the compiler itself belongs to no model, so it is not measured.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = nothing_cached
        torch.compile(torch.nn.Linear(3, 2))(torch.randn(5, 3)).sum().backward()
    for name in MODELS:
        steps: dict[str, Callable[[], object]] = {
            way: stepping(name, way, images, labels) for way in ("usual", "compiled", "bfloat16")
        }
        steps |= {way: two_gradients(name, way == "together", images, labels) for way in ("apart", "together")}
        with tempfile.TemporaryDirectory() as nothing_cached:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = nothing_cached
            begin = time.perf_counter()
            steps["compiled"]()
            first_s = time.perf_counter() - begin
        taken = step_seconds(steps, STEPS, REPEATS)
        compiled, mixed, together = (
            ratios(taken[way], taken[over])
            for way, over in (("compiled", "usual"), ("bfloat16", "usual"), ("together", "apart"))
        )
        own_us = f"{statistics.median(taken['usual']) * 1e6:.0f} us"
        print(f"{name:10}{own_us:>10}  {compiled:>22}  {first_s:>8.1f} s  {mixed:>22}  {together:>22}", flush=True)


if __name__ == "__main__":
    main()
