"""CPU seconds of a step of G models of one architecture, one by one and together, measured side by side.

    python -m benchmarks.batching

It measures 1, 4, 16 and 32 models in three ways, with one thread: one by one, as the simulator does by default; by
`models.stacked`, as `devices.batching=like` does on a GPU; and as it does on a CPU, if the model is a chain of linear
layers. It prints the median of each way's CPU time relative to one by one, with its range.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measuring import ratios, step_seconds
from fedh2l_mpi import losses
from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models import batched_linear, build, optimizers, stacked
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.sample_form import SampleForm

BATCH, REPEATS = 32, 9
CASES = [("mlp", 8), ("mlp", 28), ("lenet5", 28)]


def one_by_one(models: list[nn.Module], images: Tensor, labels: Tensor, config: OptimizerConfig) -> Callable[[], None]:
    flats = [FlatParameters(model) for model in models]
    movers = [optimizers.build(flat.vector, config) for flat in flats]

    def step() -> None:
        for model, flat, mover, own, targets in zip(models, flats, movers, images, labels, strict=True):
            mover.step(flat.gradient(losses.cross_entropy(model(own), targets)))

    return step


def together(models: list[nn.Module], images: Tensor, labels: Tensor, config: OptimizerConfig) -> Callable[[], None]:
    matrix = batched_linear.join_columns([torch.stack([FlatParameters(model).vector for model in models])])
    model, mover = batched_linear.BatchedModel(models[0], matrix), optimizers.build(matrix, config)
    return lambda: mover.step(model.gradient(losses.cross_entropy(model(images), labels)))


def by_vmap(models: list[nn.Module], images: Tensor, labels: Tensor, config: OptimizerConfig) -> Callable[[], None]:
    flats = [FlatParameters(model) for model in models]
    matrix = batched_linear.join_columns([torch.stack([flat.vector for flat in flats])])
    model, mover = stacked.StackedModel(models, flats[0], matrix), optimizers.build(matrix, config)
    return lambda: mover.step(model.gradient(losses.cross_entropy(model(images), labels)))


def main() -> None:
    torch.set_num_threads(1)
    config = OptimizerConfig(name="sgd", lr=0.01, momentum=0.9)
    print(f"{'model':14}{'G':>4}  {'one by one':>18}  {'stacked':>22}  {'batched_linear':>22}")
    for name, side in CASES:
        for count in (1, 4, 16, 32):
            images, labels = torch.randn(count, BATCH, 1, side, side), torch.randint(0, 10, (count, BATCH))
            ways = {"one": one_by_one, "vmap": by_vmap}
            if name == "mlp":
                ways["like"] = together
            steps = {
                way: make(
                    [build(name, SampleForm.image(1, side), 10, seed) for seed in range(count)], images, labels, config
                )
                for way, make in ways.items()
            }
            taken = step_seconds(steps, max(2, 32 // count), REPEATS)
            columns = [f"{statistics.median(taken['one']) / count * 1e6:9.0f} us each"]
            for way in ("vmap", "like"):
                text = ratios(taken[way], taken["one"]) if way in taken else "-"
                columns.append(f"{text:>22}")
            print(f"{name + ' ' + str(side) + 'x' + str(side):14}{count:4}  {columns[0]:>18}  {'  '.join(columns[1:])}")


if __name__ == "__main__":
    main()
