"""Parts about the machine and its use: rates and memory of the GPU, the memory estimate, and what waits for the GPU."""

import collections
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from benchmarks.gpu import bare
from benchmarks.gpu.findings import DEVICE, FAIL, INFO, ON_GPU, PACK, SKIP, TINY, Report
from benchmarks.gpu.runs import command, run_here, wait_for
from benchmarks.gpu.stopwatch import seconds_of, short, synchronize
from benchmarks.gpu.subjects import Phases, phases_of

PACKAGES = ("numpy", "h5py", "PyYAML", "pydantic", "networkx", "rich", "torch", "scikit-learn", "scipy", "mpi4py")
PACKAGES += ("xarray", "h5netcdf", "matplotlib", "jinja2", "pyarrow", "pillow", "pytest", "torchvision")
MIB, GIB = 2**20, 2**30
# Estimate and peak of a small run differ by rounding and by the workspaces of libraries.
NEGLIGIBLE_BYTES = 64 * MIB
# Opening the GPUs' device files early is what lets processes share their imports.
OPEN_DEVICES = """
import time
from fedh2l_mpi.runtime.shared_imports import process_state
begin = time.perf_counter()
files = process_state.device_files()
print(f"{1e3 * (time.perf_counter() - begin):.1f} ms, {len(files)} files")
"""


class DeviceMemory:
    """The most memory of the GPU that was in use in a context, over what was in use when it began [bytes].

    The driver counts all processes. Without a GPU, the peak is 0.
    """

    def __init__(self, every_s: float = 0.02) -> None:
        self.peak = 0
        self._every_s, self._ended = every_s, threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "DeviceMemory":
        self._before = self._in_use()
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _sample(self) -> None:
        while not self._ended.wait(self._every_s):
            self.peak = max(self.peak, self._in_use() - self._before)

    def _in_use(self) -> int:
        import torch

        if not ON_GPU:
            return 0
        free, total = torch.cuda.mem_get_info()
        return int(total - free)


def facts(report: Report) -> None:
    """Report the machine, its libraries, and the rates that all other numbers are compared with."""
    import torch

    versions = f"{platform.python_version()}, {torch.__version__}, {os.cpu_count()} cores"
    report.add("Python and PyTorch", INFO, versions)
    report.add("packages missing", INFO, ", ".join(filter(_is_missing, PACKAGES)) or "none")
    tf32 = f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}"
    report.add("TF32, by PyTorch's default", INFO, f"{tf32}; deterministic {torch.backends.cudnn.deterministic}")
    if ON_GPU:
        _report_gpu(report)
    _report_rates(report)
    if ON_GPU:
        _report_outside_memory(report)
    opened = subprocess.run([sys.executable, "-c", OPEN_DEVICES], capture_output=True, text=True, timeout=60)
    last_line = (opened.stdout or opened.stderr).strip().splitlines()[-1]
    report.add("opening the GPUs' files", FAIL if opened.returncode else INFO, last_line)


