"""`init`: write the ready configs, sweeps and job files into a directory."""

import argparse
import shlex
from pathlib import Path

from fedh2l_mpi.cli.command import Command, Context, program
from fedh2l_mpi.cli.options import Parser
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import atomic_files

MEANING = """\
Write the ready configs, sweeps and job files into DIR: configs/,
configs/sweeps/ and jobs/. Existing files are never overwritten. The paths in
the files are relative to DIR, so run the program and submit the jobs from
there."""
FOLDERS = {"configs": "*.yaml", "configs/sweeps": "*.yaml", "jobs": "*.*"}


def _add_options(parser: Parser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory to write into; made if it is missing")


def _execute(options: argparse.Namespace, context: Context) -> int:
    root = source()
    files = [path for folder, pattern in FOLDERS.items() for path in sorted((root / folder).glob(pattern))]
    targets = {path: options.directory / path.relative_to(root) for path in files if _is_ready(path)}
    for target in targets.values():
        if target.exists() or target.is_symlink():
            raise UserError(
                f"{target}: exists already, so nothing was written. Fix: choose another DIR, or move the file."
            )
    try:
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            # A file that has appeared since then is not overwritten either.
            atomic_files.create(target, path.read_bytes())
    except OSError as error:
        raise UserError(f"{error.filename or options.directory}: cannot be written: {error.strerror}") from None
    print(f"wrote {len(targets)} files into {', '.join(FOLDERS)} of {options.directory}\n\nNext:")
    lines = {
        f"cd {shlex.quote(str(options.directory))}": "",
        f"{program()} configs/digits_ring.yaml --out runs/a": "run a config",
        f"{program()} sweep configs/sweeps/views_digits.yaml": "run a sweep",
        "sbatch jobs/cpu_node.sbatch": "submit a job to Slurm",
    }
    width = max(map(len, lines))
    for line, purpose in lines.items():
        print(f"  {line:{width}}  {purpose}".rstrip())
    return 0


def source() -> Path:
    """Return the folder that has `configs` and `jobs`: a checkout's own, or `share/fedh2l_mpi` of an installation.

    Raises
    ------
    UserError
        If there is neither.
    """
    above = Path(__file__).resolve().parents[2:]
    # In a checkout, the package is next to setup.cfg. pip installs data files under the folder that has lib/ or the
    # package itself (--target).
    places = [above[0], *(folder / "share" / "fedh2l_mpi" for folder in above)]
    for place in places:
        is_checkout = place == above[0]
        if all((place / folder).is_dir() for folder in FOLDERS) and (not is_checkout or (place / "setup.cfg").exists()):
            return place
    raise UserError(
        f"init: the ready files are not installed: there is no share/fedh2l_mpi above {above[0]}. "
        "Fix: install the package with pip."
    )


def _is_ready(path: Path) -> bool:
    """Return False for the user's own jobs/env.sh of a checkout, and anything else that is not shipped."""
    return path.suffix in (".yaml", ".sbatch", ".example", ".def")


COMMAND = Command(
    name="init",
    arguments="DIR",
    summary="write the ready configs, sweeps and jobs",
    meaning=MEANING,
    examples=(
        ("Write the files into a new directory", "{program} init study"),
        ("Write them into the current directory", "{program} init ."),
    ),
    add_options=_add_options,
    execute=_execute,
)
