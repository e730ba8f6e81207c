"""`slurm`: print a batch job for Slurm."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fedh2l_mpi.cli.options import Parser, new_parser, positive
from fedh2l_mpi.config import parse_seconds
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.slurm import script
from fedh2l_mpi.launch.slurm.request import SlurmCommand, request
from fedh2l_mpi.runtime import shared_imports

MEANING = """\
Print a batch job that runs CONFIG under Slurm: it stops in order before the time limit, queues itself again, and goes
on from its checkpoint. Config, data, graph, ranks and GPUs are checked first, as a run would. Ready ones are in jobs/.

  slurm CONFIG --nodes 4 --gpus-per-node 4 --time 2h --mpi pmix   a run
  slurm SWEEP --sweep --ranks-per-node 4 --time 1h --mpi pmi2     an array job, an element of a sweep in each task
  slurm --analyse --time 10m                                      checks, report and figures of a run that has ended"""


EPILOG = """\
Times are seconds, 90m, 2h, 1-12h... as in Slurm with colons: H:MM:SS, M:SS, days-H:MM.
exit codes: 0 done, 2 a mistake in what was asked"""


def parse(words: Sequence[str], speaks: bool = True) -> SlurmCommand:
    """The options of the command.

    Raises
    ------
    UserError
        If they are wrong.
    """
    made = new_parser("python -m fedh2l_mpi slurm", MEANING, speaks, EPILOG)
    made.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file of a run, or with --sweep of a sweep")
    _add_resources(made)
    made.add_argument(
        "--mpi", choices=["pmix", "pmi2", "mpirun"], help="srun --mpi=pmix (Open MPI), pmi2 (MPICH); mpirun"
    )
    made.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key (repeatable)"
    )
    made.add_argument("--run", metavar="DIR", help="run directory, or the sweep's (default: runs/<job>-<number>)")
    made.add_argument("--max-restarts", type=_natural, default=20, metavar="N", help="may queue itself again (20)")
    made.add_argument(
        "--lead", type=_seconds, default=120.0, metavar="TIME", help="stops so long before the limit (2m)"
    )
    made.add_argument("--env", metavar="FILE", help=f"script to source (default: {script.DEFAULT_ENV} if there is one)")
    made.add_argument(
        "--scratch", action="store_true", help="copy the pack to each node's $SLURM_TMPDIR or $TMPDIR first"
    )
    made.add_argument(
        shared_imports.OPTION, action="store_true", help="the run imports once on every node, not once for every rank"
    )
    made.add_argument("--sweep", action="store_true", help="CONFIG is a sweep file: an array job over its elements")
    made.add_argument("--at-a-time", type=positive, metavar="K", help="elements of a sweep that run at a time")
    made.add_argument("--analyse", action="store_true", help="a job that looks at a run; takes no CONFIG")
    made.add_argument(
        "--elsewhere", action="store_true", help="data and models are not on this machine: leave them unchecked"
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing; must not exist")
    options = made.parse_args(list(words))
    return SlurmCommand(options, tuple(words), defaults=made.parse_args(["--time", "1"]))


def _add_resources(made: Parser) -> None:
    made.add_argument("--nodes", type=positive, default=1, metavar="N", help="(1)")
    made.add_argument("--gpus-per-node", type=_natural, default=0, metavar="G", help="(0)")
    made.add_argument("--ranks-per-node", type=positive, metavar="R", help="(as many as GPUs)")
    made.add_argument("--cpus-per-task", type=positive, metavar="C", help="cores of a rank (devices.threads)")
    made.add_argument("--time", type=_seconds, required=True, metavar="TIME", help="time limit, such as 2h or 1:30:00")
    made.add_argument("--partition", metavar="P")
    made.add_argument("--account", metavar="A")
    made.add_argument("--job-name", metavar="J", help="(the config's name)")


def execute(command: SlurmCommand) -> int:
    """Print the job or write its file; the exit code.

    Raises
    ------
    UserError
        If the job would be refused: by Slurm, or by the run that it starts.
    """
    text = script.render(request(command))
    out: Path | None = command.options.out
    if out is None:
        print(text, end="")
        return 0
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"--out: {out} exists already; choose another file, or remove it") from None
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    print(f"job: sbatch {shlex.quote(str(out))}", file=sys.stderr)
    return 0


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number >= 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, {error}") from None
