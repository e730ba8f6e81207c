"""Steps a second of the program and of a bare loop on one device, with targets for one H100.

A run is the program's own, from `fh.run`; its seconds are those that it records for each phase, without evaluations.
The bare loop (`bare.py`) takes the same steps on pictures of the same size. Both follow each other in one process.
"""

import gc
import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import fedh2l_mpi as fh
from benchmarks.gpu.bare import LR, BareLoop, Workload
from fedh2l_mpi import metrics

BARE = "bare loop"
ALONE = "one by one"
# Ways in which the program may take the same steps.
WAYS: dict[str, tuple[str, ...]] = {
    ALONE: (),
    "graphs": ("devices.graphs=auto",),
    "together": ("devices.batching=like",),
    "together, graphs": ("devices.batching=like", "devices.graphs=auto"),
}
PHASES = ("publish", "local", "wait", "mutual")
# Rounds of a run. The first two warm up, and the last one is evaluated; the one before it may be profiled.
ROUNDS, TINY_ROUNDS, WARM_UP = 8, 5, 2


@dataclass(frozen=True)
class Target:
    """A value that a row should reach on one H100.

    Attributes
    ----------
    least : float
        Smallest ratio of steps a second to that of `over`, or smallest share of the time that the GPU is busy.
    over : str
        Another way, or `BARE`; "busy": the share of the time.
    """

    least: float
    over: str

    def __str__(self) -> str:
        return f"busy >= {self.least:.0%}" if self.over == "busy" else f">= {self.least:g} x {self.over}"


@dataclass(frozen=True)
class Case:
    """A workload, the ways to run it, and the targets of some of them."""

    name: str
    work: Workload
    ways: tuple[str, ...]
    targets: Mapping[str, tuple[Target, ...]]
    profiles: bool = False


@dataclass
class Row:
    """A way of a case, as measured.

    Attributes
    ----------
    seconds : dict
        Seconds of a round by phase, summed over participants; the bare loop has one entry, `round`.
    busy : float
        Share of a round in which the device computes; NaN: not measured.
    failure : str
        What ended it; then its numbers are NaN.
    """

    case: str
    way: str
    seconds: dict[str, float]
    steps_per_s: float = math.nan
    busy: float = math.nan
    targets: tuple[Target, ...] = ()
    failure: str = ""


def cases(tiny: bool) -> list[Case]:
    """Return everything that is measured; `tiny` keeps each case, with small pictures and few steps."""
    alone, both = (ALONE, "graphs"), tuple(WAYS)
    digit = Workload("lenet5", 1, 28, participants=1, private=280, seed_samples=64, steps=100)
    photo = Workload("resnet18", 3, 224, participants=1, private=140, seed_samples=32, steps=20)
    near_bare = (Target(0.95, BARE), Target(0.85, "busy"))
    found = []
    for precision in ("float32", "tf32", "bfloat16"):
        goal = {"graphs": (Target(2.5, ALONE),)}
        found.append(Case(f"1 lenet5, {precision}", replace(digit, precision=precision), alone, goal))
    for name in ("lenet5", "mlp"):
        work = replace(digit, architecture=name, participants=16, steps=40)
        goal = {way: (Target(10, ALONE),) for way in ("together", "together, graphs")}
        found.append(Case(f"16 {name}, float32", work, both, goal))
    for precision in ("float32", "tf32", "bfloat16"):
        goal = {way: near_bare for way in alone}
        work = replace(photo, precision=precision)
        found.append(Case(f"1 resnet18 at 224, {precision}", work, alone, goal, profiles=True))
    work = replace(photo, side=32, participants=16, private=280, steps=10, method="fedavg")
    found.append(Case("fedavg, 16 resnet18 at 32, float32", work, both, {}))
    return [_tiny(case) for case in found] if tiny else found


def _tiny(case: Case) -> Case:
    """Return a case whose numbers mean nothing, and which takes seconds on a CPU."""
    work = case.work
    name, side = ("resnet8", 16) if work.architecture == "resnet18" else (work.architecture, 8)
    few = min(work.participants, 3)
    work = replace(work, architecture=name, side=side, participants=few, private=28, seed_samples=8, steps=1)
    return replace(case, work=work)


def measure(case: Case, device: str, rounds: int) -> list[Row]:
    """Return the rows of a case: the bare loop, then the program in every way."""
    rows = []
    for way in (BARE, *case.ways):
        _release()
        try:
            row = _bare(case, device, rounds) if way == BARE else _program(case, way, rounds)
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            row = Row(case.name, way, {}, failure=f"{type(error).__name__}: {first_line}")
        row.targets = case.targets.get(way, ())
        rows.append(row)
    return rows


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bare(case: Case, device: str, rounds: int) -> Row:
    loop = BareLoop(case.work, device)
    seconds = [loop.round_seconds() for _ in range(rounds)]
    round_s = statistics.median(seconds[WARM_UP:])
    row = Row(case.name, BARE, {"round": round_s}, _steps(case.work) / round_s)
    if case.profiles:
        profiler = _profiler()
        with profiler:
            loop.round_seconds()
        row.busy = busy_seconds(profiler) / round_s
    return row


