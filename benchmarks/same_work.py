"""Check that the bare loop does the same work as the simulator: run both, count their work, print their accuracy.

    python -m benchmarks.same_work MNIST_FOLDER [--participants 4] [--rounds 20]

It counts calls of PyTorch while the rounds run: optimiser steps, backward passes, and forward passes through whole
models with their images, with and without gradients. It exits with 1 if a count differs.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import bare_loop
from benchmarks.measuring import REPOSITORY
from benchmarks.performance import METHODS
from fedh2l_mpi import metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.models.optimizers import Sgd
from fedh2l_mpi.models.zoo import LeNet5
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.simulation import Simulation

COUNTED = (
    "optimiser steps",
    "backward passes",
    "forward passes with gradients",
    "images with gradients",
    "images without gradients",
)


@contextmanager
def counted(model: type[nn.Module]) -> Iterator[Counter]:
    """Count the calls of COUNTED by models of this class while the body runs."""
    counts: Counter = Counter()

    def forward(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if type(module) is model and inputs[0].dim() == 4:
            kind = "with gradients" if output.requires_grad else "without gradients"
            counts[f"forward passes {kind}"] += 1
            counts[f"images {kind}"] += len(inputs[0])

    def wrapped(name: str, function):
        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return call

    hook = nn.modules.module.register_module_forward_hook(forward)
    with (
        mock.patch.object(torch.optim.SGD, "step", wrapped("optimiser steps", torch.optim.SGD.step)),
        mock.patch.object(Sgd, "step", wrapped("optimiser steps", Sgd.step)),
        mock.patch.object(torch.autograd, "grad", wrapped("backward passes", torch.autograd.grad)),
        mock.patch.object(torch.autograd, "backward", wrapped("backward passes", torch.autograd.backward)),
    ):
        try:
            yield counts
        finally:
            hook.remove()


def of_bare_loop(root: Path, method: str, participants: int, rounds: int) -> tuple[Counter, float]:
    """Run the bare loop; return its counts and its last all-domain accuracy."""
    said = io.StringIO()
    with counted(nn.Sequential) as counts, contextlib.redirect_stdout(said):
        bare_loop.main(root, method, participants, rounds, lean=False)
    return counts, float(re.findall(r"accuracy ([0-9.]+)", said.getvalue())[-1])


def of_simulator(root: Path, method: str, participants: int, rounds: int) -> tuple[Counter, float]:
    """Run the simulator on one rank; return the same. Trial images before the rounds are not counted."""
    total: Counter = Counter()
    run = Simulation.run

    def counting(*arguments):
        with counted(LeNet5) as counts:
            asked = run(*arguments)
        total.update(counts)
        return asked

    settings = [f"data.root={root}", f"participants={participants}", f"rounds={rounds}", *METHODS[method]]
    words = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Simulation, "run", counting):
        config = str(REPOSITORY / "benchmarks/workload.yaml")
        commands.execute(commands.parse([config, *words, "--out", f"{folder}/run", "--quiet"]), World(None))
        accuracy = metrics.read(Path(folder) / "run/metrics.h5")["accuracy_all"][-1]
    return total, float(np.mean(accuracy))


def main() -> int:
    """Count and print the work of both; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=lambda text: Path(text).resolve(), help="folder of MNIST's IDX files")
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    differs = False
    for method in METHODS:
        asked = (options.root, method, options.participants, options.rounds)
        (bare, bare_accuracy), (ours, our_accuracy) = of_bare_loop(*asked), of_simulator(*asked)
        table = Table(title=f"{method}, {options.participants} participants, {options.rounds} rounds")
        for heading in ("", "bare loop", "simulator"):
            table.add_column(heading, justify="right" if heading else "left")
        for name in COUNTED:
            table.add_row(name, f"{bare[name]:,}", f"{ours[name]:,}")
            differs |= bare[name] != ours[name] or bare[name] == 0
        table.add_row("all-domain accuracy at the end", f"{bare_accuracy:.3f}", f"{our_accuracy:.3f}")
        Console().print(table)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
