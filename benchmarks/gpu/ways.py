"""Parts that compare the ways in which a run may take its steps: CUDA graphs, and like participants together.

Both are other ways to the same numbers, up to rounding. Each case runs twice in this process, and the losses of all
rounds are compared. Some models amplify rounding within a few steps. Where losses differ by more than the tolerance,
a third run, whose first weights were moved by a rounding error, says how much of that is rounding.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu.findings import INFO, ON_GPU, TINY, Report
from benchmarks.gpu.runs import log_lines, relative_gap, run_here
from fedh2l_mpi import metrics
from fedh2l_mpi.methods import batched
from fedh2l_mpi.participant import Participant

STEPS = 3 if TINY else 6
COMMON = (
    # kind cpu refuses graphs; auto takes them where there is a GPU.
    "devices.kind=auto",
    "participants=3",
    f"rounds={2 if TINY else 3}",
    f"method.local_steps={STEPS}",
    f"method.mutual_steps={STEPS}",
    "optimizer.name=sgd",
    "optimizer.momentum=0.9",
)
# A step that is lost or taken twice changes a loss by a hundredth or more, and rounding in most cases by a millionth.
TOLERANCE = 1e-3
# A loss may differ by this many times the difference that a rounding error in the first weights makes.
TIMES_ROUNDING = 20
ROUNDING = 6e-8
# Settings in which a run differs from `COMMON`.
GRAPH_CASES = {
    "default": "",
    "adam": "optimizer.name=adam optimizer.momentum=0.0",
    "adamw, cosine, clipped": "optimizer.name=adamw optimizer.momentum=0.0 optimizer.schedule=cosine "
    "optimizer.clip_norm=1.0",
    "classic": "recipe=classic",
    "affine augmentation": "data.augmentation=affine",
    "mixup, ramp": "seed_set.views=mixup method.ramp_rounds=2",
    "resnet8, mobilenet, vit": "models=[resnet8,mobilenet,vit]",
    "dml": "method.name=dml",
    "fedmd": "method.name=fedmd",
    "distributed_distillation": "method.name=distributed_distillation",
    "seed_supervised": "method.name=seed_supervised",
    "fedavg": "method.name=fedavg models=[cnn] topology.kind=complete",
    "fedprox": "method.name=fedprox models=[cnn] topology.kind=complete",
    "d_psgd": "method.name=d_psgd models=[resnet8]",
    "bfloat16": "optimizer.precision=bfloat16",
    "together": "models=[lenet5] devices.batching=like",
}
ARCHITECTURES = ("mlp", "lenet5", "cnn", "resnet8", "resnet18", "mobilenet", "vit")


def graphs(report: Report) -> None:
    """Run methods and options with and without CUDA graphs, and report what fell back to single launches."""
    names = list(GRAPH_CASES)[:: 6 if TINY else 1]
    for name in names:
        with report.failure_of(f"graphs, {name}"):
            _compare(report, name, GRAPH_CASES[name].split(), "devices.graphs=auto", "graph")


def stacked(report: Report) -> None:
    """Run three participants of each architecture one by one and together, and report what steps alone."""
    for name in ARCHITECTURES[:: 3 if TINY else 1]:
        with report.failure_of(f"together, {name}"), _stacking():
            out = _compare(report, name, (f"models=[{name}]",), "devices.batching=like", "step one by one")
            is_together = stepped_together(out)
            report.check(f"{name}: how they step", is_together, "as one batch" if is_together else "one by one")


@contextlib.contextmanager
def _stacking() -> Iterator[None]:
    """Let models of any architecture step together on a CPU, too, where they do so on a GPU only."""
    units = functools.partial(batched.training_units, stacks=True)
    with contextlib.nullcontext() if ON_GPU else mock.patch.object(batched, "training_units", units):
        yield


@contextlib.contextmanager
def _moved_by_rounding() -> Iterator[None]:
    """Move every participant's first weights by about a rounding error, all in the same way."""
    import torch

    build = Participant.__init__

    def moved(self: Participant, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        weights = self.parameters.vector
        draw = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)).to(weights.device)
        weights.mul_(1 + ROUNDING * draw)

    with mock.patch.object(Participant, "__init__", moved):
        yield


def stepped_together(out: Path) -> bool:
    """Return True if all participants of a run stepped as one: then each is charged the same time."""
    seconds_RP = metrics.read(out / "metrics.h5")["seconds_local"]
    return bool((seconds_RP == seconds_RP[:, :1]).all())


def _compare(report: Report, name: str, keys: Sequence[str], way: str, word: str) -> Path:
    """Run a case with and without `way`; `word` marks the lines of the log that say what did not follow it."""
    without, with_it = run_here(*COMMON, *keys), run_here(*COMMON, *keys, way)
    gap = relative_gap(without, with_it)
    detail = "the same bits" if gap == 0 else f"losses differ by {gap:.1e}, relative"
    tolerance = TOLERANCE
    if gap > tolerance:
        with _moved_by_rounding():
            rounding = relative_gap(without, run_here(*COMMON, *keys))
        tolerance, detail = TIMES_ROUNDING * rounding, f"{detail}; by rounding alone {rounding:.1e}"
    report.check(f"{way}: {name}", gap <= tolerance, detail, gap=gap)
    for line in log_lines(with_it, word)[:3]:
        report.add(f"{name}, from the log", INFO, line[:200])
    return with_it
