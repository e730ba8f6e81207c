"""`doctor`: check whether a run would work on this machine."""

import argparse

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser, add_set
from fedh2l_mpi.runtime.world import World

MEANING = """\
Check whether a run would work here, and print one page with a fix for each
problem: versions, launcher, cores, GPUs and the file system; between ranks
also timed messages and clocks. Start it the way the run will be started."""


def _add_options(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file whose devices, data and messages to try")
    add_set(parser, "the config")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for runs, which is left unchanged (default: runs, or this folder)"
    )


def _connect() -> World:
    from fedh2l_mpi.launch.doctor import examine

    return examine.connect_ranks()


def _execute(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.launch.doctor import examine

    return examine.examine(context.world, options.config, tuple(options.overrides), options.out)


COMMAND = Command(
    name="doctor",
    arguments="[CONFIG]",
    summary="check whether a run would work here",
    meaning=MEANING,
    examples=(
        ("Check this machine for runs of one process", "{program} doctor"),
        ("Check the messages of 4 ranks, and a config", "mpirun -n 4 {program} doctor configs/digits_ring.yaml"),
    ),
    add_options=_add_options,
    execute=_execute,
    exit_codes="Exit codes: 0 a run would work, 1 it would not, 2 a mistake in the request.",
    together=lambda options: True,
    connect=_connect,
)
