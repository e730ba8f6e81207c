"""Share of the messages' time that is hidden behind computing, and of a rank's time that it waits, from a trace.

    python -m benchmarks.overlap [CONFIG] [--set KEY=VALUE]... [--ranks 2] [--cost PAIRS]

It starts one run under mpirun with --trace. It prints, for every rank, the time that messages were under way, and how
much of it the rank computed and waited. A message counts as under way until the rank sees it complete. A rank checks
after every participant's local phase, so this time is an upper bound.

Waiting is split at the moment when the last rank had posted its messages. Before it, a rank waits for another rank's
computing, because the load is uneven. After it, a rank waits for the transfer, and for ranks that compute instead of
moving their end of the transfer. The share of a rank's time that it waits comes from the seconds in metrics.h5.

`--cost` also measures CPU seconds of whole runs with and without --trace, in pairs.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import spent, waited_shares

COMPUTING = ("publish", "local", "mutual", "evaluate")
Interval = tuple[float, float]


@dataclass
class Lane:
    """Intervals of one rank by category [us], and its messages by round."""

    spans: dict[str, list[Interval]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[int, Interval] = field(default_factory=dict)


def lanes(trace: Path) -> dict[int, Lane]:
    """Read the intervals of every rank from a trace."""
    found: dict[int, Lane] = defaultdict(Lane)
    for event in json.loads(trace.read_text())["traceEvents"]:
        lane = found[event["pid"]]
        if event["ph"] == "X":
            lane.spans[event["cat"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "b":
            lane.messages[event["args"]["round"]] = (event["ts"], event["ts"])
        elif event["ph"] == "e":
            begin, _ = lane.messages[event["args"]["round"]]
            lane.messages[event["args"]["round"]] = (begin, event["ts"])
    return found


def within(window: Interval, spans: list[Interval]) -> float:
    """Return the part of a window that disjoint spans cover."""
    return sum(max(0.0, min(end, window[1]) - max(begin, window[0])) for begin, end in spans)


@dataclass(frozen=True)
class Overlap:
    """Sums of one rank over the rounds [s]."""

    messages: float
    computing: float
    waiting_for_senders: float
    waiting_for_transfer: float


def overlaps(found: dict[int, Lane]) -> dict[int, Overlap]:
    """Compute the sums of every rank, for a run in which ranks exchange messages."""
    told = {}
    for rank, lane in sorted(found.items()):
        total = computing = senders = transfer = 0.0
        for round_index, window in lane.messages.items():
            # In a redrawn graph, a rank may have no neighbour on another rank in this round.
            posts = [other.messages[round_index] for other in found.values() if round_index in other.messages]
            last_posted = max(begin for begin, _ in posts)
            between = min(max(window[0], last_posted), window[1])
            total += window[1] - window[0]
            computing += sum(within(window, lane.spans[name]) for name in COMPUTING)
            senders += within((window[0], between), lane.spans["wait"])
            transfer += within((between, window[1]), lane.spans["wait"])
        told[rank] = Overlap(*(value / 1e6 for value in (total, computing, senders, transfer)))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="YAML file (default: the built-in config)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--cost", type=int, default=0, metavar="PAIRS", help="pairs of runs that measure the cost of tracing"
    )
    options = parser.parse_args()
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", str(options.ranks)]
    given = [word for override in options.overrides for word in ("--set", override)]
    program = [*mpirun, sys.executable, "-m", "fedh2l_mpi", *([options.config] if options.config else []), *given]
    run = [*program, "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        trace, out = Path(folder) / "out.json", Path(folder) / "run"
        spent([*run, "--out", str(out), "--trace", str(trace)])
        shares = waited_shares(out)
        for rank, sums in overlaps(lanes(trace)).items():
            line = f"rank {rank}: waits {shares[rank]:.2%} of its rounds' time"
            if sums.messages:
                hidden = sums.computing / sums.messages
                line += (
                    f"; messages on their way for {sums.messages:.3f} s, of which it computed {hidden:.1%}, waited "
                    f"{sums.waiting_for_senders / sums.messages:.1%} for ranks that had not sent yet and "
                    f"{sums.waiting_for_transfer / sums.messages:.1%} for the transfer"
                )
            print(line, flush=True)
        costs = []
        for pair in range(options.cost):
            traced = ["--trace", str(Path(folder) / f"{pair}.json")]
            # The first run of a pair meets the machine in a different state, so the runs take turns.
            order = [traced, []] if pair % 2 else [[], traced]
            seconds = {
                bool(more): spent([*run, "--out", str(Path(folder) / f"{pair}-{len(more)}"), *more]).cpu_s
                for more in order
            }
            costs.append(seconds[True] / seconds[False] - 1)
            print(f"pair {pair + 1}: {seconds[False]:.2f} CPU s without, {seconds[True]:.2f} with --trace", flush=True)
        if costs:
            print(f"--trace adds {statistics.median(costs):+.2%} CPU ({min(costs):+.2%} to {max(costs):+.2%})")


if __name__ == "__main__":
    main()
