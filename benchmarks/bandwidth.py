"""Bytes that posteriors and parameters cost to exchange: real messages of two ranks, counted as MPI receives them.

    mpirun -n 2 python -m benchmarks.bandwidth

Nothing is trained. The arrays have the sizes that the methods exchange; their values do not affect the sizes.
"""

import sys
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from fedh2l_mpi import models
from fedh2l_mpi.exchange import ArraySpec, Exchange
from fedh2l_mpi.models.flat_parameters import FlatParameters, SharedState
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.units import size
from fedh2l_mpi.runtime.world import World, connect
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph

EDGE = Graph(2, [(0, 1)])
ROUNDS = 40
DEGREE = 2


@dataclass(frozen=True)
class Workload:
    """A data set's shapes and a model.

    `image_bytes` is the size of one seed image, which is distributed once, with one byte for each value.
    """

    name: str
    architecture: str
    channels: int
    side: int
    classes: int
    seed_set: int
    samples_per_round: int

    @property
    def image_bytes(self) -> int:
        return self.channels * self.side**2

    def parameters(self) -> int:
        """Number of values that parameter-sharing methods exchange of the model."""
        model = models.build(self.architecture, SampleForm.image(self.channels, self.side), self.classes, seed=0)
        return SharedState(model, FlatParameters(model)).size


# PACS has 9,991 pictures and Office-Home 15,588. A tenth of them is the seed set.
WORKLOADS = (
    Workload("LeNet-5, MNIST", "lenet5", 1, 28, 10, 600, 320),
    Workload("ResNet-18, PACS", "resnet18", 3, 224, 7, 999, 320),
    Workload("ResNet-18, Office-Home", "resnet18", 3, 224, 65, 1559, 320),
)


def measured_bytes(world: World, array: ArraySpec, filling: float) -> int:
    """Return the bytes that this rank gave to MPI for one array to one neighbour, in two rounds of an exchange."""
    exchange = Exchange(world, Hosting(2, 2), array, deadline_s=120.0)
    for round_index in range(2):
        exchange.start(round_index, EDGE, {world.rank: torch.full((array.rows, array.columns), filling)})
        received = exchange.finish()[world.rank]
        assert tuple(received.shape) == (1, array.rows, array.columns)
        assert exchange.close_round().sent == {world.rank: array.message_bytes()}
    return exchange.mpi_sent // 2


def main() -> None:
    """Exchange arrays, count bytes, and print them on rank 0."""
    world = connect()
    if world.size != 2:
        sys.exit("start me on two ranks: mpirun -n 2 python -m benchmarks.bandwidth")
    table = Table(title=f"one participant, {DEGREE} neighbours, measured messages", title_justify="left")
    for heading in (
        "", "posteriors\na round", "parameters\na round", "ratio", "seed set,\nonce", f"ratio over\n{ROUNDS} rounds",
        "break-even\nsamples a round", "break-even\nseed set",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if not heading else "right")
    for work in WORKLOADS:
        posteriors = ArraySpec("posteriors", work.samples_per_round, work.classes, sums_to_one=True)
        count = work.parameters()
        ours = DEGREE * measured_bytes(world, posteriors, 1 / work.classes)
        theirs = DEGREE * measured_bytes(world, ArraySpec("parameters", 1, count), 0.5)
        once = work.seed_set * (work.image_bytes + 8)
        # Break-even size of a seed set that every round uses whole; its distribution counts once.
        even = ROUNDS * theirs / (ROUNDS * DEGREE * 4 * work.classes + work.image_bytes + 8)
        table.add_row(
            work.name, size(ours), size(theirs), f"{theirs / ours:,.0f} x", size(once),
            f"{ROUNDS * theirs / (ROUNDS * ours + once):,.1f} x", f"{count / work.classes:,.0f}", f"{even:,.0f}",
        )  # fmt: skip
    if world.rank == 0:
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
