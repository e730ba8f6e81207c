"""What the doctor finds: a fact, something that is good, a warning, or a failure with its fix."""

import enum
from collections.abc import Collection
from dataclasses import dataclass


class Level(enum.Enum):
    """How bad it is; the value is the mark on the page."""

    FACT = ""
    GOOD = "ok"
    WARNING = "warn"
    FAILURE = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes
    ----------
    what : str
        The thing looked at, in a word or two.
    text : str
        What was found; of a failure or a warning also what to do.
    """

    what: str
    text: str
    level: Level = Level.GOOD


def fact(what: str, text: str) -> Finding:
    """Something that is neither good nor bad."""
    return Finding(what, text, Level.FACT)


def good(what: str, text: str) -> Finding:
    """Something that a run needs, and has."""
    return Finding(what, text)


def warning(what: str, text: str, fix: str) -> Finding:
    """A run would work, but not as one may think."""
    return Finding(what, f"{text}; {fix}", Level.WARNING)


def failure(what: str, text: str, fix: str) -> Finding:
    """A run would not work."""
    return Finding(what, f"{text}; {fix}", Level.FAILURE)


def refused(what: str, error: Exception) -> Finding:
    """What a run would be refused with: a UserError's text holds its fix already."""
    return Finding(what, str(error), Level.FAILURE)


def spans(numbers: Collection[int]) -> str:
    """Whole numbers in short: 0-3, 8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
