"""Constructors of models: the sizes of the data that one asks for by the names of its parameters, and its arguments."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from fedh2l_mpi.errors import UserError, did_you_mean

# Parameters that the data decide, so that no config gives them.
SIZES = ("shape", "classes", "vocabulary", "channels", "side")
# A constructor that names one of these decides itself in which form it gets a sample's shape.
_SHAPES = ("shape", "channels", "side")


class Asked(NamedTuple):
    """The parameters of a constructor.

    Attributes
    ----------
    names : tuple of str
        Names of its parameters, in their order.
    takes_any : bool
        True if it takes keywords of any name.
    """

    names: tuple[str, ...]
    takes_any: bool


def asked(kind: Callable[..., Any]) -> Asked:
    """Return the parameters of a class or function.

    A class whose `__init__` takes keywords of any name, as in `def __init__(self, **sizes)`, passes them on, so those
    of the class that it extends are counted as well. If that is `nn.Module`, it keeps them for itself.
    """
    if not isinstance(kind, type):
        return _parameters(kind, skips=0)
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        if base in (nn.Module, object):
            break
        found = _parameters(vars(base)["__init__"], skips=1)
        names |= dict.fromkeys(found.names)
        if not found.takes_any:
            return Asked(tuple(names), False)
    return Asked(tuple(names), True)


def keywords(
    name: str, kind: Callable[..., Any], sizes: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords with which a model is built: the sizes that it asks for, and the arguments of the config.

    Parameters
    ----------
    name : str
        The model, for messages.
    kind : callable
        Its class, or a function that returns it.
    sizes : mapping
        What the data decide, by the names of `SIZES`; those that the data do not have are left out.
    arguments : mapping
        What the config gives.

    Raises
    ------
    UserError
        If there is no parameter for an argument, or the data decide it.
    """
    parameters = asked(kind)
    free = [parameter for parameter in parameters.names if parameter not in SIZES]
    for key in arguments:
        if key in SIZES:
            raise UserError(f"models: {name!r}: {key!r} comes from the data. Fix: remove it.")
        if key not in free and not parameters.takes_any:
            raise UserError(f"models: {name!r} has no argument {key!r}. {_listed(free)}{did_you_mean(key, free)}.")
    wanted: Collection[str] = parameters.names
    if parameters.takes_any and not set(_SHAPES) & set(parameters.names):
        wanted = SIZES
    return {**{key: value for key, value in sizes.items() if key in wanted}, **arguments}


def _listed(free: Collection[str]) -> str:
    return f"Its arguments: {', '.join(free)}" if free else "It has no arguments"


def _parameters(function: Callable[..., Any], skips: int) -> Asked:
    """Return the parameters of a function, except the first `skips`."""
    try:
        found = list(inspect.signature(function).parameters.values())[skips:]
    except (TypeError, ValueError):
        # Functions that are not written in Python may have no signature.
        return Asked((), True)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = tuple(parameter.name for parameter in found if parameter.kind in named)
    return Asked(names, any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found))
