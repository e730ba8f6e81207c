"""Run a config from the command line: the options, and what is printed before and after the rounds."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedh2l_mpi import __version__
from fedh2l_mpi.cli import completion
from fedh2l_mpi.cli.command import SCRIPT, Command, Context
from fedh2l_mpi.cli.options import Parser, add_set
from fedh2l_mpi.config import Config, keys
from fedh2l_mpi.errors import EXIT_INTERRUPTED, UserError, shown
from fedh2l_mpi.lifecycle import run_config, status
from fedh2l_mpi.lifecycle.run_config import MODES
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.world import World

if TYPE_CHECKING:
    from fedh2l_mpi.api import Ended

MEANING = """\
Simulate FedH2L: participants with different models and different data learn
from each other's posteriors on a shared seed set.

Without CONFIG, the built-in default runs: scikit-learn's digits, one rotation
per participant, on a ring. Under mpirun or srun, the ranks share the
participants. A single process hosts all of them, and computes the same
numbers."""


def _add_options(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file; every key has a default")
    add_flags(parser)


def add_flags(parser: Parser) -> None:
    """Add all options of a run; CONFIG is a positional argument, and no option."""
    add_set(parser, "the config")
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<config>-<time>)")
    parser.add_argument(
        "--resume",
        choices=MODES,
        default="never",
        metavar="{" + ",".join(MODES) + "}",
        help="resume from the newest checkpoint in DIR: never (default), auto (if there is one), require (fail if "
        "there is none). Without CONFIG, the config stored in DIR is used",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write a timeline of every rank for Perfetto or chrome://tracing. FILE must be new, or the timeline of "
        "the run that is resumed. A killed run leaves a file per rank in DIR/trace. A message ends when its rank sees "
        "that all messages are complete, its own sends included. The rank looks after each participant's local phase "
        "and while it waits, so the message may have arrived earlier",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check config, data and graph; print memory and traffic; do not train",
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="WORD",
        help="print every key of the config with its default, range and meaning; with WORD only a section such as "
        "method or data.partition, or the keys that have WORD in their name or meaning",
    )
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print the config's JSON Schema, with which an editor completes and checks a YAML file",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        shared_imports.OPTION,
        choices=shared_imports.MODES,
        help="import torch and other libraries once per node instead of once per rank, for a faster start with less "
        "memory; auto (the default, or $FEDH2L_SHARE_IMPORTS): if more than two ranks are on a node, and the launcher "
        "is known to allow it; without a value: always",
    )
    parser.add_argument(
        "--print-completion",
        choices=completion.SHELLS,
        metavar="{" + ",".join(completion.SHELLS) + "}",
        help=f"print a script with which a shell completes {SCRIPT}'s commands and options",
    )
    parser.add_argument("--version", action="version", version=f"fedh2l_mpi {__version__}", help="print the version")


def _other_work(options: argparse.Namespace) -> str:
    """Return the option that asks for something other than a run; empty if there is none."""
    asked = {
        "--check": options.check,
        "--keys": options.keys is not None,
        "--schema": options.schema,
        "--print-completion": options.print_completion is not None,
    }
    return next((name for name, is_given in asked.items() if is_given), "")


def _check(options: argparse.Namespace) -> None:
    asked = os.environ.get(shared_imports.VARIABLE, shared_imports.AUTO)
    if asked not in shared_imports.MODES:
        raise UserError(f"{shared_imports.VARIABLE}: got {shown(asked)}. Allowed: {', '.join(shared_imports.MODES)}.")
    if options.resume != "never" and options.out is None:
        raise UserError(f"--resume {options.resume}: needs the directory of the run to resume. Fix: give --out DIR.")
    if options.trace is not None and (other := _other_work(options)):
        raise UserError(f"--trace: {other} runs nothing, so there is no timeline. Fix: leave out one of the two.")


def _execute(options: argparse.Namespace, context: Context) -> int:
    if options.print_completion is not None:
        print(completion.script(options.print_completion))
    elif options.schema:
        print(json.dumps(keys.json_schema(), indent=2, ensure_ascii=False))
    elif options.keys is not None:
        _print_keys(options.keys)
    elif options.check:
        _print_check(options)
    else:
        return _run(options, context.world, context.signals)
    return 0


def _print_check(options: argparse.Namespace) -> None:
    launch = Launch.from_environment(os.environ)
    config = _config(options).resolved(launch.size, launch.launched)
    from fedh2l_mpi.planning import check
    from fedh2l_mpi.runtime import terminal

    terminal.open_console().print(check.check(config), highlight=False, soft_wrap=True)


def _print_keys(word: str) -> None:
    for key in keys.select_keys(word or None):
        print(key)


def _config(options: argparse.Namespace) -> Config:
    return run_config.load(options.config, options.overrides, options.out, options.resume)


def _run(options: argparse.Namespace, world: World, signals: Signals | None) -> int:
    """Run the config and print its end; return the exit code."""
    config = world.from_first(lambda: _config(options).resolved(world.size, world.launched))
    # OpenMP reads this when torch is imported, before torch knows the config's number of threads.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi import api
    from fedh2l_mpi.runtime.logs import RunLog

    ended = api.execute(
        config,
        world,
        # It is no context here: an error is still written into the log after the run has ended.
        RunLog(),
        out=options.out,
        name=api.default_name(options.config),
        resume=options.resume,
        trace=options.trace,
        signals=signals,
        shows_progress=not options.quiet,
        prints=not options.quiet,
        note=_note_on_imports(options, signals),
    )
    if world.rank == 0 and not options.quiet:
        _print_end(ended, config.rounds, options.trace)
    return EXIT_INTERRUPTED if ended.request == StopRequest.INTERRUPT else 0


def _note_on_imports(options: argparse.Namespace, signals: Signals | None) -> str:
    """Return a line for the log on whether this rank shares its imports, if it does or was to."""
    asked = options.share_imports or os.environ.get(shared_imports.VARIABLE)
    if signals is None or not (signals.parent.proxy or asked == shared_imports.ALWAYS):
        return ""
    return str(signals.parent)


def _print_end(ended: "Ended", rounds: int, trace: Path | None) -> None:
    """Print the table of results, and how to resume a run that was stopped."""
    from fedh2l_mpi.analysis import report
    from fedh2l_mpi.analysis.run import load_run
    from fedh2l_mpi.runtime import terminal

    directory = ended.directory
    # All this is in the run directory, too.
    with terminal.ignore_closed_output():
        if ended.was_complete:
            written = status.read(directory.status)
            if written is not None and written.reason:
                print(
                    f"{directory.path}: the run is complete, {written.reason}; nothing is left to do. More "
                    "run.early_stop.patience, or null, goes on."
                )
            else:
                print(f"{directory.path}: the run is complete, {rounds} rounds; nothing is left to do")
            return
        table = report.rich_table(report.result_table(load_run(directory.path).summary()))
        lines = [f"warning: {ended.verdict}"] if ended.verdict else []
        lines.append(f"metrics: {directory.metrics}")
        if trace is not None:
            lines.append(f"trace: {trace}")
        if ended.request.stops:
            # A signal may come before the first round, when there is nothing to make a checkpoint of.
            when, does = (
                ("with a checkpoint", "resumes it") if directory.committed() else ("before round 0", "starts it")
            )
            lines.append(f"stopped ({ended.request.reason}), {when}; {directory.resume_command} {does}")
        out = terminal.open_console()
        out.print(table)
        for line in lines:
            out.print(line, highlight=False, soft_wrap=True)


COMMAND = Command(
    name="",
    arguments="[CONFIG]",
    summary="run a config",
    meaning=MEANING,
    examples=(
        ("Run a ready config in one process", "{program} configs/digits_ring.yaml --out runs/a"),
        (
            "Run it on 4 ranks, with another seed",
            "mpirun -n 4 {program} configs/digits_ring.yaml --set seed=1 --out runs/b",
        ),
    ),
    add_options=_add_options,
    execute=_execute,
    check=_check,
    exit_codes="Exit codes: 0 done or stopped in order, 1 a fault, 2 a mistake in the request, 86 a rank was late, "
    "130 interrupted.",
    together=lambda options: not _other_work(options),
)
