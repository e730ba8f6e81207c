"""Exceptions that end a run without being a bug of the program, the exit codes, and hints for misspelt words."""

import difflib
from collections.abc import Iterable

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_LATE = 86
EXIT_INTERRUPTED = 130

# A message is read on a terminal: longer values and lists would hide where the mistake is.
LONGEST_VALUE, LONGEST_LINE, MOST_LINES = 200, 2000, 50


class UserError(ValueError):
    """A mistake that the user can fix: shown as one message without a traceback, exit code 2.

    The text names the place (dotted config key, file, array), the value, the allowed values and, if short, the fix. It
    has at most MOST_LINES lines of LONGEST_LINE characters: the middle of a longer line, and further lines are left
    out.

    Attributes
    ----------
    agreed : bool
        Every rank has raised the same error, so all ranks can exit together.
    """

    def __init__(self, text: str, agreed: bool = False) -> None:
        lines = [shorten(line, LONGEST_LINE) for line in text.split("\n", MOST_LINES)]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"  and {1 + text.count(chr(10)) - MOST_LINES} lines more"]
        super().__init__("\n".join(lines))
        self.agreed = agreed


class DivergedError(RuntimeError):
    """A participant's numbers are no longer finite: the whole job ends with exit code 1."""


class LateRankError(RuntimeError):
    """A rank did not answer before the deadline: the whole job ends with exit code 86."""


def shorten(text: str, longest: int) -> str:
    """Return a text with at most `longest` characters around a mark of how many are left out in its middle."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters] {text[-half:]}"


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, at most about LONGEST_VALUE characters."""
    try:
        return shorten(repr(value), LONGEST_VALUE)
    except ValueError:
        # Python refuses to write whole numbers of more than 4,300 digits.
        return "a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep"


def did_you_mean(word: object, known: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the nearest known words for the end of a message; empty if none is near.

    `prefix` is put in front of the words in the hint.
    """
    # FedH2L is as near to fedh2l as can be.
    by_letters = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(str(word)[:LONGEST_VALUE].casefold(), list(by_letters), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(prefix + by_letters[name]) for name in near)}?)" if near else ""
