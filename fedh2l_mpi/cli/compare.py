"""`compare`: groups of runs in tables for a paper, and their curves in one figure."""

import argparse
import sys
from pathlib import Path

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser
from fedh2l_mpi.cli.output import RUNS, give, width
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.terminal import say


def _add_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument("--by", action="append", default=[], metavar="KEY", help="group by this config key (repeatable)")
    made.add_argument(
        "--ignore", action="append", default=[], metavar="KEY", help="do not group by this key (repeatable)"
    )
    made.add_argument(
        "--measure",
        dest="measures",
        action="append",
        metavar="FIELD",
        help="column: accuracy_own, accuracy_all, accuracy_worst, bytes_sent, calibration_error... (repeatable)",
    )
    made.add_argument(
        "--baseline", metavar="GROUP", help="group that the others are compared to (default: independent, or the first)"
    )
    made.add_argument(
        "--gap",
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="show the share of the accuracy gap between two groups that the others close",
    )
    made.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="confidence level of the intervals, between 0 and 1 (0.95)",
    )
    made.add_argument(
        "--format",
        choices=["terminal", "markdown", "csv", "latex"],
        default="terminal",
        help="format (default: terminal)",
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    made.add_argument(
        "--order",
        action="extend",
        nargs="+",
        default=[],
        metavar="GROUP",
        help="groups that come first, in this order; also a value, such as a method (default: as a sweep lists them); "
        "name the runs before this option",
    )
    made.add_argument(
        "--names",
        action="extend",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="other names for groups, or parts of their names, such as fedh2l=FedH2L; name the runs before this option",
    )
    made.add_argument("--percent", action="store_true", help="write accuracies in per cent")
    made.add_argument(
        "--digits", type=_digits, metavar="N", help="decimals of accuracies (default: 3, or 1 with --percent)"
    )
    made.add_argument("--label", metavar="NAME", help=r"LaTeX: \label of the first table, such as tab:methods")
    made.add_argument("--caption", metavar="TEXT", help="LaTeX: caption of the first table")
    made.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the groups' curves: .png, .svg or .pdf; a panel for each --measure",
    )
    made.add_argument(
        "--width", type=width, metavar="MM", help="width of --plot [mm], or column (85) or page (175, the default)"
    )


def _execute(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.analysis import compare, comparison_tables
    from fedh2l_mpi.analysis import run as runs

    given = {} if options.measures is None else {"measures": options.measures}
    compared = compare.compare(
        runs.find(options.runs),
        options.by,
        options.ignore,
        baseline=options.baseline,
        confidence=options.confidence,
        gap=None if options.gap is None else (options.gap[0], options.gap[1]),
        order=options.order,
        names=options.names,
        **given,
    )
    for note in compared.notes:
        say(f"note: {note}", file=sys.stderr)
    numbers = comparison_tables.Numbers(options.percent, options.digits)
    text = comparison_tables.render(compared, options.format, numbers, options.label or "", options.caption or "")
    give(text, options.out, "comparison")
    if options.plot is not None:
        drawn = options.measures or ["accuracy_all"]
        for note in compare.plot(compared, options.plot, drawn, options.width, options.percent):
            say(f"note: {note}", file=sys.stderr)
        # Standard output may be CSV for another program, so the line goes to standard error.
        say(f"plot: {options.plot}", file=sys.stderr if options.out is None else sys.stdout)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise a UserError for an option that would change nothing."""
    for name in ("label", "caption"):
        if getattr(options, name) is not None and options.format != "latex":
            raise UserError(f"--{name}: got one, but only --format latex has it. Fix: add --format latex.")
    if options.width is not None and options.plot is None:
        raise UserError("--width: this is the width of --plot. Fix: add --plot FILE.")
    if options.format == "csv":
        if options.digits is not None:
            raise UserError("--digits: csv has all digits. Fix: leave it out, or choose another --format.")
        if options.percent and options.plot is None:
            raise UserError("--percent: csv has fractions with all digits. Fix: leave it out, or add --plot FILE.")


def _digits(text: str) -> int:
    if not text.isdecimal() or int(text) > 9:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number from 0 to 9")
    return int(text)


COMMAND = Command(
    name="compare",
    arguments="RUN...",
    summary="compare groups of runs",
    meaning="Group runs by the keys in which their configs differ. Print the mean and spread\n"
    "over seeds, and paired differences with confidence intervals.",
    examples=(
        ("Make a table for a paper", "{program} compare runs --names fedh2l=FedH2L --format latex"),
        (
            "Compare methods, and draw their curves",
            "{program} compare runs/a runs/b --by method.name --plot methods.png",
        ),
    ),
    add_options=_add_options,
    execute=_execute,
    check=_check,
)
