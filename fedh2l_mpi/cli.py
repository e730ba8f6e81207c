"""Commands and options of `python -m fedh2l_mpi`, nothing else."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedh2l_mpi import config as configuration
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.world import World

DESCRIPTION = """\
Simulate FedH2L: participants with unlike models and unlike data learn from each other's posteriors on a seed set.

Without CONFIG the built-in default runs: scikit-learn's digits, one rotation per participant, on a ring.
Under mpirun or srun the ranks share the participants; a single process hosts them all, with the same numbers."""
EPILOG = """\
exit codes: 0 done, 2 a mistake in what was asked, 1 a fault, 86 a rank was late, 130 interrupted"""


@dataclass(frozen=True)
class Command:
    """What was asked for."""

    config: str | None
    overrides: tuple[str, ...]
    out: str | None
    check: bool
    keys: bool
    quiet: bool


class _Parser(argparse.ArgumentParser):
    speaks = True

    def _print_message(self, message: str, file: Any = None) -> None:
        if self.speaks:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (python -m fedh2l_mpi --help lists the options)")


def parse(arguments: Sequence[str], speaks: bool = True) -> Command:
    """The command line as a Command; `--help` prints if `speaks`, and exits.

    Raises
    ------
    UserError
        If the options are wrong.
    """
    parser = _Parser(
        prog="python -m fedh2l_mpi",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.speaks = speaks
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file; every key has a default")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a key of the config (repeatable)",
    )
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<config>-<time>)")
    parser.add_argument(
        "--check", action="store_true", help="validate config, data and graph, tell memory and traffic; train nothing"
    )
    parser.add_argument("--keys", action="store_true", help="list every key of the config with default and meaning")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(arguments)
    return Command(options.config, tuple(options.overrides), options.out, options.check, options.keys, options.quiet)


def needs_world(command: Command) -> bool:
    """Whether the command runs on all ranks together; the others are for one process, without MPI."""
    return not (command.check or command.keys)


def execute(command: Command, world: World) -> None:
    """Do what was asked. **Collective** for a run."""
    if command.keys:
        _print_keys()
    elif command.check:
        config = configuration.load(command.config, command.overrides).resolved(1, launched=False)
        from fedh2l_mpi import console, preflight

        console.output().print(preflight.check(config), highlight=False, soft_wrap=True)
    else:
        _run(command, world)


def _run(command: Command, world: World) -> None:
    config = world.from_first(
        lambda: configuration.load(command.config, command.overrides).resolved(world.size, world.launched)
    )
    # Read by OpenMP when torch is imported; other counts than the config's would be used until it is told.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi import console, metrics, run_directory
    from fedh2l_mpi.simulation import Simulation

    name = Path(command.config).stem if command.config else "default"
    directory = world.from_first(lambda: run_directory.choose(command.out, name))
    speaks = world.rank == 0 and not command.quiet
    simulation = Simulation(config, world, directory)
    lines = speaks and not console.is_terminal()
    console.setup_logging(str(directory.log(world.rank)), world.rank, world.size, lines)
    console.log_start(config, world, simulation.description, simulation.plan.label_histogram())
    progress = console.Progress(config, command.quiet) if world.rank == 0 else None
    try:
        simulation.run(progress.round if progress else _ignore)
    finally:
        if progress is not None:
            progress.close()
    if speaks:
        out = console.output()
        out.print(console.result_table(metrics.read(directory.metrics)))
        out.print(f"metrics: {directory.metrics}", highlight=False, soft_wrap=True)


def _ignore(round_index: int, table: object) -> None:
    """Follows a run where nobody looks."""


def _print_keys() -> None:
    for key in configuration.describe_keys():
        default = json.dumps(key.default)
        print(f"{key.name}: {default}\n    {key.allowed}\n    {key.meaning}")
