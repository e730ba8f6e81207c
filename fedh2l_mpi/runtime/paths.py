"""Paths that a user gives: what is there, and a UserError where that cannot be known."""

import stat
from pathlib import Path

from fedh2l_mpi.errors import UserError


def expand_home(where: str, path: str | Path) -> Path:
    """The path with the home folder that a leading `~` or `~name` stands for.

    Raises
    ------
    UserError
        If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{where}: got {str(path)!r}, but {home} has no home folder; write the path in full") from None


def is_folder(where: str, path: Path) -> bool:
    """Whether there is a folder, or a link to one."""
    return stat.S_ISDIR(_mode(where, path))


def is_file(where: str, path: Path) -> bool:
    """Whether there is a file, or a link to one."""
    return stat.S_ISREG(_mode(where, path))


def _mode(where: str, path: Path) -> int:
    """`st_mode`, 0 where nothing is. Path's own questions raise for a folder closed to the user, or a long name."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise UserError(f"{where}: cannot look at {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{where}: got {str(path)!r}: {error}") from None
