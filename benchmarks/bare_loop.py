"""The yardstick: FedH2L's steps on the workload as a plain PyTorch loop, one process, one thread, no framework.

It does the same optimiser steps, seed posteriors and evaluations as `fedh2l_mpi benchmarks/workload.yaml`, the way one
would write them down first: torch.optim, a backward pass for each loss, models in their default memory format.
It imports nothing of fedh2l_mpi.

    python benchmarks/bare_loop.py MNIST_FOLDER [ROUNDS]
"""

import gzip
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, kl_div

PARTICIPANTS, SAMPLES, SEED_SHARE, SEED_SAMPLES = 16, 1000, 20, 320
DOMAINS, STEP_DEG, TESTS = 4, 15.0, 250
LOCAL, MUTUAL, BATCH, EVERY = 10, 10, 32, 10


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


def lenet5() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def main(folder: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    pixels = read(folder, "train-images-idx3-ubyte", 16).reshape(-1, 784)
    labels = torch.tensor(read(folder, "train-labels-idx1-ubyte", 8).astype(np.int64))
    test_pixels = read(folder, "t10k-images-idx3-ubyte", 16).reshape(-1, 784)[:TESTS]
    test_labels = torch.tensor(read(folder, "t10k-labels-idx1-ubyte", 8).astype(np.int64))[:TESTS]
    rows = np.random.default_rng(0).permutation(len(labels))[: PARTICIPANTS * SAMPLES].reshape(PARTICIPANTS, SAMPLES)
    x = [images(pixels[own[SEED_SHARE:]], i % DOMAINS) for i, own in enumerate(rows)]
    y = [labels[torch.tensor(own[SEED_SHARE:])] for own in rows]
    seed_x = torch.cat([images(pixels[own[:SEED_SHARE]], i % DOMAINS) for i, own in enumerate(rows)])
    seed_y = torch.cat([labels[torch.tensor(own[:SEED_SHARE])] for own in rows])
    tests = [images(test_pixels, domain) for domain in range(DOMAINS)]
    models = [lenet5() for _ in range(PARTICIPANTS)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models]

    def private_loss(i: int) -> Tensor:
        batch = torch.randperm(len(y[i]))[:BATCH]
        return cross_entropy(models[i](x[i][batch]), y[i][batch])

    for r in range(rounds):
        with torch.no_grad():
            posteriors = [model.eval()(seed_x[:SEED_SAMPLES]).softmax(1) for model in models]
        for i, model in enumerate(models):
            model.train()
            for _ in range(LOCAL):
                optimizers[i].zero_grad()
                private_loss(i).backward()
                optimizers[i].step()
        for i, model in enumerate(models):
            teachers = [posteriors[(i - 1) % PARTICIPANTS], posteriors[(i + 1) % PARTICIPANTS]]
            order = torch.randperm(SEED_SAMPLES)
            for m in range(MUTUAL):
                optimizers[i].zero_grad()
                private_loss(i).backward()
                g = [p.grad.clone() for p in model.parameters()]
                optimizers[i].zero_grad()
                batch = order[m * BATCH % SEED_SAMPLES :][:BATCH]
                logits = model(seed_x[batch])
                own_log = logits.log_softmax(1)
                kl = sum(kl_div(own_log, teacher[batch], reduction="batchmean") for teacher in teachers) / len(teachers)
                (cross_entropy(logits, seed_y[batch]) + kl).backward()
                s = [p.grad for p in model.parameters()]
                gg = sum((a * a).sum() for a in g)
                ss = sum((a * a).sum() for a in s)
                gs = sum((a * b).sum() for a, b in zip(g, s, strict=True))
                a, b = 1 - min(float(gg + gs), 0) / float(gg), 1 - min(float(ss + gs), 0) / float(ss)
                for p, g_private, g_seed in zip(model.parameters(), g, s, strict=True):
                    p.grad = a * g_private + b * g_seed
                optimizers[i].step()
        if (r + 1) % EVERY == 0:
            accuracy = []
            for model in models:
                with torch.no_grad():
                    logits = [model.eval()(test) for test in tests]
                accuracy += [float((z.argmax(1) == test_labels).double().mean()) for z in logits]
                [float(cross_entropy(z, test_labels)) for z in logits]
            print(f"round {r + 1}: all-domain accuracy {np.mean(accuracy):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