def _is_missing(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return True
    return False


def _report_gpu(report: Report) -> None:
    import torch

    begin = time.perf_counter()
    torch.zeros(1, device=DEVICE)
    synchronize()
    first_s = time.perf_counter() - begin
    free, total = torch.cuda.mem_get_info()
    used = (total - free) / MIB
    gpu = torch.cuda.get_device_properties(0)
    report.add(
        "GPU",
        INFO,
        f"{torch.cuda.device_count()} x {gpu.name}, {gpu.multi_processor_count} SMs, {total / GIB:.1f} GiB, "
        f"capability {gpu.major}.{gpu.minor}",
    )
    # Ranks recognise that they share a GPU by this.
    report.check("UUID", len(str(gpu.uuid)) > 30, str(gpu.uuid))
    report.add("first use", INFO, f"{first_s:.2f} s; {used:.0f} MiB in use with an empty context", context_mib=used)
    if shutil.which("nvidia-smi"):
        query = "nvidia-smi --query-gpu=driver_version,compute_mode,mig.mode.current --format=csv,noheader"
        answer = subprocess.run(query.split(), capture_output=True, text=True, timeout=20).stdout.strip()
        libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        report.add("driver, compute mode, MIG", INFO, f"{answer}; {libraries}")


def _report_rates(report: Report) -> None:
    import torch

    if ON_GPU:
        block = torch.empty(MIB if TINY else GIB, dtype=torch.uint8, device=DEVICE)
        copy = torch.empty_like(block)
        rate = 2 * block.nbytes / seconds_of(lambda: copy.copy_(block)) / 1e12
        report.add("memory, copy", INFO, f"{rate:.2f} TB/s, read and written", tb_per_s=rate)
        del block, copy
    side = 64 if TINY else 8192
    for name, dtype, is_tf32 in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        matrix = torch.randn(side, side, device=DEVICE, dtype=dtype)
        with bare.tf32(is_tf32):
            rate = 2 * side**3 / seconds_of(lambda x=matrix: x @ x, 0.3, warm_up=1) / 1e12
        report.add(f"products in {name}", INFO, f"{rate:.4g} TFLOP/s at {side}", tflops=rate)
        del matrix
    numbers, rows = torch.zeros(8, device=DEVICE), torch.arange(32)
    launch_s = seconds_of(lambda: numbers.add_(1), 0.2)
    copy_s = seconds_of(lambda: rows.to(DEVICE), 0.2)
    report.add(
        "a small operation",
        INFO,
        f"{short(launch_s)}; 32 row numbers from the host {short(copy_s)}, which waits",
        launch_us=1e6 * launch_s,
        rows_us=1e6 * copy_s,
    )
    # The weights of a resnet18, as a checkpoint copies them.
    state = torch.zeros(1000 if TINY else 11_181_642, device=DEVICE)
    plain_s = seconds_of(lambda: state.to("cpu", copy=True), 0.2)
    detail = f"{short(plain_s)} to ordinary memory"
    if ON_GPU:
        locked = torch.empty(state.shape, pin_memory=True)
        locked_s = seconds_of(lambda: locked.copy_(state), 0.2)
        detail += f", {short(locked_s)} to page-locked memory that exists"
    report.add(f"{state.nbytes / MIB:.0f} MiB to the host", INFO, detail)
    if ON_GPU:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(100):
                numbers.add_(1)
        each_s = seconds_of(graph.replay, 0.2) / 100
        report.add("the same in a CUDA graph", INFO, short(each_s), graph_us=1e6 * each_s)


def _report_outside_memory(report: Report) -> None:
    """Report the memory that CUDA and its libraries hold outside PyTorch's allocator."""
    import torch

    model = torch.nn.Conv2d(16, 16, 3, device=DEVICE)
    model(torch.randn(8, 16, 28, 28, device=DEVICE)).sum().backward()
    synchronize()
    free, total = torch.cuda.mem_get_info()
    outside = (total - free - torch.cuda.memory_reserved()) / MIB
    detail = f"{outside:.0f} MiB with cuDNN and cuBLAS loaded, counted as {outside_mib():.0f}"
    report.check("memory outside the allocator", 0.5 < outside / outside_mib() < 1.5, detail, outside_mib=outside)


def outside_mib() -> float:
    """Return what the program's estimate adds for a rank's context and libraries [MiB]."""
    from fedh2l_mpi.planning import memory_check

    return (memory_check.CONTEXT_BYTES + memory_check.LIBRARIES_BYTES) / MIB


def syncs(report: Report) -> None:
    """Count the lines that make the host wait for the GPU: none in a step, few in a phase."""
    from fedh2l_mpi.data.augmentation import Affine, Photo

    few = 2 if TINY else 10
    cases = {
        "": (("lenet5", 1, 28), None),
        ", affine": (("lenet5", 1, 28), Affine()),
        ", photo": (("resnet8", 3, 32), Photo()),
    }
    for name, (model, augment) in cases.items():
        with report.failure_of(f"waits{name}"):
            short, long = (_waits(phases_of(*model, steps=steps, augment=augment)) for steps in (few, 2 * few))
            for action, lines in long.items():
                # What both phases have in common belongs to a phase, and the rest to its steps.
                grown = (lines - short[action]).total() / few
                most = ", ".join(f"{line} x {count}" for line, count in lines.most_common(4))
                detail = f"{grown:.1f} a step; {lines.total()} in all: {most or 'none'}"
                if not ON_GPU:
                    report.add(f"waits{name}, {action}", SKIP, "needs CUDA")
                elif action in ("local phase", "mutual phase"):
                    report.check(f"waits{name}, {action}", grown == 0, detail, lines=dict(lines))
                elif not name:
                    report.add(f"waits, {action}", INFO, detail, lines=dict(lines))


def _waits(phases: Phases) -> dict[str, "collections.Counter[str]"]:
    """Return how often each line makes the host wait for the GPU, in every phase."""
    import torch

    from fedh2l_mpi import evaluation

    participant = phases.participant
    actions: dict[str, Callable[[], object]] = {
        "publish": phases.publish,
        # Without taking the notes, the means below have something to average.
        "local phase": lambda: phases.method.local_phase(participant, phases.now),
        "mutual phase": lambda: phases.method.mutual_phase(participant, phases.now, phases.theirs),
        "one evaluation": lambda: evaluation.score(participant, participant.private),
        "means of a row": participant.noted_means,
    }
    # Libraries wait when they are first used.
    for action in actions.values():
        action()
    torch.set_warn_always(True)
    found = {}
    for name, action in actions.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                action()
            finally:
                if ON_GPU:
                    torch.cuda.set_sync_debug_mode("default")
        found[name] = collections.Counter(
            f"{Path(warning.filename).name}:{warning.lineno}"
            for warning in caught
            if "synchroniz" in str(warning.message)
        )
    return found


def memory(report: Report) -> None:
    """Compare the estimate of the device's memory with the peak of PyTorch's allocator."""
    import torch

    cases: dict[str, tuple[str, ...]] = {
        "4 on digits": ("participants=4",),
        "16 on digits": ("participants=16", "models=[lenet5, mlp, cnn, resnet8]"),
        "4 resnet18 on digits": ("participants=4", "models=[resnet18]", "optimizer.batch_size=64"),
        "fedavg, 6 resnet18": ("participants=6", "models=[resnet18]", "method.name=fedavg", "topology.kind=complete"),
    }
    if PACK.exists():
        photos = (f"data.root={PACK}", "data.name=pack", "seed_set.views=photo", "data.augmentation=photo")
        photos += ("participants=2",)
        cases["2 resnet18 on photographs"] = (
            *photos,
            "seed_set.share=0.2",
            "models=[resnet18]",
            "evaluation.batch_size=64",
        )
        # Training is so small here that the views of the seed samples dominate.
        cases["views of photographs"] = (
            *photos,
            "seed_set.share=0.5",
            "models=[mlp]",
            "method.local_steps=1",
            "method.mutual_steps=1",
            "optimizer.batch_size=2",
            "optimizer.seed_batch_size=2",
            "evaluation.batch_size=2",
        )
    if TINY:
        cases = {name: cases[name] for name in list(cases)[:1]}
    # The workspaces that libraries keep for themselves must exist before the first measurement.
    x = torch.randn(64, 64, device=DEVICE)
    torch.nn.functional.conv2d((x @ x).view(1, 1, 64, 64), x[:3, :3].reshape(1, 1, 3, 3))
    for name, keys in cases.items():
        with report.failure_of(f"memory, {name}"):
            _compare_memory(report, name, ("rounds=2", *keys))


def _compare_memory(report: Report, name: str, overrides: tuple[str, ...]) -> None:
    import torch

    estimate = _estimated_bytes(overrides)
    before = 0
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    run_here(*overrides)
    if not ON_GPU:
        report.add(f"memory, {name}", SKIP, f"estimate {estimate / MIB:.1f} MiB; a peak is measured on a GPU only")
        return
    peak, reserved = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
    report.check(
        f"memory, {name}",
        0.9 < estimate / peak < 1.3 or abs(peak - estimate) < NEGLIGIBLE_BYTES,
        f"peak {peak / MIB:.0f} MiB, estimate {estimate / peak:.2f} of it; {reserved / MIB:.0f} MiB reserved",
        peak=peak,
        estimate=estimate,
        reserved=reserved,
    )


def _estimated_bytes(overrides: tuple[str, ...]) -> int:
    """Return what `plan` estimates for the device of one rank."""
    words = [word for override in overrides for word in ("--set", override)]
    planned = wait_for(command(["plan", "--ranks", "1", "--no-calibration", "--json", *words]), 60)
    if planned.code:
        raise RuntimeError(planned.last_line)
    return int(json.loads(planned.text[planned.text.index("{") :])["memory_bytes"]["on_device"])
