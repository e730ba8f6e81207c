"""Check paths that a user gives, and raise a UserError if the system cannot look at them."""

import stat
from pathlib import Path

from fedh2l_mpi.errors import UserError


def expand_home(where: str, path: str | Path) -> Path:
    """Replace a leading `~` or `~name` by the home folder.

    Parameters
    ----------
    where : str
        The config key or option that holds the path, for the message.

    Raises
    ------
    UserError
        If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{where}: got {str(path)!r}, but {home} has no home folder. Write the full path.") from None


def is_folder(where: str, path: Path) -> bool:
    """Return True if the path is a folder, or a link to one."""
    return stat.S_ISDIR(_mode(where, path))


def is_file(where: str, path: Path) -> bool:
    """Return True if the path is a file, or a link to one."""
    return stat.S_ISREG(_mode(where, path))


def _mode(where: str, path: Path) -> int:
    """Return `st_mode`, or 0 if nothing is there.

    `Path.is_file()` would raise a raw OSError for a folder without permission or a name that is too long.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise UserError(f"{where}: cannot look at {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{where}: got {str(path)!r}: {error}") from None
