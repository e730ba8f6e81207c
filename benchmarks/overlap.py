"""How much of the messages' time is hidden behind computing, and how much of its time a rank waits: from a timeline.

    python -m benchmarks.overlap [CONFIG] [--set KEY=VALUE]... [--ranks 2] [--cost PAIRS]

One run under mpirun with --trace. For every rank: how long its messages were on their way (until it saw them complete,
which it looks for after every participant's local phase: an upper bound), how much of that it spent computing, and how
much waiting. Waiting is split at the moment when the last rank had posted its messages: before that, a rank waits for
another's computing (the load is uneven), after that for the transfer, and for ranks that compute on and do not move
their end of it. The share of its time that a rank waits is from metrics.h5's seconds.

With --cost, besides: CPU seconds of whole runs with and without --trace, in pairs.
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
    """One rank's intervals by category [us], and its messages by round."""

    spans: dict[str, list[Interval]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[int, Interval] = field(default_factory=dict)


def lanes(trace: Path) -> dict[int, Lane]:
    """Each rank's, from a trace."""
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
    """How much of a window disjoint spans cover."""
    return sum(max(0.0, min(end, window[1]) - max(begin, window[0])) for begin, end in spans)


@dataclass(frozen=True)
class Overlap:
    """Of one rank, sums over the rounds [s]."""

    messages: float
    computing: float
    waiting_for_senders: float
    waiting_for_transfer: float


def overlaps(found: dict[int, Lane]) -> dict[int, Overlap]:
    """Each rank's, of a run in which ranks exchange messages."""
    told = {}
    for rank, lane in sorted(found.items()):
        total = computing = senders = transfer = 0.0
        for round_index, window in lane.messages.items():
            # Where the graph is redrawn, a rank may have nobody to send to in this round.
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
        "--cost", type=int, default=0, metavar="PAIRS", help="pairs of runs that tell what tracing costs"
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
        for rank, told in overlaps(lanes(trace)).items():
            line = f"rank {rank}: waits {shares[rank]:.2%} of its rounds' time"
            if told.messages:
                hidden = told.computing / told.messages
                line += (
                    f"; messages on their way for {told.messages:.3f} s, of which it computed {hidden:.1%}, waited "
                    f"{told.waiting_for_senders / told.messages:.1%} for ranks that had not sent yet and "
                    f"{told.waiting_for_transfer / told.messages:.1%} for the transfer"
                )
            print(line, flush=True)
        costs = []
        for pair in range(options.cost):
            traced = ["--trace", str(Path(folder) / f"{pair}.json")]
            # Whichever is first meets a machine in another state: take turns.
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
