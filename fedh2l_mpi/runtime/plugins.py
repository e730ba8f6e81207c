"""Load a user's own class for a model or a method, named as `package.module:Class`, and report its errors in one line.

A user's code runs inside `reporting`: what it raises becomes a `UserError` that names the line, what it prints goes to
standard error, and what it changes of PyTorch's settings is found.
"""

import contextlib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedh2l_mpi import rng
from fedh2l_mpi.errors import UserError

# The longest message of a user's error that is shown; TorchScript's have pages.
SHOWN = 300


class Plugin(NamedTuple):
    """A user's class: the config key that names it, and the name `package.module:Class`."""

    key: str
    name: str

    @property
    def file(self) -> str | None:
        """The file of its module, if that is imported."""
        return getattr(sys.modules.get(self.name.partition(":")[0]), "__file__", None)


def load_class(key: str, name: str) -> Any:
    """Import a module, and return the class in it.

    Random numbers that the module draws while it is imported are the same on every rank and in every run.

    Parameters
    ----------
    key : str
        The config key that holds the name, for the message.
    name : str
        The class, as `package.module:Class`.

    Raises
    ------
    UserError
        If the module cannot be imported, or does not have this class.
    """
    module_name, _, class_name = name.partition(":")
    plugin = Plugin(key, name)
    try:
        with reporting(f"cannot import {module_name}", plugin), rng.global_generators(0):
            module = importlib.import_module(module_name)
    except UserError as error:
        missing = isinstance(error.__cause__, ImportError | TypeError | ValueError)
        raise UserError(f"{error} Run from its folder, or set PYTHONPATH." if missing else str(error)) from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise UserError(f"{key}: {name!r}: module {module_name} has no {class_name}") from None


@contextlib.contextmanager
def reporting(doing: str, *plugins: Plugin) -> Iterator[None]:
    """Raise an error of a user's code as a `UserError` of one line.

    Parameters
    ----------
    doing : str
        What failed, for the message.
    plugins : Plugin
        The classes of the user that run in the context. The message names the one whose code failed; the first one if
        no line of theirs took part.

    Raises
    ------
    UserError
        If the code raises anything, or changes PyTorch's settings, which all participants of a rank share.
    """
    before = _settings()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    # The code is not ours, so it can raise anything; a script without a main guard calls sys.exit().
    except (Exception, SystemExit) as error:
        guilty = _guilty(error, plugins)
        raise UserError(f"{guilty.key}: {guilty.name!r}: {doing}: {_described(error)}.") from error
    finally:
        after = _settings()
        _restore(before)
    for name, value in before.items():
        if after[name] != value:
            raise UserError(
                f"{plugins[0].key}: {plugins[0].name!r} changes PyTorch's {name} from {value} to {after[name]}, which "
                "all participants of a rank share. Fix: leave it as it is."
            )


def _settings() -> dict[str, object]:
    import torch

    return {"default dtype": torch.get_default_dtype(), "gradient mode": torch.is_grad_enabled()}


def _restore(settings: dict[str, object]) -> None:
    import torch

    torch.set_default_dtype(settings["default dtype"])  # type: ignore[arg-type]
    torch.set_grad_enabled(bool(settings["gradient mode"]))


def _guilty(error: BaseException, plugins: tuple[Plugin, ...]) -> Plugin:
    """Return the class whose module the error passed last."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for plugin in plugins:
            if frame.filename == plugin.file:
                return plugin
    return plugins[0]


def _described(error: BaseException) -> str:
    """Return kind, place and text of an error in one line; the place is the last line of the user's own files."""
    text = " ".join(str(error).split()).removesuffix(".")
    text = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    libraries = [str(Path(__file__).parents[1]), *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *libraries)):
            return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}: {text}"
    return f"{type(error).__name__}: {text}"
