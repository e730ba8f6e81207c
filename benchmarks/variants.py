"""What compiling a model, or bfloat16, gains or costs a step here: CPU time, side by side in one run.

    python -m benchmarks.variants

For each model, minibatches of 32 MNIST-like images, one thread: as it is; by `torch.compile`, with the seconds that its
first step takes (the simulator does not offer it: this is why); and with `optimizer.precision=bfloat16`. Prints the
median of each way's CPU time over that of the model as it is, with its range.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measuring import spread
from fedh2l_mpi import objectives, optimizers
from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models import build, precision
from fedh2l_mpi.models.flat import FlatParameters

BATCH, STEPS, REPEATS = 32, 20, 9
MODELS = ("mlp", "lenet5", "cnn", "resnet8")


def stepping(name: str, way: str, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One optimiser step of a fresh model."""
    model = build(name, 1, 28, 10, 0).train()
    flat = FlatParameters(model)
    mover = optimizers.build(flat.vector, OptimizerConfig(name="sgd", lr=0.01, momentum=0.9))
    if way == "bfloat16":
        precision.mix(model)
    called: nn.Module = torch.compile(model) if way == "compiled" else model
    return lambda: mover.step(flat.gradient(objectives.cross_entropy(called(images), labels)))


def cpu_seconds(step: Callable[[], None]) -> float:
    begin = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - begin) / STEPS


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randn(BATCH, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    print(f"{'model':10}{'a step':>10}  {'compiled':>22}  {'first step':>10}  {'bfloat16':>22}")
    for name in MODELS:
        steps = {way: stepping(name, way, images, labels) for way in ("as it is", "compiled", "bfloat16")}
        begin = time.perf_counter()
        steps["compiled"]()
        first_s = time.perf_counter() - begin
        taken: dict[str, list[float]] = {way: [] for way in steps}
        for repeat in range(REPEATS + 1):
            for way, step in steps.items():
                seconds = cpu_seconds(step)
                if repeat:
                    taken[way].append(seconds)
        usual = taken.pop("as it is")
        compiled, mixed = (spread([a / b for a, b in zip(one, usual, strict=True)]) for one in taken.values())
        own_us = f"{statistics.median(usual) * 1e6:.0f} us"
        print(f"{name:10}{own_us:>10}  {compiled:>22}  {first_s:>8.1f} s  {mixed:>22}", flush=True)


if __name__ == "__main__":
    main()
