"""Cost of a round outside the training steps, fitted to real runs with 4 to 1,000 participants.

    python -m benchmarks.scaling MNIST_FOLDER [--largest 1000] [--repeats 1] [--out FILE]

It trains an MLP of 20,000 parameters on MNIST, on rings and on random 4-regular graphs, on one rank and on several,
sharing posteriors and sharing parameters. It measures the CPU seconds of every rank's main thread, which other
processes on the machine disturb little.

It fits the constants of `fedh2l_mpi/planning/overhead.py` by least squares, one part of a round at a time. It prints
them with the model's error, for which each run is left out of its own fit. It writes results/scaling.csv, unless only
some of the runs were made.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi import methods, metrics
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.config.topology import RandomRegular, Ring
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.planning import overhead, requirements, sample_counts, timing
from fedh2l_mpi.planning.overhead import Loads, OverheadConstants
from fedh2l_mpi.planning.traffic import Links, MessageSize, links
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.topology import draw

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scaling.csv"
LARGEST = 1000
SETTINGS = [
    "data.name=mnist",
    "data.partition.domains=4",
    "data.partition.samples_per_participant=50",
    "models=[benchmarks.small_mlp:SmallMlp]",
    # The number of seed samples is equal for 4 and for 1,000 participants.
    "seed_set.share=0.4",
    "seed_set.max_samples=80",
    "seed_set.samples_per_round=80",
    "optimizer.batch_size=16",
    "optimizer.seed_batch_size=16",
    "evaluation.test_samples_per_domain=250",
    "evaluation.every=1000",
    "checkpoint.every=null",
]
RING, REGULAR = ["topology.kind=ring"], ["topology.kind=random_regular", "topology.degree=4"]
POSTERIORS, PARAMETERS = ["method.name=fedh2l"], ["method.name=d_psgd", "method.publish=start"]
# The order is that of the columns of the file.
PARTS = ("publish", "local", "mutual", "evaluate", "post", "finish", "stack", "write", "rest")
CALIBRATIONS = 5


@dataclass(frozen=True)
class Case:
    """One run to measure."""

    method: str
    graph: str
    participants: int
    ranks: int

    def settings(self, root: str) -> list[str]:
        sent = {"posteriors": POSTERIORS, "parameters": PARAMETERS}[self.method]
        drawn = {"ring": RING, "4-regular": REGULAR}[self.graph]
        rounds = 4 if self.participants >= 256 else 10
        return [
            *SETTINGS,
            *sent,
            *drawn,
            f"data.root={root}",
            f"participants={self.participants}",
            f"rounds={rounds}",
        ]

    def __str__(self) -> str:
        return f"{self.method:10} {self.graph:9} P={self.participants:<4} R={self.ranks}"


@dataclass
class Measured:
    """Cost of a run.

    Attributes
    ----------
    loads : Loads
        Work of each rank in a round.
    parts : list of dict of str to float
        CPU seconds of each rank in each part of a round.
    pss_bytes, rss_bytes : list of int
        Memory of each rank after the last round.
    """

    case: Case
    loads: Loads
    parts: list[dict[str, float]]
    pss_bytes: list[int]
    rss_bytes: list[int]

    @property
    def busiest(self) -> int:
        return int(np.argmax([sum(parts.values()) for parts in self.parts]))

    @property
    def per_participant_s(self) -> float:
        """CPU seconds of all ranks per participant and round, without evaluation."""
        return sum(sum(p.values()) - p["evaluate"] for p in self.parts) / self.case.participants


def cases(largest: int) -> list[Case]:
    """Return the runs: the first ones show the growth with participants, the others separate messages from bytes."""
    sizes = [size for size in (4, 16, 64, 256, 1000) if size <= largest]
    graphs = ("ring", "4-regular")
    found = [
        Case("posteriors", graph, size, ranks)
        for size in sizes
        for graph in graphs
        for ranks in (1, 2)
        # Degree 4 needs 5 participants.
        if not (graph == "4-regular" and size == 4)
    ]
    found += [Case("posteriors", graph, 64, ranks) for graph in graphs for ranks in (4, 8) if largest >= 64]
    found += [
        Case("parameters", graph, size, ranks)
        for size in (16, 64, 256)
        if size <= largest
        for graph in graphs
        for ranks in ((1, 2, 8) if size == 64 else (1, 2))
    ]
    return found


def work(settings: list[str], folder: Path) -> None:
    """Run on every rank, with the CPU seconds of this thread in place of all wall times."""
    time.perf_counter = time.thread_time  # type: ignore[assignment]
    from fedh2l_mpi import api, exchange
    from fedh2l_mpi.lifecycle.start import RunReservation
    from fedh2l_mpi.metrics.run_recorder import RunRecorder
    from fedh2l_mpi.run_directory import RunDirectory
    from fedh2l_mpi.runtime.world import connect
    from fedh2l_mpi.simulation import Simulation

    starts: list[float] = []
    stacks: dict[int, float] = defaultdict(float)
    writes: list[tuple[int, float]] = []

    plain_round, plain_write = Simulation._round, RunRecorder._write

    def marked_round(self: Simulation, index: int) -> None:
        starts.append(time.thread_time())
        plain_round(self, index)

    def marked_write(self: RunRecorder, index: int, table: NDArray[np.float64]) -> None:
        begin = time.thread_time()
        plain_write(self, index, table)
        writes.append((len(starts) - 1, time.thread_time() - begin))

    Simulation._round = marked_round  # type: ignore[method-assign]
    RunRecorder._write = marked_write  # type: ignore[method-assign]
    plain = exchange.Received.__getitem__

    def timed(self: exchange.Received, participant: int) -> object:
        begin = time.thread_time()
        stacked = plain(self, participant)
        stacks[len(starts) - 1] += time.thread_time() - begin
        return stacked

    exchange.Received.__getitem__ = timed  # type: ignore[assignment,method-assign]
    world = connect()
    config = loading.load(None, settings).resolved(world.size, world.launched)
    directory = RunDirectory(folder / "run")
    api.assemble(config, world, RunReservation(directory), trace=folder / "trace.json").run()
    rollup = Path("/proc/self/smaps_rollup").read_text().split("\n")
    kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup if line.startswith(("Pss:", "Rss:"))}
    numbers = {"starts": starts, "stacks": stacks, "writes": writes, "pss": 1024 * kib["Pss"], "rss": 1024 * kib["Rss"]}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(numbers))


def run(case: Case, root: str, notes: float) -> Measured:
    """Start the ranks, and read their results."""
    settings = case.settings(root)
    with tempfile.TemporaryDirectory() as name:
        program = [sys.executable, "-m", "benchmarks.scaling", root, "--worker", name, "--settings", *settings]
        if case.ranks > 1:
            program = [str(Path(sys.executable).with_name("mpirun")), "-n", str(case.ranks), *program]
        ended = subprocess.run(program, capture_output=True, text=True, cwd=HERE.parent)
        if ended.returncode:
            raise SystemExit(f"{' '.join(program)} failed:\n{ended.stderr}")
        folder = Path(name)
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        numbers = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(case.ranks)]
    config = loading.load(None, settings).resolved(case.ranks, launched=True)
    loads = count_loads(config, case.ranks, notes)
    parts = [parts_of(rank, events, numbers[rank], config.rounds) for rank in range(case.ranks)]
    return Measured(case, loads, parts, [one["pss"] for one in numbers], [one["rss"] for one in numbers])


def parts_of(rank: int, events: list[dict], numbers: dict, rounds: int) -> dict[str, float]:
    """Return the seconds of one rank in each part of a round: the minimum over all but the first and last rounds.

    Other processes on the machine can only add to CPU seconds, because they share caches and cores.
    """
    spans = [event for event in events if event["ph"] == "X" and event["pid"] == rank and event["tid"] == 1]
    seconds: dict[str, list[float]] = {name: [0.0] * rounds for name in PARTS}
    names = {"post messages": "post", "wait": "finish"}
    wrote = [event for event in spans if event["name"] == "write"]
    flushed = [0.0] * rounds
    for event in spans:
        part, at = names.get(event["name"], event["name"]), event["args"]["round"]
        if part == "timeline":
            flushed[at] += event["dur"] / 1e6
        elif part in seconds and part != "write":
            inside = [other for other in wrote if 0 <= other["ts"] - event["ts"] < event["dur"]]
            seconds[part][at] += (event["dur"] - sum(other["dur"] for other in inside)) / 1e6
    # A round may be written while the next one runs, so the time of the event counts.
    for at, took in numbers["writes"]:
        seconds["write"][at] += took
    for at in range(1, rounds - 1):
        seconds["stack"][at] = numbers["stacks"].get(str(at), 0.0)
        seconds["mutual"][at] -= seconds["stack"][at]
        whole = numbers["starts"][at + 1] - numbers["starts"][at] - flushed[at]
        seconds["rest"][at] = whole - sum(seconds[name][at] for name in PARTS if name != "rest")
    found = {name: min(values[1 : rounds - 1]) for name, values in seconds.items()}
    found["evaluate"] = seconds["evaluate"][rounds - 1]
    found["write"] = min((took for _, took in numbers["writes"]), default=0.0)
    return found


def count_loads(config: Config, ranks: int, notes: float) -> Loads:
    """Return the work of each rank in a round of a resolved config."""
    hosting = Hosting(config.size, ranks)
    graph: Links = links(draw(config.topology, config.size, config.seed, 0).edges, hosting)
    source = open_source(config.data)
    held, _ = sample_counts.count_or_assume(config, source)
    message: MessageSize | None = requirements.compute(config, source, methods.build(config), held).message
    return overhead.count_loads(graph, hosting, message, notes, 8 * metrics.row_width(held.domains))


def calibrated(case: Case, root: str) -> dict[str, float]:
    """Measure a participant's phases as `plan` does, as CPU seconds of a separate process."""
    program = [sys.executable, "-m", "benchmarks.scaling", root, "--calibrate", "--settings", *case.settings(root)]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=HERE.parent)
    if ended.returncode:
        raise SystemExit(f"{' '.join(program)} failed:\n{ended.stderr}")
    return json.loads(ended.stdout)


