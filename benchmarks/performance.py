"""The performance table: cost of the simulator relative to a bare loop, and with many participants.

    python -m benchmarks.performance MNIST_FOLDER [--repeats 5] [--quick] [--out FILE]

The baseline is `bare_loop.py`, a plain PyTorch loop that does the same work as `workload.yaml`. Every ratio compares
two measurements of one repetition, in alternating order. They are a minute or two apart, or run side by side if both
are single processes. A steady state is a long run minus a short one, so that start-up cancels out. CPU seconds are
those of the operating system, for all processes.

Five repetitions take about 25 minutes on two cores. `--quick` is a smoke check, which does not change the recorded
benchmarks/results/performance.json.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import start_up
from benchmarks.measuring import Spent, seconds_by_rank, spent, spent_together, spread, waited_shares
from fedh2l_mpi.lifecycle import provenance
from fedh2l_mpi.runtime.processes import processor
from fedh2l_mpi.runtime.shared_imports import NEVER, OPTION

PERFORMANCE = Path("benchmarks/results/performance.json")
METHODS = {"dml": (), "gem": ("method.name=fedh2l", "method.local_steps=10")}
MIB = 2**20
# The workload: private images of a participant; seed and test images, which every rank has; weights of a model.
PRIVATE, SHARED, IMAGE_BYTES, PARAMETERS = 1000, 320 + 4 * 250, 784 * 4 + 8, 61_706


@dataclass(frozen=True)
class Case:
    """A method, a number of participants, and two run lengths.

    The last round is always evaluated, so ten more rounds are one more evaluation.

    Attributes
    ----------
    whole : bool
        The long run is the workload's own length; it is also reported as a whole, with start-up and memory.
    """

    method: str
    participants: int
    short: int
    long: int
    repeats: int
    whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}, P = {self.participants}"

    @property
    def steady_rounds(self) -> int:
        """Participants times rounds by which the long run exceeds the short one."""
        return self.participants * (self.long - self.short)


@dataclass
class Row:
    """A figure: its values, one for each repetition (or rank), and the largest value that it should have."""

    section: str
    figure: str
    unit: str
    values: list[float]
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else statistics.median(self.values) <= self.target


@dataclass
class Measured:
    """Rows of the table, and all measurements behind them."""

    rows: list[Row] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(self, section: str, figure: str, unit: str, values: Sequence[float], target: float | None = None) -> None:
        self.rows.append(Row(section, figure, unit, [float(value) for value in values], target))


@dataclass(frozen=True)
class Place:
    """The data, a folder for runs, and additional options of every simulator."""

    root: str
    folder: Path
    options: tuple[str, ...]

    def simulator(
        self, config: str, ranks: int, rounds: int, participants: int, more: Sequence[str], out: str
    ) -> list[str]:
        """Return the command: plain for one rank, under mpirun for several."""
        settings = [f"data.root={self.root}", f"rounds={rounds}", f"participants={participants}", *more]
        words = [word for setting in settings for word in ("--set", setting)]
        run = [sys.executable, "-m", "fedh2l_mpi", f"benchmarks/{config}", *words, "--out", str(self.folder / out)]
        # Ranks import for themselves, unless an option that is added asks for sharing.
        return [*mpirun(ranks), *run, "--quiet", f"{OPTION}={NEVER}", *self.options]

    def bare_loop(self, case: Case, rounds: int, lean: bool = False) -> list[str]:
        words = ["--method", case.method, "--participants", str(case.participants), "--rounds", str(rounds)]
        return [sys.executable, "benchmarks/bare_loop.py", self.root, *words, *(["--lean"] if lean else [])]


def mpirun(ranks: int) -> list[str]:
    return [] if ranks == 1 else [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks)]


def beside_the_bare_loop(place: Place, cases: Sequence[Case], console: Console) -> Measured:
    """Measure steady states, shares of waiting, and whole runs."""
    measured = Measured()
    waits: list[tuple[str, list[float]]] = []
    for case in cases:
        repeats: list[dict[str, dict[str, Spent]]] = []
        waited: list[Mapping[int, float]] = []
        for repeat in range(case.repeats):
            repeats.append(_repetition(place, case, repeat))
            ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in _ratios(repeats[-1]).items())
            console.print(f"{case.name}, {repeat + 1} of {case.repeats}: {ratios}", style="dim", highlight=False)
            waited.append(waited_shares(place.folder / _out(case, repeat, 2, case.long)))
        measured.raw[case.name] = {
            "case": asdict(case),
            "spent": [{name: {n: asdict(s) for n, s in both.items()} for name, both in one.items()} for one in repeats],
            "waited_share_by_rank": [{str(rank): share for rank, share in one.items()} for one in waited],
        }
        section = "CPU seconds of a round, over the bare loop's"
        for name in _ratios(repeats[0]):
            values = [_ratios(one)[name] for one in repeats]
            measured.add(section, f"{case.name}: {name}", "ratio", values, _target(name))
        each = [1e3 * _steady(one["bare loop"]) / case.steady_rounds for one in repeats]
        measured.add("The bare loop itself", f"{case.name}: CPU of a participant and round", "ms", each)
        waits.append((case.name, [statistics.mean(one.values()) for one in waited]))
        for rank in waited[0]:
            waits.append((f"{case.name}: rank {rank}", [one[rank] for one in waited]))
        if case.whole:
            _whole_runs(measured, case, repeats)
    for name, shares in waits:
        target = None if "rank" in name else 2.0
        figure = f"{name}, mean of 2 ranks" if target else name
        measured.add("Share of a round that a rank waits", figure, "%", [100 * s for s in shares], target)
    return measured


def _repetition(place: Place, case: Case, repeat: int) -> dict[str, dict[str, Spent]]:
    """Measure the cost of all short and long runs: {name: {"short": ..., "long": ...}}."""
    each = case.participants
    # A single process runs next to another one, so both cores are busy in every measurement.
    groups = [("bare loop", "hosted on 1 rank"), ("hosted on 2 ranks",), (f"one of {each} per rank",)]
    if each == 4:
        groups.append(("lean bare loop", "bare loop beside lean"))
    ranks = {"hosted on 1 rank": 1, "hosted on 2 ranks": 2, f"one of {each} per rank": each}

    def command(name: str, rounds: int) -> list[str]:
        if name not in ranks:
            return place.bare_loop(case, rounds, lean=name == "lean bare loop")
        out = _out(case, repeat, ranks[name], rounds)
        return place.simulator("workload.yaml", ranks[name], rounds, each, METHODS[case.method], out)

    taken: dict[str, dict[str, Spent]] = {name: {} for group in groups for name in group}
    lengths = [("short", case.short), ("long", case.long)]
    for group in groups[:: -1 if repeat % 2 else 1]:
        for length, rounds in lengths[:: -1 if repeat % 2 else 1]:
            commands = [command(name, rounds) for name in group]
            together = spent_together(commands) if (os.cpu_count() or 1) > 1 else [spent(one) for one in commands]
            for name, one in zip(group, together, strict=True):
                taken[name][length] = one
    return {name: taken[name] for group in groups for name in group}


def _out(case: Case, repeat: int, ranks: int, rounds: int) -> str:
    return f"{case.method}-{case.participants}-{repeat}-{ranks}-{rounds}"


def _steady(both: Mapping[str, Spent]) -> float:
    return both["long"].cpu_s - both["short"].cpu_s


def _ratios(taken: Mapping[str, Mapping[str, Spent]]) -> dict[str, float]:
    """Divide steady states by that of the bare loop of the same repetition, side by side if both ran so."""
    ratios = {}
    for name, both in taken.items():
        beside = "bare loop beside lean" if name == "lean bare loop" else "bare loop"
        if not name.startswith("bare loop"):
            ratios[name] = _steady(both) / _steady(taken[beside])
    return ratios


def _target(name: str) -> float | None:
    if name == "hosted on 2 ranks":
        return 0.75
    return 0.80 if name.endswith("per rank") else None


def _whole_runs(measured: Measured, case: Case, repeats: Sequence[Mapping[str, Mapping[str, Spent]]]) -> None:
    for name in repeats[0]:
        if name != "bare loop":
            ratios = [one[name]["long"].cpu_s / one["bare loop"]["long"].cpu_s for one in repeats]
            section = f"CPU seconds of a whole run of {case.long} rounds, over the bare loop's"
            measured.add(section, f"{case.name}: {name}", "ratio", ratios)
    for name in repeats[0]:
        memory = [one[name]["long"].pss_bytes / MIB for one in repeats]
        measured.add("Memory of a run, all its processes", f"{case.name}: {name}", "MiB", memory)


def memory_of_ranks(place: Place, measured: Measured, case: Case, repeats: int) -> None:
    """Compare the peak memory of a run with one rank per participant to as many processes with the same imports.

    The memory of these processes only grows until all have imported, so `starts` reads it once, at that moment.
    """
    ranks = case.participants
    runs = [one[f"one of {ranks} per rank"]["long"]["pss_bytes"] for one in measured.raw[case.name]["spent"]]
    imports = [cost["pss_mib"] * MIB for cost in measured.raw["start-up"][start_up.IMPORTS_ONLY]]
    shared, over_bare = [], []
    for repeat in range(repeats):
        out = f"shared-{repeat}"
        run = place.simulator("workload.yaml", ranks, case.long, ranks, METHODS[case.method], out)
        bare, ours = spent(place.bare_loop(case, case.long)), spent([*run, OPTION])
        shared.append(ours.pss_bytes)
        over_bare.append(ours.cpu_s / bare.cpu_s)
    # Weights and momentum of each model, and a private and a seed gradient.
    own = PRIVATE * IMAGE_BYTES + 4 * PARAMETERS * 4
    arithmetic = ranks * (own + SHARED * IMAGE_BYTES)
    floor = statistics.median(imports) + arithmetic
    measured.raw["memory of ranks"] = {"run": runs, "shared": shared, "imports": imports, "data and models": arithmetic}
    section = f"Memory of {ranks} ranks"
    measured.add(section, "import torch, h5py, mpi4py.MPI", "MiB", [value / MIB for value in imports])
    measured.add(section, "data and models, by arithmetic", "MiB", [arithmetic / MIB])
    measured.add(section, "the run", "MiB", [value / MIB for value in runs])
    measured.add(section, "the run with --share-imports", "MiB", [value / MIB for value in shared])
    section = f"CPU seconds of a whole run of {case.long} rounds, over the bare loop's"
    measured.add(section, f"{case.name}: one of {ranks} per rank, with {OPTION}", "ratio", over_bare)
    section = f"Memory of {ranks} ranks"
    for name, values in ("the run", runs), ("with --share-imports", shared):
        figure = f"{name}, over imports, data and models"
        measured.add(section, figure, "ratio", [value / floor for value in values], 1.1)


def many_participants(place: Place, lengths: Mapping[int, int], repeats: int, console: Console) -> Measured:
    """Measure few and many participants on two ranks, with `many.yaml`: a run of more rounds minus one of one round."""
    measured = Measured()
    most, least = max(lengths), min(lengths)
    graphs = {"ring": (), "random 4-regular": ("topology.kind=random_regular", "topology.degree=4")}
    cases = [(p, "ring") for p in lengths] + [(most, "random 4-regular")]
    each_ms: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    walls: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    memory: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    shares: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for repeat in range(repeats):
        console.print(f"many participants: repetition {repeat + 1} of {repeats}", style="dim")
        for case in cases[:: -1 if repeat % 2 else 1]:
            count, graph = case
            outs = {rounds: f"many-{count}-{graph[:4]}-{repeat}-{rounds}" for rounds in (1, 1 + lengths[count])}
            short, long = (
                spent(place.simulator("many.yaml", 2, rounds, count, graphs[graph], out))
                for rounds, out in outs.items()
            )
            each_ms[case].append(1e3 * (long.cpu_s - short.cpu_s) / (count * lengths[count]))
            walls[case].append((long.wall_s - short.wall_s) / lengths[count])
            memory[case].append(long.pss_bytes / MIB)
            ranks = seconds_by_rank(place.folder / outs[1 + lengths[count]]).values()
            exchange = sum(seconds["seconds_publish"] + seconds["seconds_wait"] for seconds in ranks)
            shares[case].append(100 * exchange / sum(sum(seconds.values()) for seconds in ranks))
    for case in cases:
        if case[0] == most:
            section = f"{most:,} participants on 2 ranks, {case[1]}"
            measured.add(section, "a round", "s", walls[case])
            measured.add(section, "memory of the run", "MiB", memory[case])
            measured.add(section, "posteriors and waiting, of a round", "%", shares[case], 5.0)
    section = f"From {least} to {most:,} participants, ring on 2 ranks"
    for count in lengths:
        measured.add(section, f"P = {count}: CPU of a participant and round", "ms", each_ms[count, "ring"])
    by_repeat = list(zip(*(each_ms[count, "ring"] for count in lengths), strict=True))
    measured.add(section, "dearest P over the cheapest", "ratio", [max(one) / min(one) for one in by_repeat], 1.1)
    for count in lengths:
        measured.add(section, f"P = {count}: memory of the run", "MiB", memory[count, "ring"])
    # Cost of one more participant, at the upper end and below it; it is equal if the growth is linear.
    low, middle, high = sorted(lengths)[-3:]
    slopes = [
        [(b - a) / (more - fewer) for a, b in zip(memory[fewer, "ring"], memory[more, "ring"], strict=True)]
        for fewer, more in ((low, middle), (middle, high))
    ]
    measured.add(section, f"memory of one more, P = {low} to {middle}", "MiB", slopes[0])
    measured.add(section, f"memory of one more, P = {middle} to {high}", "MiB", slopes[1])
    measured.add(
        section,
        f"memory of one more: P to {high} over P to {middle}",
        "ratio",
        [b / a for a, b in zip(*slopes, strict=True)],
        1.1,
    )
    measured.raw["many participants"] = {
        f"{count}, {graph}": {
            "participants": count, "graph": graph, "cpu_ms": each_ms[count, graph], "round_s": walls[count, graph],
            "memory_mib": memory[count, graph], "exchange_percent": shares[count, graph],
        }
        for count, graph in cases
    }  # fmt: skip
    return measured


def starts(measured: Measured, ranks: int, repeats: int) -> None:
    """Measure the time until round 0 begins on every rank, relative to as many processes that only import."""
    costs = start_up.measure_all([mpirun(ranks)[0]], ranks, repeats)
    measured.raw["start-up"] = {name: [asdict(cost) for cost in each] for name, each in costs.items()}
    section = f"Start-up of {ranks} ranks, over {ranks} processes that only import"
    for name in (start_up.RUN, start_up.SHARED):
        pairs = list(zip(costs[name], costs[start_up.IMPORTS_ONLY], strict=True))
        cpu = [ours.cpu_s / theirs.cpu_s for ours, theirs in pairs]
        measured.add(section, f"{name}: CPU", "ratio", cpu, 0.5)
        measured.add(section, f"{name}: wall", "ratio", [ours.wall_s / theirs.wall_s for ours, theirs in pairs])


def table(rows: Sequence[Row]) -> Table:
    """Print the measurements, and compare them with their targets."""
    shown = Table(title="performance", title_justify="left")
    for heading in ("figure", "median (min to max)", "", "target", "reached"):
        shown.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    section = None
    for row in rows:
        if row.section != section:
            shown.add_section()
            shown.add_row(f"[bold]{row.section}[/bold]")
            section = row.section
        digits = 0 if row.unit == "MiB" and min(row.values) > 10 else 2
        target = "" if row.target is None else f"at most {row.target:g}"
        reached = {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[row.reached]
        shown.add_row(f"  {row.figure}", spread(row.values, digits), row.unit, target, reached)
    return shown


def machine() -> dict[str, Any]:
    """Describe the processor, its cores and the memory."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def cases(repeats: int, quick: bool) -> list[Case]:
    """Return the runs that are compared with the bare loop; the last one also as a whole."""
    if quick:
        return [Case("gem", 4, 1, 2, 1), Case("dml", 4, 1, 2, 1, whole=True)]
    few = -(-repeats // 2)
    return [
        Case("dml", 4, 1, 21, repeats),
        Case("gem", 4, 1, 21, repeats),
        Case("gem", 16, 1, 11, few),
        Case("dml", 16, 10, 20, few, whole=True),
    ]


def out_of(given: Path | None, quick: bool) -> Path | None:
    """Return the file to write, or None, because a smoke check must not replace recorded measurements."""
    return given or (None if quick else PERFORMANCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of MNIST's IDX files")
    parser.add_argument(
        "--repeats", type=int, default=5, help="of P = 4 (5); of P = 16 half as many; two of many participants"
    )
    parser.add_argument("--quick", action="store_true", help="everything once and short, and no verdict: does it work?")
    parser.add_argument(
        "--out", type=Path, help=f"JSON file to write, with all that was measured ({PERFORMANCE}; with --quick, none)"
    )
    parser.add_argument("--option", action="append", default=[], help="for every simulator, such as --option=--quiet")
    options = parser.parse_args()
    out = out_of(options.out, options.quick)
    console = Console() if sys.stdout.isatty() else Console(width=130)
    root, repeats = str(Path(options.root).resolve()), 1 if options.quick else options.repeats
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    begin = datetime.datetime.now(datetime.UTC)
    few = -(-repeats // 2)
    lengths = {4: 2, 16: 2, 64: 2} if options.quick else {4: 250, 16: 75, 64: 20, 250: 5, 1000: 5}
    all_cases = cases(repeats, options.quick)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(root, Path(folder), tuple(options.option))
        measured = beside_the_bare_loop(place, all_cases, console)
        starts(measured, all_cases[-1].participants, few)
        memory_of_ranks(place, measured, all_cases[-1], few)
        many = many_participants(place, lengths, min(repeats, 2), console)
    measured.rows += many.rows
    measured.raw |= many.raw
    if options.quick:
        # Runs of a round or two are noise, so they are not compared with targets.
        measured.rows = [replace(row, target=None) for row in measured.rows]
    # A section has rows of several cases; it is printed once, at the place of its first row.
    order = list(dict.fromkeys(row.section for row in measured.rows))
    measured.rows.sort(key=lambda row: order.index(row.section))
    ended = datetime.datetime.now(datetime.UTC)
    facts = {
        "date": begin.isoformat(timespec="seconds"),
        "took_s": round((ended - begin).total_seconds()),
        "machine": machine(),
        "versions": json.loads(provenance.versions("")),
        "revision": provenance.git_revision(),
        "quick": options.quick,
        "options": options.option,
        "rows": [{**asdict(row), "reached": row.reached} for row in measured.rows],
        "raw": measured.raw,
    }
    if out is not None:
        out.write_text(json.dumps(facts, indent=1) + "\n")
    console.print(table(measured.rows))
    at = facts["machine"]
    console.print(
        f"{at['cores']} cores of {at['processor']}; {facts['date']}, revision {facts['revision'][:12]}, "
        f"{facts['took_s'] / 60:.0f} minutes; all numbers: {out or 'not kept'}", highlight=False, soft_wrap=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
