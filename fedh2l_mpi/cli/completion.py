"""Scripts that let a shell complete the commands and options of the console script."""

from fedh2l_mpi.cli.command import SCRIPT
from fedh2l_mpi.cli.options import Parser, new_parser

SHELLS = ("bash", "zsh", "tcsh")
# A value that an option's help calls by one of these names is a path.
FILES = {"CONFIG", "SWEEP", "FILE", "RUN", "PATH", "OUT"}
FOLDERS = {"DIR", "ROOT"}


def script(shell: str) -> str:
    """Return the script for a shell of SHELLS.

    Raises
    ------
    UserError
        If shtab is not installed.
    """
    from fedh2l_mpi.cli import commands, run
    from fedh2l_mpi.runtime.libraries import require

    shtab = require("shtab")
    whole = new_parser(SCRIPT, run.COMMAND.summary, speaks=True)
    run.add_flags(whole)
    _mark_paths(whole)
    subparsers = whole.add_subparsers()
    for command in commands.COMMANDS.values():
        added: Parser = subparsers.add_parser(command.name, help=command.summary)
        command.add_options(added)
        _mark_paths(added)
    # The first word is a command or a config file, which shtab cannot express. In bash, this line adds the files.
    files = f"_shtab_{SCRIPT.replace('-', '_')}_pos_0_COMPGEN=_shtab_compgen_files"
    return str(shtab.complete(whole, shell, preamble={"bash": files}))


def _mark_paths(parser: Parser) -> None:
    for action in parser._actions:
        if action.metavar in FILES | FOLDERS:
            action.complete = "file" if action.metavar in FILES else "directory"  # type: ignore[attr-defined]
