"""`sweep`: run many runs and compare them."""

import argparse
import os
from pathlib import Path

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser, add_set, positive
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.launcher import Launch

MEANING = """\
Run every combination that a sweep file lists, each in a run directory of its
own in DIR, and compare the runs in a table. The same command again runs the
elements that have not finished. Ready sweep files are in configs/sweeps/."""


def _add_options(parser: Parser) -> None:
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="YAML file: base, set, axes, elements, table")
    add_set(parser, "every element's config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory of the sweep (default: runs/<sweep>)")
    parser.add_argument("--list", action="store_true", help="list the elements with their numbers and states")
    parser.add_argument(
        "--table", action="store_true", help="make the table of the finished elements, without running any"
    )
    parser.add_argument(
        "--index", type=int, metavar="K", help="run element K only (from 0), for job arrays; prints no table"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="with --index: write the element's config and print its run directory D, without running it. "
        "A job then runs `D.yaml --out D --resume auto` on its own ranks",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="elements that run at a time (1)")
    parser.add_argument(
        "--ranks", type=positive, metavar="R", help="MPI ranks of each run (default: one process, without mpirun)"
    )
    parser.add_argument(
        shared_imports.OPTION,
        action="store_true",
        help="with --ranks: each run imports torch and other libraries once per node, instead of once per rank",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only; the table is in DIR")


def _check(options: argparse.Namespace) -> None:
    if options.share_imports and options.ranks in (None, 1):
        raise UserError(
            f"{shared_imports.OPTION}: a run of one process has no other rank to share with. "
            "Fix: give --ranks 2 or more."
        )
    if options.share_imports and options.prepare:
        raise UserError(f"{shared_imports.OPTION}: --prepare runs nothing. Fix: give the option to the job's own run.")


def _execute(options: argparse.Namespace, context: Context) -> int:
    launch = Launch.from_environment(os.environ)
    # A batch script's own shell is one process, even if the job has several tasks.
    if launch.size > 1 and launch.launcher != "sbatch":
        raise UserError(
            f"sweep: {launch.launcher} started {launch.size} processes, but one process starts the runs. "
            f"Fix: use --ranks {launch.size} for runs of {launch.size} ranks each."
        )
    from fedh2l_mpi.launch import sweep

    out = options.out or Path("runs") / options.sweep.stem
    elements = sweep.load(options.sweep, tuple(options.overrides), options.ranks)
    if options.list:
        print(sweep.listing(elements, out))
        return 0
    if options.table:
        sweep.tabulate(elements, out, options.quiet)
        return 0
    if options.prepare:
        print(sweep.prepare(elements, out, options.index))
        return 0
    return sweep.run(elements, out, options.jobs, options.ranks, options.index, options.quiet, options.share_imports)


COMMAND = Command(
    name="sweep",
    arguments="SWEEP",
    summary="run many runs and compare them",
    meaning=MEANING,
    examples=(
        ("List the runs of a sweep", "{program} sweep configs/sweeps/views_digits.yaml --list"),
        ("Run them, two at a time, and print the table", "{program} sweep configs/sweeps/views_digits.yaml --jobs 2"),
    ),
    add_options=_add_options,
    execute=_execute,
    check=_check,
    exit_codes="Exit codes: 0 done, 1 some runs failed and the others are done, 2 a mistake in the request, "
    "130 interrupted.",
)
