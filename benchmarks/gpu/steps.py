"""Parts that time training steps inside one process, next to a plain PyTorch loop in the same process."""

import collections
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.findings import DEVICE, INFO, ON_GPU, TINY, Report
from benchmarks.gpu.stopwatch import seconds_of, short
from benchmarks.gpu.subjects import config_of, participant_of, phases_of
from fedh2l_mpi.sample_form import SampleForm

PHOTO_SIDE = 64 if TINY else 224
# Architecture, channels and side of the images.
CASES = [("mlp", 1, 28), ("lenet5", 1, 28), ("cnn", 1, 28), ("resnet18", 3, 8 if TINY else 224)]
BATCH = 32
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def bare_step(name: str, channels: int, side: int, fused: bool = False) -> Callable[[], None]:
    """Return one step of a plain PyTorch loop: default memory format, torch.optim, row numbers on the device."""
    import torch

    from fedh2l_mpi.models import build

    draw = torch.Generator().manual_seed(0)
    images = torch.randn(1000 if side < 100 else 200, channels, side, side, generator=draw).to(DEVICE)
    labels = torch.randint(10, (len(images),), generator=draw).to(DEVICE)
    model = build(name, SampleForm.image(channels, side), 10, 0).train().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    rows = torch.randperm(len(images), generator=draw)[:BATCH].to(DEVICE)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


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
        with report.failure_of(f"{name} at {side}"):
            _report_speed(report, name, channels, side)
    with report.failure_of("resnet18 in bfloat16"):
        name, channels, side = CASES[-1]
        phases = phases_of(name, channels, side, "optimizer.precision=bfloat16")
        local_s, mutual_s = (seconds_of(action) / phases.steps for action in (phases.local, phases.mutual))
        report.add(f"{name} at {side}, bfloat16", INFO, f"private {short(local_s)}, mutual {short(mutual_s)}")


def _report_speed(report: Report, name: str, channels: int, side: int) -> None:
    plain_s = seconds_of(bare_step(name, channels, side))
    fused_s = seconds_of(bare_step(name, channels, side, fused=True))
    phases = phases_of(name, channels, side)
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


def layout(report: Report) -> None:
    """Time forward and backward passes in channels last and in the default order, by kind of arithmetic.

    The program always uses channels last, which was measured on CPUs.
    """
    import torch

    cases = [("lenet5", 1, 28), ("cnn", 1, 28), ("resnet8", 1, 28), ("mobilenet", 3, 64), ("resnet18", 3, PHOTO_SIDE)]
    for arithmetic in ("TF32", "ieee", "bfloat16"):
        torch.backends.cudnn.allow_tf32 = arithmetic == "TF32"
        ratios, numbers = [], {}
        for name, channels, side in cases[:1] if TINY else cases:
            with report.failure_of(f"layout of {name}, {arithmetic}"):
                orders = (torch.contiguous_format, torch.channels_last)
                taken = [
                    seconds_of(_pass(name, channels, side, order, arithmetic == "bfloat16"), 0.25, 3)
                    for order in orders
                ]
                ratios.append(f"{name} {taken[1] / taken[0]:.2f} ({short(taken[1])})")
                numbers[name] = taken
        report.add(f"channels last over default, {arithmetic}", INFO, ", ".join(ratios), seconds=numbers)
    torch.backends.cudnn.allow_tf32 = True


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
