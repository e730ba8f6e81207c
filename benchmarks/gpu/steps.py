"""Parts that time training steps inside one process, next to a plain PyTorch loop in the same process."""

import collections
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import bare
from benchmarks.gpu.findings import DEVICE, INFO, ON_GPU, TINY, Report
from benchmarks.gpu.stopwatch import seconds_of, short
from benchmarks.gpu.subjects import computing_as, config_of, participant_of, phases_of
from fedh2l_mpi.sample_form import SampleForm

PHOTO_SIDE = 64 if TINY else 224
# Architecture, channels and side of the images.
CASES = [("mlp", 1, 28), ("lenet5", 1, 28), ("cnn", 1, 28), ("resnet18", 3, 8 if TINY else 224)]
BATCH = 32
# A private step of this recipe is that of the bare loop: it has no seed labels and no averaged weights.
CLASSIC = "recipe=classic"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def learner_of(name: str, channels: int, side: int, fused: bool = False) -> bare.Learner:
    """Return a model of the bare loop, whose Adam may be PyTorch's fused one."""
    import torch

    samples = 1000 if side < 100 else 200
    work = bare.Workload(name, channels, side, participants=1, private=samples, seed_samples=BATCH, steps=1)
    learner = bare.Learner(work, DEVICE, seed=0)
    learner.optimizer = torch.optim.Adam(learner.model.parameters(), lr=bare.LR, fused=fused)
    return learner


