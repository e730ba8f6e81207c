"""Libraries that the base install lacks, and the extras that install them."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from fedh2l_mpi.errors import UserError

EXTRAS = {
    "torch": "run",
    "sklearn": "run",
    "scipy": "run",
    "mpi4py": "mpi",
    "torchvision": "vision",
    "PIL": "vision",
    "xarray": "analysis",
    "h5netcdf": "analysis",
    "matplotlib": "analysis",
    "jinja2": "analysis",
    "markupsafe": "analysis",
    "pyarrow": "parquet",
    "tensorboard": "tensorboard",
    "shtab": "completion",
}
# Names that people know better than the module's.
TITLES = {"sklearn": "scikit-learn", "PIL": "Pillow"}


def require(name: str, user: str = "", extra: str = "") -> Any:
    """Return a module of an optional library.

    Parameters
    ----------
    name : str
        Such as `xarray` or `pyarrow.parquet`.
    user : str
        The part of the program that needs the library, for the message.
    extra : str
        The extra to name, if it is another than the usual one.

    Raises
    ------
    UserError
        If the library is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if mistake := missing(error, user, extra):
            raise mistake from None
        raise


def missing(error: ImportError, user: str = "", extra: str = "") -> UserError | None:
    """Return the user's mistake behind a failed import; None if the library belongs to no extra."""
    library = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or library not in EXTRAS:
        return None
    prefix = f"{user}: " if user else ""
    return UserError(f"{prefix}{TITLES.get(library, library)} is not installed. Fix: {fix(library, extra)}.")


def fix(library: str, extra: str = "") -> str:
    """Return the command that installs a library of EXTRAS."""
    extra = extra or EXTRAS[library]
    ranks = ", or [mpi] to run on several ranks" if extra == "run" else ""
    return f"install the extra [{extra}], as in pip install '.[{extra}]' from a checkout{ranks}"


@contextlib.contextmanager
def name_missing_library() -> Iterator[None]:
    """Turn a failed import of an optional library into a UserError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        if mistake := missing(error):
            raise mistake from None
        raise
