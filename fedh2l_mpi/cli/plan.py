"""`plan`: what a run on many ranks would take, before asking for a cluster. One process, no MPI; trains no such run."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedh2l_mpi.cli.options import add_set, new_parser, positive
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import units

MEANING = """\
What would this config take on N ranks: memory of a rank, traffic and messages, sizes of files, seconds a round?

Nothing is run: one process without MPI reads the data, draws the graph, builds one model of each architecture, and
trains each for a second to see how fast this machine is.

With --latency and --bandwidth, besides: a round on a cluster whose ranks have a device each, as a sum of training
steps, bookkeeping, messages and what rank 0 writes, with what of it takes most; and the same sharing parameters."""
# Up to here the arithmetic takes seconds, and less than a gigabyte.
MOST_PARTICIPANTS = 100_000


@dataclass(frozen=True)
class PlanCommand:
    """Tell what a run would take."""

    config: str | None
    overrides: tuple[str, ...]
    ranks: int
    participants: int | None
    calibrate: bool
    latency_s: float | None
    bandwidth_bytes_s: float | None
    speedup: float | None
    json: bool


def parse(words: Sequence[str], speaks: bool) -> PlanCommand:
    """The options of the command.

    Raises
    ------
    UserError
        If they are wrong.
    """
    parser = new_parser("python -m fedh2l_mpi plan", MEANING, speaks)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file; every key has a default")
    parser.add_argument("--ranks", type=positive, required=True, metavar="N", help="MPI ranks of the run")
    parser.add_argument(
        "--participants", type=positive, metavar="P", help="instead of the config's (null there: as many as ranks)"
    )
    add_set(parser, "the config")
    parser.add_argument("--no-calibration", dest="calibrate", action="store_false", help="tell no times, train nothing")
    parser.add_argument(
        "--latency",
        dest="latency_s",
        type=_in_units(units.seconds),
        metavar="TIME",
        help="of a message between two ranks of the cluster, such as 2us",
    )
    parser.add_argument(
        "--bandwidth",
        dest="bandwidth_bytes_s",
        type=_in_units(units.bytes_per_second),
        metavar="SPEED",
        help="of a message between two ranks, such as 25GB/s or 200Gbit/s",
    )
    parser.add_argument(
        "--speedup",
        type=_factor,
        metavar="X",
        help="how many times faster a rank's device makes the training steps than a core of this machine, as you have "
        "measured it (1: not at all faster)",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    options = parser.parse_args(list(words))
    _check_cluster(options)
    return PlanCommand(**{**vars(options), "overrides": tuple(options.overrides)})


def _in_units(read: Callable[[str], float]) -> Callable[[str], float]:
    """For argparse, which shows the text of this kind of error only."""

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


def _check_cluster(options: argparse.Namespace) -> None:
    given = {"--latency": options.latency_s, "--bandwidth": options.bandwidth_bytes_s}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 1:
        raise UserError(f"{missing[0]}: is missing; a cluster is told by --latency and --bandwidth")
    if missing and options.speedup is not None:
        raise UserError("--speedup: is of a cluster, which is told by --latency and --bandwidth")
    if not missing and not options.calibrate:
        raise UserError("--latency: a round on a cluster is told from timed steps; leave out --no-calibration")


def execute(command: PlanCommand) -> int:
    """Print the page, or the JSON, and the exit code.

    Raises
    ------
    UserError
        If config, data files, models or graph are wrong. Data that do not suffice are told on the page.
    """
    config = resolved(command)
    # Read by OpenMP when torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi.planning import plan
    from fedh2l_mpi.planning.cluster_model import ClusterModel

    cluster = None
    if command.latency_s is not None and command.bandwidth_bytes_s is not None:
        cluster = ClusterModel(command.latency_s, command.bandwidth_bytes_s, command.speedup or 1.0)
    name = command.config or "the built-in config"
    told = plan.plan_run(config, name, command.ranks, command.calibrate, cluster)
    if command.json:
        import json

        print(json.dumps(told.as_dict(), indent=2))
    else:
        from fedh2l_mpi.planning.page import print_page

        print_page(told)
    return 0


def resolved(command: PlanCommand) -> Config:
    """The config with its number of participants.

    Raises
    ------
    UserError
        If it is wrong, or has fewer participants than there are ranks, or too many.
    """
    overrides = list(command.overrides)
    if command.participants is not None:
        overrides.append(f"participants={command.participants}")
    config = loading.load(command.config, overrides)
    participants = config.participants or command.ranks
    if command.ranks > participants:
        raise UserError(
            f"--ranks: got {command.ranks}, must be {participants} or fewer: a rank hosts at least one of the "
            f"{participants} participants; give --participants, or set participants to null for one on each rank"
        )
    if participants > MOST_PARTICIPANTS:
        raise UserError(f"participants: got {participants}, must be {MOST_PARTICIPANTS} or fewer for a plan")
    return config.resolved(participants if config.participants is None else command.ranks, launched=True)
