"""Baseline of the cost figures: the workload as a plain PyTorch loop in one process with one thread.

It makes the same optimiser steps, seed posteriors and evaluations as `fedh2l_mpi benchmarks/workload.yaml`, in the most
direct way: tensors in memory, torch.optim, a backward pass for each loss, the default memory format. It imports nothing
from fedh2l_mpi. `--lean` changes two things: tensors are channels last, and pooling comes before ReLU.

    python benchmarks/bare_loop.py MNIST_FOLDER [--method dml|gem] [--participants 16] [--rounds 20] [--lean]
"""

import argparse
import gzip
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, kl_div

SAMPLES, SEED_SAMPLES = 1000, 320
DOMAINS, STEP_DEG, TESTS = 4, 15.0, 250
# Local steps use private data. Mutual steps of `dml` use seed images only, those of `gem` use both.
STEPS = {"dml": (32, 10), "gem": (10, 10)}
BATCH, EVERY = 32, 10


def read(folder: Path, name: str, header: int) -> np.ndarray:
    for path, opener in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if path.exists():
            with opener(path, "rb") as file:
                return np.frombuffer(file.read(), np.uint8)[header:]
    raise SystemExit(f"{folder} has no {name}")


def images(pixels: np.ndarray, domain: int) -> Tensor:
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
    if domain:
        angle = math.radians(STEP_DEG * domain)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
        x = grid_sample(x, affine_grid(turn.expand(len(x), 2, 3), list(x.shape), False), align_corners=False)
    return (x - 0.1307) / 0.3081


def lenet5() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def lean_lenet5() -> nn.Sequential:
    conv1, relu1, pool1, conv2, relu2, pool2, *rest = lenet5()
    model = nn.Sequential(conv1, pool1, relu1, conv2, pool2, relu2, *rest)
    return model.to(memory_format=torch.channels_last)


def minibatches(samples: int) -> Iterator[Tensor]:
    """Yield minibatches of one epoch after the other, each in a new order, without an incomplete last one."""
    while True:
        yield from torch.randperm(samples).split(BATCH)[: samples // BATCH]


def main(folder: Path, method: str, participants: int, rounds: int, lean: bool) -> None:
    torch.set_num_threads(1)
    pixels = read(folder, "train-images-idx3-ubyte", 16).reshape(-1, 784)
    labels = torch.tensor(read(folder, "train-labels-idx1-ubyte", 8).astype(np.int64))
    test_pixels = read(folder, "t10k-images-idx3-ubyte", 16).reshape(-1, 784)[:TESTS]
    test_y = torch.tensor(read(folder, "t10k-labels-idx1-ubyte", 8).astype(np.int64))[:TESTS]
    rows = np.random.default_rng(0).permutation(len(labels))[: SEED_SAMPLES + participants * SAMPLES]
    seed_rows, private_rows = rows[:SEED_SAMPLES], rows[SEED_SAMPLES:].reshape(participants, SAMPLES)
    x = [images(pixels[own], i % DOMAINS) for i, own in enumerate(private_rows)]
    y = [labels[torch.tensor(own)] for own in private_rows]
    seed_x = torch.cat([images(pixels[seed_rows[domain::DOMAINS]], domain) for domain in range(DOMAINS)])
    seed_y = torch.cat([labels[torch.tensor(seed_rows[domain::DOMAINS])] for domain in range(DOMAINS)])
    tests = [images(test_pixels, domain) for domain in range(DOMAINS)]
    models = [lean_lenet5() if lean else lenet5() for _ in range(participants)]
    if lean:
        last = torch.channels_last
        x, tests = [t.to(memory_format=last) for t in x], [t.to(memory_format=last) for t in tests]
        seed_x = seed_x.to(memory_format=last)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models]
    private_batches = [minibatches(SAMPLES) for _ in models]
    local_steps, mutual_steps = STEPS[method]

    def private_loss(i: int) -> Tensor:
        batch = next(private_batches[i])
        return cross_entropy(models[i](x[i][batch]), y[i][batch])

    def dml_step(i: int, batch: Tensor, teachers: list[Tensor]) -> None:
        logits = models[i](seed_x[batch])
        loss = cross_entropy(logits, seed_y[batch])
        for teacher in teachers:
            loss = loss + kl_div(logits.log_softmax(1), teacher[batch], reduction="batchmean")
        optimizers[i].zero_grad()
        loss.backward()
        optimizers[i].step()

    def gem_step(i: int, batch: Tensor, teachers: list[Tensor]) -> None:
        parameters = list(models[i].parameters())
        optimizers[i].zero_grad()
        private_loss(i).backward()
        private = [p.grad.clone() for p in parameters]
        logits = models[i](seed_x[batch])
        loss = cross_entropy(logits, seed_y[batch])
        for teacher in teachers:
            kl = kl_div(logits.log_softmax(1), teacher[batch], reduction="batchmean")
            loss = loss + kl / len(teachers)
        optimizers[i].zero_grad()
        loss.backward()
        seed = [p.grad for p in parameters]
        pp = float(sum((g * g).sum() for g in private))
        ss = float(sum((g * g).sum() for g in seed))
        ps = float(sum((g * h).sum() for g, h in zip(private, seed, strict=True)))
        a, b = 1 - min(pp + ps, 0) / pp, 1 - min(ss + ps, 0) / ss
        for p, g, h in zip(parameters, private, seed, strict=True):
            p.grad = a * g + b * h
        optimizers[i].step()

    mutual_step = {"dml": dml_step, "gem": gem_step}[method]
    for r in range(rounds):
        with torch.no_grad():
            posteriors = [model.eval()(seed_x).softmax(1) for model in models]
        for i, model in enumerate(models):
            model.train()
            for _ in range(local_steps):
                loss = private_loss(i)
                optimizers[i].zero_grad()
                loss.backward()
                optimizers[i].step()
        for i in range(participants):
            teachers = [posteriors[(i - 1) % participants], posteriors[(i + 1) % participants]]
            for batch in torch.randperm(SEED_SAMPLES).split(BATCH)[:mutual_steps]:
                mutual_step(i, batch, teachers)
        if (r + 1) % EVERY == 0 or r == rounds - 1:
            accuracies, losses = [], []
            for model in models:
                with torch.no_grad():
                    logits = [model.eval()(test) for test in tests]
                accuracies += [float((z.argmax(1) == test_y).double().mean()) for z in logits]
                losses += [float(cross_entropy(z, test_y)) for z in logits]
            print(f"round {r + 1}: all-domain accuracy {np.mean(accuracies):.3f}, loss {np.mean(losses):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--method", choices=STEPS, default="dml")
    parser.add_argument("--participants", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lean", action="store_true", help="channels-last tensors, pooling before ReLU")
    main(**vars(parser.parse_args()))
