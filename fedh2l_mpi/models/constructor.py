"""Constructors of models: the sizes of the data that one asks for by the names of its parameters, and its arguments."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.sample_form import SampleForm

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
    required : tuple of str
        Those without a default.
    takes_any : bool
        True if it takes keywords of any name.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool


def asked(kind: Callable[..., Any]) -> Asked:
    """Return the parameters of a class or function.

    A class whose `__init__` takes keywords of any name, as in `def __init__(self, **sizes)`, passes them on, so those
    of the class that it extends are counted as well. If that is `nn.Module`, it keeps them for itself.
    """
    if not isinstance(kind, type):
        return _parameters(kind, skips=0)
    names: dict[str, None] = {}
    required: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        if base in (nn.Module, object):
            break
        found = _parameters(vars(base)["__init__"], skips=1)
        # A class that names a form of the shape makes another one of it for the class that it extends.
        passed = set(_SHAPES) if set(_SHAPES) & names.keys() else set()
        names |= dict.fromkeys(key for key in found.names if key not in passed)
        required |= dict.fromkeys(key for key in found.required if key not in passed)
        if not found.takes_any:
            return Asked(tuple(names), tuple(required), False)
    return Asked(tuple(names), tuple(required), True)


def keywords(
    name: str, kind: Callable[..., Any], form: SampleForm, classes: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords with which a model is built: the sizes that it asks for, and the arguments of the config.

    Parameters
    ----------
    name : str
        The model, for messages.
    kind : callable
        Its class, or a function that returns it.
    form, classes : SampleForm, int
        What the data decide.
    arguments : mapping
        What the config gives.

    Raises
    ------
    UserError
        If there is no parameter for an argument, if the data decide it, or if the data do not have a size that a
        parameter without default asks for.
    """
    sizes: dict[str, Any] = {"shape": form.shape, "classes": classes}
    if form.vocabulary:
        sizes["vocabulary"] = form.vocabulary
    if form.is_square:
        sizes |= {"channels": form.shape[0], "side": form.shape[1]}
    parameters = asked(kind)
    free = [parameter for parameter in parameters.names if parameter not in SIZES]
    missing = [key for key in parameters.required if key in SIZES and key not in sizes]
    if missing:
        raise UserError(
            f"models: {name!r} asks for {missing[0]!r}, which {form} do not have. Fix: let its constructor take "
            "shape, classes" + (", vocabulary." if form.vocabulary else ".")
        )
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
        return Asked((), (), True)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [parameter for parameter in found if parameter.kind in kinds]
    return Asked(
        tuple(parameter.name for parameter in named),
        tuple(parameter.name for parameter in named if parameter.default is inspect.Parameter.empty),
        any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found),
    )


def check_widths(**widths: object) -> None:
    """Raise ValueError if an argument of a built-in model is no whole number of 1 or more."""
    for key, width in widths.items():
        if type(width) is not int or width < 1:
            raise ValueError(f"{key} must be a whole number >= 1, got {width!r}")
