"""A user's own class by `package.module:Class`, for models and for methods."""

import importlib
from typing import Any

from fedh2l_mpi.errors import UserError


def load_class(key: str, name: str) -> Any:
    """What `name` stands for in its module.

    Parameters
    ----------
    key : str
        The config key that holds it, for the message.
    name : str
        Of the form `package.module:Class`.

    Raises
    ------
    UserError
        If the module cannot be imported, or has no such name.
    """
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{key}: {name!r}: cannot import {module_name}: {error}; run from its folder, or set PYTHONPATH"
        ) from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise UserError(f"{key}: {name!r}: {module_name} has no {class_name}") from None
