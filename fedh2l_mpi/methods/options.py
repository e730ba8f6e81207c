"""Options that a user's own method declares: their values from the config, checked against their defaults."""

from collections.abc import Mapping
from typing import Any

from fedh2l_mpi.config import MethodConfig
from fedh2l_mpi.config.method import OwnMethodOptions
from fedh2l_mpi.errors import UserError, did_you_mean

KINDS = {"true or false": bool, "a number": (int, float), "a text": str, "a list": (list, tuple), "a map": Mapping}


def checked_options(method: type, config: MethodConfig) -> dict[str, Any]:
    """Return the options that a class of method and its base classes declare, with the config's values.

    Raises
    ------
    UserError
        If a class does not declare a mapping, or `method.options` has a name that none declares or a value of another
        kind than its default.
    """
    declared: dict[str, Any] = {}
    for kind in reversed(method.__mro__):
        own = vars(kind).get("options", {})
        if not isinstance(own, Mapping):
            raise UserError(f"method.name: {config.name!r}: options must be a dict of names and defaults, got {own!r}.")
        declared |= own
    given = config.options if isinstance(config, OwnMethodOptions) else {}
    for name, value in given.items():
        if name not in declared:
            hint = did_you_mean(name, declared)
            raise UserError(
                f"method.options.{name}: got {value!r}, but {config.name!r} has no such option{hint}. Known: "
                f"{', '.join(declared) or 'none'}. Fix: remove it, or declare it in the class: "
                f"options = {{{name!r}: DEFAULT}}."
            )
        wanted = _kind(declared[name])
        # A class may use null as one more value of any option.
        if value is not None and wanted and _kind(value) != wanted:
            raise UserError(
                f"method.options.{name}: got {value!r}, must be {wanted} like its default {declared[name]!r}."
            )
    return {**declared, **given}


def _kind(value: object) -> str:
    """Return the name of a value's kind; empty for None and for what YAML cannot write."""
    # bool comes first, because it is an int as well.
    return next((name for name, kind in KINDS.items() if isinstance(value, kind)), "")  # type: ignore[arg-type]