def _program(case: Case, way: str, rounds: int) -> Row:
    profiler = _profiler() if case.profiles else None

    def on_round(index: int, values: object) -> None:
        if profiler is not None and index == rounds - 3:
            profiler.start()
        if profiler is not None and index == rounds - 2:
            profiler.stop()

    with tempfile.TemporaryDirectory(prefix="gpu-ratios-") as folder:
        path = fh.run(
            set=overrides(case.work, way, rounds), out=Path(folder) / "run", quiet=True, on_round=on_round
        ).path
        recorded = metrics.read(path / "metrics.h5")
        seconds = {phase: recorded[f"seconds_{phase}"].sum(axis=1) for phase in PHASES}
    # A profiled round takes longer; neither it nor the evaluated one counts.
    until = rounds - 2 if profiler is not None else rounds
    typical = {phase: float(statistics.median(values_R[WARM_UP:until])) for phase, values_R in seconds.items()}
    round_s = float(statistics.median(sum(seconds.values())[WARM_UP:until]))
    row = Row(case.name, way, typical, _steps(case.work) / round_s)
    if profiler is not None:
        row.busy = busy_seconds(profiler) / round_s
    return row


def _steps(work: Workload) -> int:
    return 2 * work.steps * work.participants


def overrides(work: Workload, way: str, rounds: int) -> list[str]:
    """Return the settings of the run that takes the workload's steps."""
    # A fifth of the samples are for the seed set, and a tenth of the rest for validation.
    samples = math.ceil(max(work.private / 0.7, 5 * work.seed_samples)) * work.participants
    graph = "complete" if work.method == "fedavg" else "ring"
    return [
        "recipe=classic",
        # kind cpu refuses graphs; auto takes them where there is a GPU.
        "devices.kind=auto",
        f"participants={work.participants}",
        f"rounds={rounds}",
        "data.name=benchmarks.gpu.pictures:pictures",
        f"data.options={{samples: {samples}, channels: {work.channels}, side: {work.side}}}",
        "data.partition=iid",
        f"seed_set.samples_per_round={work.seed_samples}",
        "seed_set.views=none",
        f"models=[{work.architecture}]",
        f"topology={graph}",
        f"method={work.method}",
        f"method.local_steps={work.steps}",
        f"method.mutual_steps={work.steps}",
        f"optimizer.lr={LR}",
        f"optimizer.precision={work.precision}",
        f"evaluation.every={rounds}",
        "checkpoint.every=null",
        *WAYS[way],
    ]


def _profiler() -> profile:
    # Following the CPU as well would slow down the round.
    return profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])


def busy_seconds(profiler: profile) -> float:
    """Return the seconds in which at least one kernel or copy of the profile was on the GPU; NaN without a GPU."""
    events = [event for event in profiler.events() if "CUDA" in str(event.device_type)]
    if not events:
        return math.nan
    return 1e-6 * covered((event.time_range.start, event.time_range.end) for event in events)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (begin, end)."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def verdicts(row: Row, rows: Sequence[Row]) -> list[bool | None]:
    """Return whether a row reaches each of its targets; None where a number is missing."""
    values = [row.busy if target.over == "busy" else over(row, target.over, rows) for target in row.targets]
    return [
        None if math.isnan(value) else value >= target.least for value, target in zip(values, row.targets, strict=True)
    ]


def over(row: Row, way: str, rows: Sequence[Row]) -> float:
    """Return a row's steps a second over those of another way of the same case; NaN if one is missing."""
    rates = [other.steps_per_s for other in rows if (other.case, other.way) == (row.case, way)]
    return row.steps_per_s / rates[0] if rates else math.nan


def lines(rows: Sequence[Row], judges: bool) -> list[str]:
    """Return the table's lines; `judges` says of each target whether it is reached."""
    table = [f"{'case':36} {'way':17} {'steps/s':>9} {'x bare':>7} {'x alone':>7} {'busy':>5}  target"]
    for row in rows:
        if row.failure:
            table.append(f"{row.case:36} {row.way:17} FAILED: {row.failure[:120]}")
            continue
        bare, alone = (_ratio(over(row, way, rows)) for way in (BARE, ALONE))
        busy = "" if math.isnan(row.busy) else f"{row.busy:.0%}"
        words = {True: ": reached", False: ": MISSED", None: ": not measured"}
        goals = "; ".join(
            f"{target}{words[verdict] if judges else ''}"
            for target, verdict in zip(row.targets, verdicts(row, rows), strict=True)
        )
        table.append(
            f"{row.case:36} {row.way:17} {row.steps_per_s:9.1f} {bare:>7} {alone:>7} {busy:>5}  {goals}".rstrip()
        )
    return table


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows for a JSON file, with texts and verdicts of their targets."""
    return [
        {
            **{name: value for name, value in asdict(row).items() if name != "targets"},
            "over_bare": over(row, BARE, rows),
            "over_alone": over(row, ALONE, rows),
            "targets": {str(target): verdict for target, verdict in zip(row.targets, verdicts(row, rows), strict=True)},
        }
        for row in rows
    ]