def calibrate(settings: list[str]) -> None:
    """Print the measured seconds."""
    time.perf_counter = time.thread_time  # type: ignore[assignment]
    config = loading.load(None, settings).resolved(1, launched=False)
    source = open_source(config.data)
    held, _ = sample_counts.count_or_assume(config, source)
    message = requirements.compute(config, source, methods.build(config), held).message
    graph = config.topology
    degree = 2.0 if isinstance(graph, Ring) else float(graph.degree if isinstance(graph, RandomRegular) else 0)
    found = timing.calibrate(config, source, held, degree, message.array_bytes if message else 0)
    (phases,) = found.phases.values()
    numbers = {name: getattr(phases, name) for name in ("publish", "local", "mutual", "evaluate")}
    print(json.dumps(numbers | {"seed_round": found.seed_round_s, "notes": found.notes}))


def least_squares(features: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit constants >= 0 with the least relative errors; negative ones are dropped."""
    weights = 1.0 / np.maximum(seconds, 0.05 * np.median(seconds))
    active = [column for column in range(features.shape[1]) if features[:, column].any()]
    found = np.zeros(features.shape[1])
    while active:
        fitted, *_ = np.linalg.lstsq(features[:, active] * weights[:, None], seconds * weights, rcond=None)
        if (fitted >= 0).all():
            found[active] = fitted
            break
        active.pop(int(np.argmin(fitted)))
    return found


def written(participants: int) -> tuple[float, float]:
    """Return the bytes of the rows of some participants, and the least CPU seconds of writing a round of them."""
    domains = 4
    row = {field.name: "x" if field.dtype == "S" else 0 for field in metrics.PARTICIPANT_FIELDS}
    attributes = {"config": "", "seed": 0, "rounds_planned": 1, "ranks": 1, "threads": 1}
    histogram = np.zeros((participants, 10), dtype=np.int64)
    header = metrics.RunHeader(attributes, [row] * participants, histogram, ["x"] * domains)
    # Whole numbers fit arrays of every type.
    table = np.random.default_rng(0).integers(9, size=(participants, metrics.row_width(domains))).astype(np.float64)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        writer = metrics.MetricsWriter(Path(folder) / "metrics.h5", header)
        for round_index in range(8):
            begin = time.thread_time()
            writer.append(round_index, table)
            times.append(time.thread_time() - begin)
        writer.close("complete")
    return float(table.nbytes), min(times)


def fit(runs: Sequence[Measured], writes: Sequence[tuple[float, float]]) -> OverheadConstants:
    """Fit the constants to all runs, and to large files that are written without a run."""
    constants: dict[str, float] = {}
    for part, names in overhead.TERMS.items():
        rows, seconds = [], []
        for one in runs:
            # Waiting uses some CPU as well, so the rank that waits least shows the cost of receiving.
            ranks = range(one.case.ranks)
            if part == "write":
                chosen = [0]
            elif part == "finish":
                chosen = [min(ranks, key=lambda rank: one.parts[rank]["finish"])]
            else:
                chosen = list(ranks)
            for rank in chosen:
                rows.append([one.loads.counts[of][rank] for of in names.values()])
                seconds.append(one.parts[rank][part])
        if part == "write":
            rows += [[1.0, row_bytes] for row_bytes, _ in writes]
            seconds += [took for _, took in writes]
        constants |= zip(names, least_squares(np.array(rows, dtype=float), np.array(seconds)), strict=True)
    return OverheadConstants(**constants)


def predicted(one: Measured, rank: int, phases: dict[str, float], constants: OverheadConstants) -> float:
    """Return the seconds of a round of a rank, without evaluation."""
    steps = sum(phases[name] for name in ("publish", "local", "mutual"))
    return one.loads.participants[rank] * steps + phases["seed_round"] + outside(one, rank, constants)


def outside(one: Measured, rank: int, constants: OverheadConstants) -> float:
    """Return the model's seconds of a round of a rank outside the steps."""
    return float(sum(seconds[rank] for seconds in constants.seconds(one.loads).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=lambda text: str(Path(text).resolve()), help="folder of MNIST's IDX files")
    parser.add_argument("--largest", type=int, default=LARGEST, help=f"participants of the largest runs ({LARGEST})")
    parser.add_argument("--repeats", type=int, default=1, help="of every run; the one that took least counts (1)")
    parser.add_argument(
        "--out", type=Path, help="CSV file to write (benchmarks/results/scaling.csv; with a smaller --largest, none)"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--calibrate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--settings", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return work(options.settings, options.worker)
    if options.calibrate:
        return calibrate(options.settings)
    out = out_of(options.out, options.largest)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    chosen = cases(options.largest)
    # Steps of a participant depend on the method and the graph only.
    kinds = dict.fromkeys((case.method, case.graph) for case in chosen)
    of_kind: dict[tuple[str, str], dict[str, float]] = {}
    for kind in kinds:
        tried = [calibrated(Case(*kind, participants=64, ranks=1), options.root) for _ in range(CALIBRATIONS)]
        # The minimum is used because other processes can only add time.
        of_kind[kind] = {name: min(one[name] for one in tried) for name in tried[0]}
        numbers = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in of_kind[kind].items() if name != "notes")
        print(f"{' on '.join(kind)}, calibrated: {numbers}", flush=True)
    runs, phases = [], []
    for case in chosen:
        calibration = of_kind[case.method, case.graph]
        tries = [run(case, options.root, calibration["notes"]) for _ in range(options.repeats)]
        one = min(tries, key=lambda one: one.per_participant_s)
        for parts in one.parts:
            # The seed samples of a round are calibrated as well; they are part of the rest.
            parts["seed_round"] = calibration["seed_round"]
            parts["rest"] -= calibration["seed_round"]
        runs.append(one)
        phases.append(calibration)
        print(
            f"{case}: {1e3 * one.per_participant_s:.2f} ms of CPU a participant and round, "
            f"PSS {max(one.pss_bytes) / 2**20:.0f} MiB at most",
            flush=True,
        )
    writes = [written(participants) for participants in (10_000, 100_000)]
    for row_bytes, took in writes:
        print(f"a round of {row_bytes / 1e6:.1f} MB of rows is written in {1e3 * took:.1f} ms of CPU")
    report(runs, phases, writes, out)
    return None


def out_of(given: Path | None, largest: int) -> Path | None:
    """Return the file to write, or None, because some of the runs must not replace the record of all."""
    return given or (RESULTS if largest >= LARGEST else None)


def report(
    runs: list[Measured], phases: list[dict[str, float]], writes: list[tuple[float, float]], out: Path | None
) -> None:
    """Print constants, errors, growth and memory; write the file, if there is one."""
    constants = fit(runs, writes)
    print("\nfedh2l_mpi/plan/bookkeeping.py:")
    for name, value in vars(constants).items():
        print(f"    {name}={value:.3g},")
    print("\nCPU ms of a round at the busiest rank: measured, model, error, error when left out of the fit")
    lines = []
    for number, one in enumerate(runs):
        rank = one.busiest
        measured = sum(one.parts[rank].values()) - one.parts[rank]["evaluate"]
        model = predicted(one, rank, phases[number], constants)
        without = fit([other for other in runs if other is not one], writes)
        left_out = predicted(one, rank, phases[number], without)
        taken = sum(one.parts[rank][part] for part in overhead.TERMS)
        book, book_out = (outside(one, rank, of) for of in (constants, without))
        exchange = sum(one.parts[rank][part] for part in ("post", "finish", "stack")) / measured
        lines.append(
            {
                "shared": one.case.method,
                "graph": one.case.graph,
                "participants": one.case.participants,
                "ranks": one.case.ranks,
                "cpu_s_per_participant_and_round": one.per_participant_s,
                "cpu_s_of_the_busiest_rank": measured,
                "model_s": model,
                "error": model / measured - 1,
                "error_left_out": left_out / measured - 1,
                "outside_steps_s": taken,
                "outside_steps_model_s": book,
                "outside_steps_error_left_out": book_out / taken - 1,
                "exchange_share": exchange,
                **{f"{part}_s": one.parts[rank][part] for part in PARTS},
                "pss_bytes": max(one.pss_bytes),
                "rss_bytes": max(one.rss_bytes),
            }
        )
        print(
            f"  {one.case}: {1e3 * measured:9.1f} {1e3 * model:9.1f} {model / measured - 1:+7.1%} "
            f"{left_out / measured - 1:+7.1%}; outside the steps {1e3 * taken:8.2f} {1e3 * book:8.2f} "
            f"{book / taken - 1:+7.1%} {book_out / taken - 1:+7.1%}; exchange {exchange:.2%}"
        )
    cores = len(os.sched_getaffinity(0))
    for what, chosen in (
        ("a core for every rank", [line for line in lines if line["ranks"] <= cores]),
        ("ranks that share a core", [line for line in lines if line["ranks"] > cores]),
    ):
        errors = np.abs([line["error_left_out"] for line in chosen])
        if len(errors):
            print(
                f"left out of the fit, {what}: off by {np.median(errors):.1%} in the median, {errors.max():.1%} at most"
            )
    for graph in ("ring", "4-regular"):
        for ranks in (1, 2):
            chosen = [
                one for one in runs if (one.case.method, one.case.graph, one.case.ranks) == ("posteriors", graph, ranks)
            ]
            if len(chosen) < 2:
                continue
            each = [one.per_participant_s for one in chosen]
            sizes = [one.case.participants for one in chosen]
            slope, base = np.polyfit(sizes, [max(one.pss_bytes) / 2**20 for one in chosen], 1)
            off = max(abs(max(o.pss_bytes) / 2**20 - base - slope * o.case.participants) for o in chosen)
            print(
                f"{graph} on {ranks}: "
                + ", ".join(f"{size}: {1e3 * s:.2f} ms" for size, s in zip(sizes, each, strict=True))
                + f" a participant and round ({max(each) / min(each) - 1:.1%} between least and most); "
                f"PSS {base:.0f} MiB + {1024 * slope:.0f} KiB a participant, off by {off:.1f} MiB at most"
            )
    if out is None:
        return
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in line.items()}
            for line in lines
        )
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
