"""Numbers that a user's own method declares to note, each of which becomes an array of the run."""

from collections.abc import Mapping

from fedh2l_mpi.errors import UserError


def declared_notes(method: type, name: str) -> dict[str, str]:
    """Return the names and meanings that a class of method and its base classes declare in `notes`.

    Parameters
    ----------
    name : str
        The method's name in the config, for messages.

    Raises
    ------
    UserError
        If a class declares something else than a mapping of texts to texts.
    """
    declared: dict[str, str] = {}
    for kind in reversed(method.__mro__):
        own = vars(kind).get("notes", {})
        texts = isinstance(own, Mapping) and all(
            isinstance(text, str) and text for pair in own.items() for text in pair
        )
        if not texts:
            raise UserError(
                f"method.name: {name!r}: notes must be a dict of names and meanings, such as "
                f"{{'trust': 'share of trusted teachers [1]'}}, got {own!r}."
            )
        declared |= own
    return declared
