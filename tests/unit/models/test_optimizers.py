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


@pytest.mark.parametrize(("config", "theirs", "options"), CASES)
def test_the_cosine_schedule_equals_that_of_torch_and_then_nothing_moves(config, theirs, options):
    rounds, round_steps = 5, 6
    scheduled = config.model_copy(update={"schedule": "cosine", "schedule_rounds": rounds})
    draw = torch.Generator().manual_seed(0)
    ours = torch.randn(13, dtype=torch.float64, generator=draw)
    reference = ours.clone().requires_grad_()
    optimizer, expected = optimizers.build(ours, scheduled, round_steps), theirs([reference], foreach=False, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(expected, T_max=rounds * round_steps)
    for step in range(rounds * round_steps):
        rate = optimizers.learning_rate(scheduled, step, rounds * round_steps)
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        reference.grad = torch.randn(13, dtype=torch.float64, generator=draw)
        optimizer.step(reference.grad.clone())
        expected.step()
        schedule.step()
    torch.testing.assert_close(ours, reference.detach(), rtol=1e-9, atol=1e-12)
    last = ours.clone()
    optimizer.step(torch.ones(13, dtype=torch.float64))
    assert torch.equal(ours, last)


def test_optimisers_that_step_together_share_the_schedule():
    config = OptimizerConfig(name="sgd", lr=1.0, schedule="cosine", schedule_rounds=2)
    together = optimizers.joined([optimizers.build(torch.zeros(3), config, 2) for _ in range(2)], torch.zeros(2, 3))
    for rate in (1.0, 0.85355, 0.5, 0.14645, 0.0):
        before = together.parameters.clone()
        together.step(torch.ones(2, 3))
        torch.testing.assert_close(before - together.parameters, torch.full((2, 3), rate), rtol=1e-4, atol=1e-6)


def test_a_schedule_whose_length_is_open_is_refused():
    with pytest.raises(RuntimeError, match="not resolved"):
        optimizers.build(torch.zeros(1), OptimizerConfig(schedule="cosine"))
