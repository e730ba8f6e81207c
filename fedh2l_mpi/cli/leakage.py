"""`leakage`: attack a finished run, and print what it gives away about private data."""

import argparse
import sys
from pathlib import Path

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser
from fedh2l_mpi.cli.output import give, show
from fedh2l_mpi.runtime.terminal import say


def _add_options(made: Parser) -> None:
    made.add_argument("run", type=Path, metavar="RUN", help="run directory")
    made.add_argument(
        "--participants", type=int, nargs="+", metavar="N", help="participants to attack (default: all); name RUN first"
    )
    made.add_argument(
        "--shadows",
        type=int,
        default=4,
        metavar="K",
        help="models that LiRA trains for each participant, an even number; 0: without LiRA (default: 4)",
    )
    made.add_argument(
        "--format", choices=["terminal", "markdown", "csv"], default="terminal", help="format (default: terminal)"
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")


def _execute(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.runtime.libraries import name_missing_library

    with name_missing_library():
        from fedh2l_mpi.privacy import leakage, page

    evidence = leakage.collect(options.run)
    if evidence.kept is None:
        say("note: no observer, because the run has no exchange.keep_posteriors", file=sys.stderr)
    if not evidence.has_models:
        say("note: no query, because the run has no checkpoint", file=sys.stderr)
    say_progress = lambda text: say(f"attacking {text}", file=sys.stderr)  # noqa: E731
    findings = leakage.measure(evidence, options.participants, options.shadows, say_progress)
    if options.format != "terminal":
        give((page.markdown if options.format == "markdown" else page.csv)(findings), options.out, "leakage")
    else:
        show(page.terminal(findings), options.out, "leakage")
    return 0


COMMAND = Command(
    name="leakage",
    arguments="RUN",
    summary="measure what a run gives away about private data",
    meaning="Attack a run's models and messages: membership and label distribution, with\n"
    "chance levels and confidence intervals.",
    examples=(
        ("Attack all participants of a run", "{program} leakage runs/a"),
        ("Attack one participant without shadow models", "{program} leakage runs/a --participants 0 --shadows 0"),
    ),
    add_options=_add_options,
    execute=_execute,
)
