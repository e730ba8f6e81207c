"""Runs of the program as a user starts them, and the comparison of what two runs leave."""

import contextlib
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import DEVICE, FAIL, INFO, PASS, ROOT, SCRATCH, Report

RING = "configs/digits_ring.yaml"
# Arrays that differ between any two runs: times, and where a participant was.
VARIABLE = ("rank", "host", "device")

# An environment's own mpirun stands next to its interpreter.
_NEXT_TO_PYTHON = Path(sys.executable).with_name("mpirun")
MPIRUN = os.environ.get("MPIEXEC") or (str(_NEXT_TO_PYTHON) if _NEXT_TO_PYTHON.exists() else "mpirun")

children: set[subprocess.Popen[str]] = set()
_numbers = itertools.count()


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code, its output, and how long it ran."""

    code: int
    text: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of its output, cut to fit the table."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1][:140] if lines else ""


def command(arguments: Sequence[str], ranks: int | None = None) -> list[str]:
    """Return the words that start the program, under mpirun if `ranks` are given."""
    return [*([MPIRUN, "-n", str(ranks)] if ranks else []), sys.executable, "-m", "fedh2l_mpi", *arguments]


def start(words: Sequence[str], environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """Start a process in a group of its own, with its output in one pipe."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    children.add(process)
    return process


def kill(process: subprocess.Popen[str]) -> str:
    """Kill a process with its children; return its output."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    text, _ = process.communicate()
    children.discard(process)
    return text


def wait_for(words: Sequence[str], timeout_s: float = 90, environment: Mapping[str, str] = {}) -> Ended:
    """Run a process to its end, or kill it after `timeout_s`; its output goes to the log of the part."""
    begin = time.perf_counter()
    process = start(words, environment)
    try:
        text, _ = process.communicate(timeout=timeout_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        code, text = 124, f"{kill(process)}\nstill running after {timeout_s:.0f} s"
    children.discard(process)
    seconds = time.perf_counter() - begin
    print(f"$ {' '.join(words)}\n{text}\n[exit code {code} after {seconds:.1f} s]", file=sys.stderr, flush=True)
    return Ended(code, text, seconds)


def settings(**keys: Any) -> list[str]:
    """Return `--set` options for a run on this device; `__` in a name stands for a dot."""
    keys = {"devices__kind": DEVICE, **keys}
    return [word for key, value in keys.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def new_directory() -> Path:
    """Return a path for a run directory that does not exist yet."""
    return SCRATCH / f"run-{os.getpid()}-{next(_numbers)}"


def whole_run(
    config: str = RING,
    ranks: int | None = None,
    timeout_s: float = 90,
    options: Sequence[str] = (),
    **keys: Any,
) -> tuple[Ended, Path]:
    """Run the program from start to end; return how it ended, and the run directory."""
    out = new_directory()
    words = [config, *settings(**keys), *options, "--out", str(out)]
    return wait_for(command(words, ranks), timeout_s), out


def run_here(*overrides: str) -> Path:
    """Run inside this process, which saves the start of a process and of a GPU; return the run directory."""
    import fedh2l_mpi as fh

    return fh.run(set=[f"devices.kind={DEVICE}", *overrides], out=new_directory(), quiet=True).path


def has_torchvision() -> bool:
    """Return True if torchvision can be imported; only machines with a GPU are expected to have it."""
    return importlib.util.find_spec("torchvision") is not None


def accuracy(out: Path) -> float:
    """Return the all-domain accuracy of the last round, averaged over participants."""
    from fedh2l_mpi import metrics

    return float(metrics.read(out / "metrics.h5")["accuracy_all"][-1].mean())


def round_seconds(out: Path) -> float:
    """Return the median seconds of a round of the slowest rank, without the first two rounds."""
    import numpy as np

    from fedh2l_mpi import metrics

    recorded = metrics.read(out / "metrics.h5")
    seconds = metrics.slowest_rank_seconds([recorded[name] for name in metrics.TIMINGS], recorded["rank"])
    return float(np.median(seconds[2:] if len(seconds) > 2 else seconds))


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs between two runs, to the last bit, in metrics and in the newest checkpoints."""
    import numpy as np

    from fedh2l_mpi import metrics

    first, second = (metrics.read(out / "metrics.h5") for out in (one, other))
    found = []
    for name in first.arrays:
        if name in (*metrics.TIMINGS, *VARIABLE):
            continue
        a, b = first[name], second[name]
        if a.shape != b.shape:
            found.append(f"{name}, in shape")
        elif a.tobytes() != b.tobytes():
            found.append(f"{name} by {np.nanmax(np.abs(a - b)):.2g}" if a.dtype.kind == "f" else name)
    ours, theirs = _checkpoint(one), _checkpoint(other)
    wrong = sum(ours.get(name) != theirs.get(name) for name in ours | theirs)
    return found + ([f"{wrong} of {len(ours)} tensors and numbers of the checkpoint"] if wrong else [])


def _checkpoint(out: Path) -> dict[str, bytes]:
    """Return every tensor and number of the newest checkpoint as bytes, by its path in the state."""
    import torch

    newest = max(out.glob("checkpoints/round-????????"))
    states: dict[Any, Any] = {}
    for file in newest.glob("*.pt"):
        states |= torch.load(file, weights_only=True)["participants"]

    def leaves(value: object, name: str) -> dict[str, bytes]:
        if isinstance(value, dict):
            return {path: leaf for key, part in value.items() for path, leaf in leaves(part, f"{name}/{key}").items()}
        return {name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()}

    return leaves(states, "")


def relative_gap(one: Path, other: Path) -> float:
    """Return the largest difference between two runs' losses and notes of a round, over the larger of the two values.

    Small values count as 0.1, because accuracies of few samples and losses near 0 differ by more.
    """
    import numpy as np

    from fedh2l_mpi import metrics
    from fedh2l_mpi.metrics.schema import NOTED

    first, second = (metrics.read(out / "metrics.h5") for out in (one, other))
    gaps = [0.0]
    for name in ("loss", *NOTED):
        if name in ("gradient_cosine", "conflict_rate"):
            # A product that is nearly 0 changes its sign by rounding.
            continue
        a, b = first[name], second[name]
        known = ~(np.isnan(a) & np.isnan(b))
        gaps += list((np.abs(a - b) / np.maximum(0.1, np.maximum(np.abs(a), np.abs(b))))[known])
    return float(max(gaps))


def log_lines(out: Path, *words: str) -> list[str]:
    """Return the messages of rank 0's log that contain all words, without time and level."""
    lines = (out / "log" / "rank-0000.log").read_text().splitlines()
    messages = [line.split(maxsplit=3)[-1] for line in lines]
    return [message for message in messages if all(word in message for word in words)]


def report_differences(report: Report, finding: str, one: Path, other: Path, required: bool = True) -> None:
    """Report whether two runs are equal to the last bit; a difference fails only if equality is `required`."""
    found = differences(one, other)
    if not found:
        report.add(finding, PASS, "all numbers and weights are equal, bit for bit")
        return
    found.sort(key=lambda text: not text.startswith(("accuracy_all", "loss ")))
    verdict = FAIL if required else INFO
    report.add(finding, verdict, f"differs: {'; '.join(found[:3])}; {len(found)} in total", differs=found)
