"""The flat optimisers against torch.optim, bit for bit."""

import pytest
import torch

from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models import optimizers

CASES = [
    (OptimizerConfig(name="adam"), torch.optim.Adam, {}),
    (
        OptimizerConfig(name="adam", lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.01),
        torch.optim.Adam,
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01},
    ),
    (OptimizerConfig(name="sgd", lr=0.1), torch.optim.SGD, {"lr": 0.1}),
    (
        OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.001),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.001},
    ),
]


@pytest.mark.parametrize(("config", "theirs", "options"), CASES)
@pytest.mark.parametrize("size", [1, 13, 61_706])
def test_thirty_steps_equal_those_of_torch(config, theirs, options, size):
    draw = torch.Generator().manual_seed(size)
    ours = torch.randn(size, generator=draw)
    reference = ours.clone().requires_grad_()
    optimizer, expected = optimizers.build(ours, config), theirs([reference], foreach=False, **options)
    for _ in range(30):
        reference.grad = torch.randn(size, generator=draw)
        optimizer.step(reference.grad.clone())
        expected.step()
    assert torch.equal(ours, reference.detach())
    assert optimizer.steps == 30


def test_the_state_is_what_moves():
    weights = torch.ones(4)
    for config, names in (
        (OptimizerConfig(name="adam"), {"first", "second"}),
        (OptimizerConfig(name="sgd", momentum=0.9), {"velocity"}),
        (OptimizerConfig(name="sgd"), set()),
    ):
        optimizer = optimizers.build(weights, config)
        optimizer.step(torch.ones(4))
        assert set(optimizer.state()) == names
        assert all(value.abs().min() > 0 for value in optimizer.state().values())
