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
    (OptimizerConfig(name="adamw", weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    (
        OptimizerConfig(name="adamw", lr=0.02, betas=(0.8, 0.95), eps=1e-6),
        torch.optim.AdamW,
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0},
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
        (OptimizerConfig(name="adamw", weight_decay=0.1), {"first", "second"}),
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


def decay(optimizer, schedule, length):
    """The schedule of 24 steps in rounds of 4, as torch has it."""
    rates = torch.optim.lr_scheduler
    return {
        "constant": lambda: rates.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: rates.CosineAnnealingLR(optimizer, T_max=length),
        "linear": lambda: rates.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=length),
        "step": lambda: rates.StepLR(optimizer, step_size=2 * 4, gamma=0.3),
    }[schedule]()


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
def test_schedules_after_a_warmup_equal_those_of_torch_and_the_last_rate_stays(schedule, warmup):
    rounds, round_steps, lr = 6, 4, 0.5
    keys = {"constant": {}, "step": {"step_rounds": 2, "step_factor": 0.3}}.get(schedule, {})
    keys |= {} if schedule == "constant" else {"schedule_rounds": rounds}
    config = OptimizerConfig(name="sgd", lr=lr, schedule=schedule, warmup_steps=warmup, **keys)
    weights = torch.zeros(1, dtype=torch.float64)
    ours = optimizers.build(weights, config, round_steps)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    expected = decay(theirs, schedule, rounds * round_steps - warmup)
    if warmup:
        theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
        rising = torch.optim.lr_scheduler.LinearLR(theirs, start_factor=1 / (warmup + 1), total_iters=warmup)
        both = [rising, decay(theirs, schedule, rounds * round_steps - warmup)]
        expected = torch.optim.lr_scheduler.SequentialLR(theirs, both, milestones=[warmup])
    for _ in range(rounds * round_steps):
        before, rate = weights.item(), expected.get_last_lr()[0]
        ours.step(torch.ones(1, dtype=torch.float64))
        assert before - weights.item() == pytest.approx(rate, rel=1e-9, abs=1e-12)
        theirs.step()
        expected.step()
    for _ in range(10):
        before, final = weights.item(), 0.0 if schedule in ("cosine", "linear") else rate
        ours.step(torch.ones(1, dtype=torch.float64))
        assert before - weights.item() == pytest.approx(final, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("longest", [0.5, 4.0, 1e6])
def test_clipped_steps_equal_those_after_clip_grad_norm(name, longest):
    draw = torch.Generator().manual_seed(0)
    both, gradients = torch.randn(2, 16, generator=draw), torch.randn(5, 2, 16, generator=draw)
    references = [row.clone().requires_grad_() for row in both]
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.1, clip_norm=longest)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    alone, expected = [], []
    for row, reference in zip(both.clone(), references, strict=True):
        alone.append(optimizers.build(row, config))
        expected.append(kind([reference], lr=0.1, weight_decay=0.1, foreach=False))
    together = optimizers.joined([optimizers.build(row, config) for row in both], both)
    for gradient in gradients:
        together.step(gradient.clone())
        for row, one, reference, theirs in zip(gradient, alone, references, expected, strict=True):
            one.step(row.clone())
            reference.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([reference], longest)
            theirs.step()
    for row, one, reference in zip(both, alone, references, strict=True):
        assert torch.equal(one.parameters, reference.detach())
        assert torch.equal(row, reference.detach())


def test_optimisers_that_step_together_share_the_schedule():
    config = OptimizerConfig(name="sgd", lr=1.0, schedule="cosine", schedule_rounds=2)
    together = optimizers.joined([optimizers.build(torch.zeros(3), config, 2) for _ in range(2)], torch.zeros(2, 3))
    for rate in (1.0, 0.85355, 0.5, 0.14645, 0.0):
        before = together.parameters.clone()
        together.step(torch.ones(2, 3))
        torch.testing.assert_close(before - together.parameters, torch.full((2, 3), rate), rtol=1e-4, atol=1e-6)


def test_a_schedule_whose_length_is_open_is_refused():
    with pytest.raises(RuntimeError, match="not resolved"):
        optimizers.build(torch.zeros(1), OptimizerConfig(schedule="linear"))
