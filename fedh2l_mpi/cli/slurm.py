"""`slurm`: print a batch job for Slurm."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser, add_set, new_parser, positive
from fedh2l_mpi.config import parse_seconds
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.slurm import script
from fedh2l_mpi.launch.slurm.request import SlurmCommand, request
from fedh2l_mpi.runtime import atomic_files, shared_imports

MEANING = """\
Print a batch job that runs CONFIG under Slurm. The job stops in order before
the time limit, queues itself again, and resumes from its checkpoint. Config,
data, graph, ranks and GPUs are checked first, as a run would check them. Ready
jobs are in jobs/.

With --sweep, the job is an array job that runs an element of a sweep in each
task. With --analyse, it checks a finished run, and makes its report and
figures.

Times are seconds, 90m, 2h, 1-12h, or H:MM:SS, M:SS, days-H:MM as in Slurm."""


def _add_options(made: Parser) -> None:
    made.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file of a run, or with --sweep of a sweep")
    _add_resources(made)
    made.add_argument(
        "--mpi", choices=["pmix", "pmi2", "mpirun"], help="srun --mpi=pmix (Open MPI), pmi2 (MPICH); mpirun"
    )
    add_set(made, "the config")
    made.add_argument("--run", metavar="DIR", help="run directory, or the sweep's (default: runs/<job>-<number>)")
    made.add_argument(
        "--max-restarts", type=_natural, default=20, metavar="N", help="times that it queues itself again (20)"
    )
    made.add_argument(
        "--lead", type=_seconds, default=120.0, metavar="TIME", help="time between stopping and the limit (2m)"
    )
    made.add_argument("--env", metavar="FILE", help=f"script to source (default: {script.DEFAULT_ENV} if there is one)")
    made.add_argument(
        "--scratch", action="store_true", help="copy the pack to each node's $SLURM_TMPDIR or $TMPDIR first"
    )
    made.add_argument(
        shared_imports.OPTION,
        action="store_true",
        help="the run imports its libraries once per node, instead of once per rank",
    )
    made.add_argument("--sweep", action="store_true", help="CONFIG is a sweep file: an array job over its elements")
    made.add_argument("--at-a-time", type=positive, metavar="K", help="elements of a sweep that run at a time")
    made.add_argument("--analyse", action="store_true", help="a job that analyses a finished run; it needs no CONFIG")
    made.add_argument(
        "--elsewhere", action="store_true", help="data and models are on another machine: leave them unchecked"
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing; must not exist")


def _add_resources(made: Parser) -> None:
    made.add_argument("--nodes", type=positive, default=1, metavar="N", help="nodes (1)")
    made.add_argument("--gpus-per-node", type=_natural, default=0, metavar="G", help="GPUs per node (0)")
    made.add_argument("--ranks-per-node", type=positive, metavar="R", help="ranks per node (default: one per GPU)")
    made.add_argument("--cpus-per-task", type=positive, metavar="C", help="cores per rank (default: devices.threads)")
    made.add_argument("--time", type=_seconds, required=True, metavar="TIME", help="time limit, such as 2h or 1:30:00")
    made.add_argument("--partition", metavar="P", help="partition of the cluster")
    made.add_argument("--account", metavar="A", help="account to charge")
    made.verbatim = ("--sbatch",)
    made.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="another option of sbatch for the job's head, such as constraint=a100, qos=long, mem=64G, mail-type=END "
        "(repeatable)",
    )
    made.add_argument(
        "--container", metavar="IMAGE", help="run in this image of Apptainer, with --nv if there are GPUs"
    )
    made.add_argument("--job-name", metavar="J", help="name of the job (default: the config's name)")


def command_of(options: argparse.Namespace, words: Sequence[str]) -> SlurmCommand:
    """Return the options with their defaults, and the words that they were read from."""
    made = new_parser("", "", speaks=False)
    _add_options(made)
    return SlurmCommand(options, tuple(words), defaults=made.parse_args(["--time", "1"]))


def _execute(options: argparse.Namespace, context: Context) -> int:
    text = script.render(request(command_of(options, context.words)))
    out: Path | None = options.out
    if out is None:
        print(text, end="")
        return 0
    try:
        atomic_files.create(out, text.encode())
    except FileExistsError:
        raise UserError(f"--out: {out} exists already. Fix: choose another file, or remove it.") from None
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


COMMAND = Command(
    name="slurm",
    arguments="CONFIG",
    summary="print a batch job for Slurm",
    meaning=MEANING,
    examples=(
        (
            "Print a job of 16 ranks on a node, of an MPI that knows PMIx (Open MPI)",
            "{program} slurm configs/digits_ring.yaml --set participants=16 --ranks-per-node 16 --time 2h --mpi pmix",
        ),
        (
            "Write an array job that runs a sweep, with an MPI that knows PMI2 (MPICH)",
            "{program} slurm configs/sweeps/views_digits.yaml --sweep --ranks-per-node 4 --time 1h --mpi pmi2"
            " --out sweep.sbatch",
        ),
    ),
    add_options=_add_options,
    execute=_execute,
)
