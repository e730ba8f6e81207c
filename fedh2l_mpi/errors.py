"""Exceptions that end a run without being a bug of the program, the exit codes, and hints for misspelt words."""

import difflib
from collections.abc import Iterable

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_LATE = 86
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """A mistake that the user can fix: shown as one message without a traceback, exit code 2.

    The text names the place (dotted config key, file, array), the value, the allowed values and, if short, the fix.

    Attributes
    ----------
    agreed : bool
        Every rank has raised the same error, so all ranks can exit together.
    """

    def __init__(self, text: str, agreed: bool = False) -> None:
        super().__init__(text)
        self.agreed = agreed


class DivergedError(RuntimeError):
    """A participant's numbers are no longer finite: the whole job ends with exit code 1."""


class LateRankError(RuntimeError):
    """A rank did not answer before the deadline: the whole job ends with exit code 86."""


def did_you_mean(word: object, known: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the nearest known words for the end of a message; empty if none is near.

    `prefix` is put in front of the words in the hint.
    """
    near = difflib.get_close_matches(str(word), list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(prefix + name) for name in near)}?)" if near else ""
