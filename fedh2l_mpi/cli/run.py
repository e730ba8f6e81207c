"""Run a config from the command line: the options, and what is printed before and after the rounds."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedh2l_mpi.cli.options import add_set, new_parser
from fedh2l_mpi.config import Config
from fedh2l_mpi.config.keys import describe_keys
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import run_config
from fedh2l_mpi.lifecycle.run_config import MODES, Mode
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.world import World

if TYPE_CHECKING:
    from fedh2l_mpi.run_directory import RunDirectory

DESCRIPTION = """\
Simulate FedH2L: participants with unlike models and unlike data learn from each other's posteriors on a seed set.

Without CONFIG the built-in default runs: scikit-learn's digits, one rotation per participant, on a ring.
Under mpirun or srun the ranks share the participants; a single process hosts them all, with the same numbers.

Other first words are commands; each has a --help of its own:

  report RUN...          what ran, how well everyone does, what it cost; --html: one page with everything
  plot RUN               figures for a paper
  compare RUN...         groups of runs: mean, spread, paired differences with intervals
  watch RUN              follows a running run
  export RUN --to KIND   csv, parquet or netcdf
  validate RUN...        checks metrics files
  sweep SWEEP.yaml       runs many and compares them
  pack FOLDER OUT.h5     makes one file of photographs
  doctor [CONFIG]        says whether a run would work here, alone or under mpirun and srun
  plan CONFIG --ranks N  what a run would take, before asking for a cluster
  slurm CONFIG           prints a batch job for Slurm"""
EPILOG = """\
exit codes: 0 done or stopped in order, 2 a mistake in what was asked, 1 a fault, 86 a rank was late, 130 interrupted"""


@dataclass(frozen=True)
class RunCommand:
    """Run the config, or only look at it."""

    config: str | None
    overrides: tuple[str, ...]
    out: str | None
    resume: Mode
    trace: Path | None
    check: bool
    keys: bool
    quiet: bool
    share_imports: bool


def parse(words: Sequence[str], speaks: bool = True) -> RunCommand:
    """The options of a run.

    Raises
    ------
    UserError
        If they are wrong.
    """
    parser = new_parser("python -m fedh2l_mpi", DESCRIPTION, speaks, EPILOG)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file; every key has a default")
    add_set(parser, "the config")
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<config>-<time>)")
    parser.add_argument(
        "--resume",
        choices=MODES,
        default="never",
        metavar="{" + ",".join(MODES) + "}",
        help="whether a run in DIR is gone on with from its newest checkpoint: never (default); auto: if there is one; "
        "require: or else it is a mistake. Without CONFIG, that run's own is used",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write the run's timeline for Perfetto or chrome://tracing: what every rank did, when. Messages end there "
        "when their rank sees that all are complete, its own sends, too: it looks after each participant's local phase "
        "and while it waits, so they may have arrived earlier. FILE must be new, or the timeline of the run that is "
        "gone on with. A killed run's is in DIR/trace, a file for each rank",
    )
    parser.add_argument(
        "--check", action="store_true", help="validate config, data and graph, tell memory and traffic; train nothing"
    )
    parser.add_argument("--keys", action="store_true", help="list every key of the config with default and meaning")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        shared_imports.OPTION,
        action="store_true",
        help="import torch and the rest once on every node, not once for every rank: a quicker start, less memory",
    )
    options = parser.parse_args(list(words))
    if options.resume != "never" and options.out is None:
        raise UserError(f"--resume {options.resume}: needs --out, the directory of the run to go on with")
    if options.trace is not None and (options.check or options.keys):
        raise UserError(f"--trace: there is nothing to write it of with {'--check' if options.check else '--keys'}")
    return RunCommand(**{**vars(options), "overrides": tuple(options.overrides)})


def execute(command: RunCommand, world: World, signals: Signals | None = None) -> int:
    """Do what the options ask for. **Collective** for a run, which `signals` may stop."""
    if command.keys:
        _print_keys()
    elif command.check:
        launch = Launch.from_environment(os.environ)
        config = _config(command).resolved(launch.size, launch.launched)
        from fedh2l_mpi.planning import check
        from fedh2l_mpi.runtime import terminal

        terminal.open_console().print(check.check(config), highlight=False, soft_wrap=True)
    else:
        _run(command, world, signals)
    return 0


def _config(command: RunCommand) -> Config:
    return run_config.load(command.config, command.overrides, command.out, command.resume)


def _run(command: RunCommand, world: World, signals: Signals | None) -> None:
    mode = command.resume
    config = world.from_first(lambda: _config(command).resolved(world.size, world.launched))
    # Read by OpenMP when torch is imported; other counts than the config's would be used until it is told.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi import run_directory
    from fedh2l_mpi.cli import progress as progressing
    from fedh2l_mpi.lifecycle import start as claims
    from fedh2l_mpi.metrics import trace as timeline
    from fedh2l_mpi.runtime import logs, terminal
    from fedh2l_mpi.simulation import Simulation

    name = Path(command.config).stem if command.config else "default"
    directory = world.from_first(lambda: run_directory.choose(command.out, name, mode != "never"))
    held = logs.buffer_log()
    claim = claims.reserve(world, directory, config, mode)
    speaks = world.rank == 0 and not command.quiet
    try:
        if claim.kind == "done":
            if speaks:
                with terminal.ignore_closed_output():
                    print(f"{directory.path}: the run is complete, {config.rounds} rounds; nothing is left to do")
            return
        if command.trace is not None:
            trace: Path = command.trace
            world.from_first(lambda: timeline.check(trace, directory, resumes=claim.kind == "resume"))
        simulation = Simulation(config, world, claim, signals, command.trace)
        directory = simulation.directory
        logs.setup_logging(str(directory.log(world.rank)), world.rank, world.size, speaks, held)
        plan = simulation.hosted.plan
        progressing.log_start(config, world, simulation.description, plan.label_histogram(), plan.domains)
        if command.share_imports and signals is not None:
            logging.getLogger("fedh2l_mpi").info(str(signals.parent))
        if simulation.method.caution and world.rank == 0:
            logging.getLogger("fedh2l_mpi").warning(simulation.method.caution)
        first = simulation.first_round
        if first:
            logging.getLogger("fedh2l_mpi").info(f"goes on after {first} of {config.rounds} rounds, from a checkpoint")
        progress = progressing.Progress(config, command.quiet, first) if world.rank == 0 else None
        try:
            asked = simulation.run(progress.round if progress else _ignore)
        finally:
            if progress is not None:
                progress.close()
    finally:
        claim.release()
    if speaks:
        _tell(directory, asked, command.trace)


def _tell(directory: "RunDirectory", asked: StopRequest, trace: Path | None) -> None:
    """What the run has come to."""
    from fedh2l_mpi.analysis import report, run
    from fedh2l_mpi.analysis.summary import summarise
    from fedh2l_mpi.runtime import terminal

    table = report.rich_table(report.result_table(summarise(run.look_at(directory.path))))
    lines = [f"metrics: {directory.metrics}"]
    if trace is not None:
        lines.append(f"timeline: {trace}")
    if asked.stops:
        # A signal may have come before the first round, when there is nothing yet that a checkpoint could be of.
        when, does = ("with a checkpoint", "goes on") if directory.committed() else ("before round 0", "begins it")
        lines.append(
            f"stopped ({asked.reason}), {when}; python -m fedh2l_mpi --resume auto --out {directory.path} {does}"
        )
    # All this is in the run directory, too.
    with terminal.ignore_closed_output():
        out = terminal.open_console()
        out.print(table)
        for line in lines:
            out.print(line, highlight=False, soft_wrap=True)


def _ignore(round_index: int, table: object) -> None:
    """Follows a run where nobody looks."""


def _print_keys() -> None:
    for key in describe_keys():
        default = json.dumps(key.default)
        print(f"{key.name}: {default}\n    {key.allowed}\n    {key.meaning}")
