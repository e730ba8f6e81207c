"""Commands and options of `python -m fedh2l_mpi`, nothing else."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedh2l_mpi import config_file
from fedh2l_mpi.config import describe_keys
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.world import Launch, World

DESCRIPTION = """\
Simulate FedH2L: participants with unlike models and unlike data learn from each other's posteriors on a seed set.

Without CONFIG the built-in default runs: scikit-learn's digits, one rotation per participant, on a ring.
Under mpirun or srun the ranks share the participants; a single process hosts them all, with the same numbers.

  python -m fedh2l_mpi plot RUN [--out FILE]   draws a run: see `python -m fedh2l_mpi plot --help`"""
EPILOG = """\
exit codes: 0 done, 2 a mistake in what was asked, 1 a fault, 86 a rank was late, 130 interrupted"""


@dataclass(frozen=True)
class RunCommand:
    """Run the config, or only look at it."""

    config: str | None
    overrides: tuple[str, ...]
    out: str | None
    check: bool
    keys: bool
    quiet: bool


@dataclass(frozen=True)
class PlotCommand:
    """Draw a run."""

    run: Path
    out: Path | None


Command = RunCommand | PlotCommand


class _Parser(argparse.ArgumentParser):
    speaks = True

    def _print_message(self, message: str, file: Any = None) -> None:
        if self.speaks:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def parse(arguments: Sequence[str], speaks: bool = True) -> Command:
    """The command line as a Command; `--help` prints if `speaks`, and exits.

    Raises
    ------
    UserError
        If the options are wrong.
    """
    words = list(arguments)
    if words[:1] == ["plot"]:
        return _parse_plot(words[1:], speaks)
    parser = _parser("python -m fedh2l_mpi", DESCRIPTION, speaks, EPILOG)
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
    options = parser.parse_args(words)
    return RunCommand(options.config, tuple(options.overrides), options.out, options.check, options.keys, options.quiet)


def _parse_plot(words: list[str], speaks: bool) -> PlotCommand:
    meaning = "Draw learning curves and the accuracy of every participant on every domain."
    parser = _parser("python -m fedh2l_mpi plot", meaning, speaks)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory or metrics file, also of a running run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".png, .svg or .pdf (default: plot.png beside the file)"
    )
    options = parser.parse_args(words)
    return PlotCommand(options.run, options.out)


def _parser(program: str, description: str, speaks: bool, epilog: str | None = None) -> _Parser:
    parser = _Parser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.speaks = speaks
    return parser


def needs_world(command: Command) -> bool:
    """Whether the command runs on all ranks together; the others are for one process, without MPI."""
    return isinstance(command, RunCommand) and not (command.check or command.keys)


def execute(command: Command, world: World) -> None:
    """Do what was asked. **Collective** for a run."""
    if isinstance(command, PlotCommand):
        _plot(command)
    elif command.keys:
        _print_keys()
    elif command.check:
        launch = Launch.of(os.environ)
        config = config_file.load(command.config, command.overrides).resolved(launch.size, launch.launched)
        from fedh2l_mpi import console, preflight

        console.output().print(preflight.check(config), highlight=False, soft_wrap=True)
    else:
        _run(command, world)


def _plot(command: PlotCommand) -> None:
    from fedh2l_mpi import metrics
    from fedh2l_mpi.analysis import plot
    from fedh2l_mpi.run_directory import RunDirectory

    path = RunDirectory(command.run).metrics if command.run.is_dir() else command.run
    out = command.out or path.with_name("plot.png")
    plot.plot(metrics.read(path), out)
    print(f"plot: {out}")


def _run(command: RunCommand, world: World) -> None:
    config = world.from_first(
        lambda: config_file.load(command.config, command.overrides).resolved(world.size, world.launched)
    )
    # Read by OpenMP when torch is imported; other counts than the config's would be used until it is told.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi import console, metrics, run_directory
    from fedh2l_mpi.simulation import Simulation

    name = Path(command.config).stem if command.config else "default"
    directory = world.from_first(lambda: run_directory.choose(command.out, name))
    speaks = world.rank == 0 and not command.quiet
    simulation = Simulation(config, world, directory)
    console.setup_logging(str(directory.log(world.rank)), world.rank, world.size, speaks)
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
    for key in describe_keys():
        default = json.dumps(key.default)
        print(f"{key.name}: {default}\n    {key.allowed}\n    {key.meaning}")