def profiled(action: Callable[[], None], steps: int) -> dict[str, float]:
    """Return kernels, copies and waits of one step, and the seconds that the GPU is busy, from PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    action()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]) as profiler:
        action()
    counts: collections.Counter[str] = collections.Counter()
    busy_us = 0.0
    for event in profiler.events():
        if "CUDA" in str(event.device_type):
            is_copy = event.name.lower().startswith(("memcpy", "memset"))
            counts["copies" if is_copy else "kernels"] += 1
            busy_us += event.time_range.elapsed_us()
        elif event.name in WAITS:
            counts["waits"] += 1
        elif event.name.startswith("aten::") and not ON_GPU:
            counts["operations"] += 1
    return {**{name: count / steps for name, count in counts.items()}, "busy_us": busy_us / steps}


def speed(report: Report) -> None:
    """Time the program's steps and the bare loop's; count the kernels of a step; report how busy the GPU is."""
    for name, channels, side in CASES:
        with report.failure_of(f"{name} at {side}"), computing_as("float32"):
            _report_speed(report, name, channels, side)
    name, channels, side = CASES[-1]
    for precision in ("tf32", "bfloat16"):
        with report.failure_of(f"{name} in {precision}"), computing_as(precision):
            phases = phases_of(name, channels, side, CLASSIC, f"optimizer.precision={precision}")
            local_s, mutual_s = (seconds_of(action) / phases.steps for action in (phases.local, phases.mutual))
            report.add(f"{name} at {side}, {precision}", INFO, f"private {short(local_s)}, mutual {short(mutual_s)}")
    with report.failure_of("evaluation"), computing_as("float32"):
        _report_evaluation(report)


def _report_speed(report: Report, name: str, channels: int, side: int) -> None:
    with bare.tf32(False):
        plain_s, fused_s = (seconds_of(learner_of(name, channels, side, fused).private_step) for fused in (False, True))
    phases = phases_of(name, channels, side, CLASSIC)
    local_s, mutual_s = (seconds_of(action) / phases.steps for action in (phases.local, phases.mutual))
    report.add(
        f"{name} at {side}, private step",
        INFO,
        f"{short(local_s)}, {1 / local_s:.0f}/s; bare loop {short(plain_s)}, ratio {local_s / plain_s:.2f} "
        f"(to fused Adam {local_s / fused_s:.2f})",
        program_s=local_s,
        bare_s=plain_s,
        fused_s=fused_s,
    )
    detail = f"{short(mutual_s)}, {1 / mutual_s:.0f}/s, {mutual_s / local_s:.1f} private ones"
    report.add(f"{name} at {side}, mutual step", INFO, detail, program_s=mutual_s)
    for kind, action, wall_s in (("private", phases.local, local_s), ("mutual", phases.mutual, mutual_s)):
        numbers = profiled(action, phases.steps)
        counts = ", ".join(f"{count:.0f} {what}" for what, count in numbers.items() if what != "busy_us")
        share = numbers["busy_us"] / (1e6 * wall_s)
        detail = f"{counts}; GPU busy {numbers['busy_us']:.0f} us ({100 * share:.0f} % of the step)"
        report.add(f"{name} at {side}, {kind}: launches", INFO, detail, **numbers)


def _report_evaluation(report: Report) -> None:
    """Time a forward pass over many samples, in parts of the default size and in larger ones."""
    parts = (16, 32) if TINY else (128, 1024)
    for name, channels, side in (("lenet5", 1, 28), ("resnet18", 3, 32)):
        times = []
        for size in parts:
            keys = (f"evaluation.batch_size={size}",)
            participant = participant_of(name, channels, side, *keys, samples=2 * parts[-1])
            times.append(seconds_of(lambda p=participant: p.logits(p.private.stored), 0.3, 3))
        detail = ", ".join(f"{short(time)} in parts of {size}" for size, time in zip(parts, times, strict=True))
        report.add(f"{2 * parts[-1]} samples of {name}", INFO, f"{detail}: {times[0] / times[1]:.2f}", seconds=times)


def layout(report: Report) -> None:
    """Time forward and backward passes in channels last and in the default order, by kind of arithmetic.

    The program always uses channels last, which was measured on CPUs.
    """
    import torch

    cases = [("lenet5", 1, 28), ("cnn", 1, 28), ("resnet8", 1, 28), ("mobilenet", 3, 64), ("resnet18", 3, PHOTO_SIDE)]
    for precision in ("float32", "tf32", "bfloat16"):
        ratios, numbers = [], {}
        for name, channels, side in cases[:1] if TINY else cases:
            with report.failure_of(f"layout of {name}, {precision}"), computing_as(precision):
                orders = (torch.contiguous_format, torch.channels_last)
                taken = [
                    seconds_of(_pass(name, channels, side, order, precision == "bfloat16"), 0.25, 3) for order in orders
                ]
                ratios.append(f"{name} {taken[1] / taken[0]:.2f} ({short(taken[1])})")
                numbers[name] = taken
        report.add(f"channels last over default, {precision}", INFO, ", ".join(ratios), seconds=numbers)


def _pass(name: str, channels: int, side: int, order: Any, is_mixed: bool) -> Callable[[], object]:
    import torch

    from fedh2l_mpi import losses
    from fedh2l_mpi.models import build

    draw = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, channels, side, side, generator=draw).to(DEVICE).contiguous(memory_format=order)
    labels = torch.randint(10, (BATCH,), generator=draw).to(DEVICE)
    model = build(name, SampleForm.image(channels, side), 10, 0).train().to(DEVICE, memory_format=order)
    parameters = list(model.parameters())

    def gradient() -> object:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=is_mixed):
            loss = losses.cross_entropy(model(images).float(), labels)
        return torch.autograd.grad(loss, parameters)

    return gradient


def photo(report: Report) -> None:
    """Time views and augmentation on the device and on one core, and their share of a training step."""
    import numpy as np
    import torch

    from fedh2l_mpi.data.augmentation import Affine, Photo

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    cases = [
        ("photo", Photo(), (BATCH, 3, PHOTO_SIDE, PHOTO_SIDE)),
        ("affine", Affine(), (BATCH, 1, 28, 28)),
        ("affine", Affine(), (320, 1, 28, 28)),
        ("photo", Photo(), (32 if TINY else 320, 3, PHOTO_SIDE, PHOTO_SIDE)),
    ]
    for name, transform, shape in cases:
        with report.failure_of(f"{name} {shape}"):
            images = torch.randn(shape, generator=draw).contiguous(memory_format=torch.channels_last)
            here_s, core_s = (
                seconds_of(lambda x=x, t=transform: t(x, np.random.default_rng(0)), 0.2, 3, 1)
                for x in (images.to(DEVICE), images)
            )
            detail = f"{short(here_s)} on {DEVICE}, {short(core_s)} on a core, {core_s / here_s:.0f} times"
            report.add(f"{name}, {' x '.join(map(str, shape))}", INFO, detail, seconds=[here_s, core_s])
    with report.failure_of("share of augmentation"):
        name, channels, side = CASES[-1]
        plain_s, augmented_s = (_private_step_seconds(name, channels, side, augment) for augment in (None, Photo()))
        detail = f"{short(augmented_s)} against {short(plain_s)}: {augmented_s / plain_s:.2f}"
        report.add(f"a {name} step, augmented", INFO, detail)


def _private_step_seconds(name: str, channels: int, side: int, augment: Any) -> float:
    from fedh2l_mpi import methods

    method = methods.build(config_of())
    participant = participant_of(name, channels, side, samples=200, augment=augment)
    return seconds_of(lambda: method.private_steps(participant, 2), 0.4, 3, 1) / 2
