"""Load a user's own class for a model or a method, named as `package.module:Class`."""

import importlib
from typing import Any

from fedh2l_mpi.errors import UserError


def load_class(key: str, name: str) -> Any:
    """Import a module, and return the class in it.

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
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{key}: {name!r}: cannot import {module_name}: {error}. Run from its folder, or set PYTHONPATH."
        ) from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise UserError(f"{key}: {name!r}: module {module_name} has no {class_name}") from None
