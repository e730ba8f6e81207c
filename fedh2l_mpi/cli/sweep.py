"""`sweep`: run many runs and compare them."""

import os
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.cli.options import add_set, new_parser, positive
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.launcher import Launch

SWEEP_EPILOG = """\
exit codes: 0 done, 2 a mistake in what was asked, 1 some runs failed and the others are done, 130 interrupted"""


@dataclass(frozen=True)
class SweepCommand:
    """Run every element of a sweep, or one of them, or only list them."""

    sweep: Path
    overrides: tuple[str, ...]
    out: Path
    list: bool
    table: bool
    index: int | None
    prepare: bool
    jobs: int
    ranks: int | None
    share_imports: bool
    quiet: bool


def parse(words: list[str], speaks: bool) -> SweepCommand:
    meaning = (
        "Run every combination that a sweep file names, each as a run of its own in DIR, and compare them in a table.\n"
        "The same command again runs what has not finished. Ready ones are in configs/sweeps/."
    )
    parser = new_parser("python -m fedh2l_mpi sweep", meaning, speaks, SWEEP_EPILOG)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="YAML file: base, set, axes, elements, table")
    add_set(parser, "every element's config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory of the sweep (default: runs/<sweep>)")
    parser.add_argument("--list", action="store_true", help="list the elements with their numbers and states")
    parser.add_argument("--table", action="store_true", help="make the table of what has finished; run nothing")
    parser.add_argument(
        "--index", type=int, metavar="K", help="run element K only (from 0), for job arrays; prints no table"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="with --index: write the element's config, print its run directory D; run nothing. A job then runs "
        "`D.yaml --out D --resume auto` on its own ranks",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="elements that run at a time (1)")
    parser.add_argument(
        "--ranks", type=positive, metavar="R", help="MPI ranks of each run (default: one process, without mpirun)"
    )
    parser.add_argument(
        shared_imports.OPTION,
        action="store_true",
        help="with --ranks: each run imports torch and the rest once on a node, not once for every rank",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors; the table is in DIR")
    options = parser.parse_args(words)
    if options.share_imports and options.ranks in (None, 1):
        raise UserError(
            f"{shared_imports.OPTION}: runs of one process have nobody to share with; give --ranks 2 or more"
        )
    if options.share_imports and options.prepare:
        raise UserError(f"{shared_imports.OPTION}: --prepare runs nothing; give it to the job's own run")
    options.out = options.out or Path("runs") / options.sweep.stem
    return SweepCommand(**{**vars(options), "overrides": tuple(options.overrides)})


def execute(command: SweepCommand) -> int:
    """Run, list or tabulate the sweep; the exit code."""
    launch = Launch.from_environment(os.environ)
    # A batch script's own shell is one process, whatever number of tasks the job has.
    if launch.size > 1 and launch.launcher != "sbatch":
        raise UserError(
            f"sweep: {launch.launcher} started {launch.size} processes, must be one, which starts the runs itself; "
            f"use --ranks {launch.size} for runs of {launch.size} ranks each"
        )
    from fedh2l_mpi.launch import sweep

    elements = sweep.load(command.sweep, command.overrides, command.ranks)
    if command.list:
        print(sweep.listing(elements, command.out))
        return 0
    if command.table:
        sweep.tabulate(elements, command.out, command.quiet)
        return 0
    if command.prepare:
        print(sweep.prepare(elements, command.out, command.index))
        return 0
    return sweep.run(
        elements, command.out, command.jobs, command.ranks, command.index, command.quiet, command.share_imports
    )
