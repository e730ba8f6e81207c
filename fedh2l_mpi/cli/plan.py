"""`plan`: estimate what a run on many ranks needs. One process, no MPI; the run itself is not trained."""

import argparse
import math
import os
from collections.abc import Callable

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser, add_set, positive
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import units

MEANING = """\
Estimate what a config needs on N ranks: memory per rank, traffic and messages,
sizes of files, and seconds per round.

One process without MPI reads the data, draws the graph, builds one model of
each architecture, and trains each for a second to measure this machine.

With --latency and --bandwidth, it also estimates a round on a cluster whose
ranks have a device each. The estimate is a sum of training steps, bookkeeping,
messages and rank 0's writes. It names the largest part, and compares with a
method that shares parameters instead."""
# Up to here the arithmetic takes seconds, and less than a gigabyte.
MOST_PARTICIPANTS = 100_000


def _add_options(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file; every key has a default")
    parser.add_argument("--ranks", type=positive, required=True, metavar="N", help="MPI ranks of the run")
    parser.add_argument(
        "--participants", type=positive, metavar="P", help="replaces the config's participants (null: one per rank)"
    )
    add_set(parser, "the config")
    parser.add_argument(
        "--no-calibration", dest="calibrate", action="store_false", help="train nothing and print no times"
    )
    parser.add_argument(
        "--latency",
        dest="latency_s",
        type=_in_units(units.seconds),
        metavar="TIME",
        help="latency of a message between two ranks of the cluster, such as 2us",
    )
    parser.add_argument(
        "--bandwidth",
        dest="bandwidth_bytes_s",
        type=_in_units(units.bytes_per_second),
        metavar="SPEED",
        help="bandwidth between two ranks, such as 25GB/s or 200Gbit/s",
    )
    parser.add_argument(
        "--speedup",
        type=_factor,
        metavar="X",
        help="measured speed of a rank's device in training steps, relative to a core of this machine (1)",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def _in_units(read: Callable[[str], float]) -> Callable[[str], float]:
    """Convert an option's value; argparse shows the text of ArgumentTypeError only."""

    def convert(text: str) -> float:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _factor(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a number > 0")
    return number


def _check(options: argparse.Namespace) -> None:
    given = {"--latency": options.latency_s, "--bandwidth": options.bandwidth_bytes_s}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 1:
        raise UserError(
            f"{missing[0]}: is missing. Fix: give --latency and --bandwidth, which describe a cluster together."
        )
    if missing and options.speedup is not None:
        raise UserError("--speedup: describes a cluster. Fix: give --latency and --bandwidth, too.")
    if not missing and not options.calibrate:
        raise UserError(
            "--latency: a round on a cluster is estimated from timed steps. Fix: leave out --no-calibration."
        )


def _execute(options: argparse.Namespace, context: Context) -> int:
    config = resolved(options)
    # OpenMP reads it when torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi.planning import plan
    from fedh2l_mpi.planning.cluster_model import ClusterModel

    cluster = None
    if options.latency_s is not None and options.bandwidth_bytes_s is not None:
        cluster = ClusterModel(options.latency_s, options.bandwidth_bytes_s, options.speedup or 1.0)
    name = options.config or "the built-in config"
    planned = plan.plan_run(config, name, options.ranks, options.calibrate, cluster)
    if options.json:
        import json

        print(json.dumps(planned.as_dict(), indent=2))
    else:
        from fedh2l_mpi.planning.page import print_page

        print_page(planned)
    return 0


def resolved(options: argparse.Namespace) -> Config:
    """Return the config with its number of participants.

    Raises
    ------
    UserError
        If it is wrong, or has fewer participants than there are ranks, or too many.
    """
    overrides = list(options.overrides)
    if options.participants is not None:
        overrides.append(f"participants={options.participants}")
    config = loading.load(options.config, overrides)
    participants = config.participants or options.ranks
    if options.ranks > participants:
        raise UserError(
            f"--ranks: got {options.ranks}, must be {participants} or fewer, because a rank hosts at least one of the "
            f"{participants} participants. Fix: give --participants, or set participants to null for one on each rank."
        )
    if participants > MOST_PARTICIPANTS:
        raise UserError(f"participants: got {participants}, must be {MOST_PARTICIPANTS} or fewer for a plan")
    return config.resolved(participants if config.participants is None else options.ranks, launched=True)


COMMAND = Command(
    name="plan",
    arguments="CONFIG --ranks N",
    summary="estimate memory, traffic and time of a run",
    meaning=MEANING,
    examples=(
        ("Estimate a run on 16 ranks", "{program} plan configs/digits_ring.yaml --ranks 16 --participants 64"),
        (
            "Estimate a round on a cluster whose GPUs are 20 times faster than a core here",
            "{program} plan --ranks 64 --latency 2us --bandwidth 25GB/s --speedup 20",
        ),
    ),
    add_options=_add_options,
    execute=_execute,
    check=_check,
)
