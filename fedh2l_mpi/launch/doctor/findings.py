"""Findings of the doctor: a fact, something good, a warning with its fix, or a failure with its fix."""

import enum
from collections.abc import Collection
from dataclasses import dataclass


class Level(enum.Enum):
    """Severity of a finding; the value is its mark on the page."""

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
        Subject of the check, in one or two words.
    text : str
        Result of the check; a failure or a warning includes the fix.
    """

    what: str
    text: str
    level: Level = Level.GOOD


def fact(what: str, text: str) -> Finding:
    """Return a finding that is neither good nor bad."""
    return Finding(what, text, Level.FACT)


def good(what: str, text: str) -> Finding:
    """Return a finding about something that a run needs and has."""
    return Finding(what, text)


def warning(what: str, text: str, fix: str) -> Finding:
    """Return a finding about something that may surprise the user, though a run would work."""
    return Finding(what, f"{text}. Fix: {fix}.", Level.WARNING)


def failure(what: str, text: str, fix: str) -> Finding:
    """Return a finding that keeps a run from working."""
    return Finding(what, f"{text}. Fix: {fix}.", Level.FAILURE)


def refused(what: str, error: Exception) -> Finding:
    """Return the error that a run would raise as a failure; a UserError's text already contains the fix."""
    return Finding(what, str(error), Level.FAILURE)


def spans(numbers: Collection[int]) -> str:
    """Write whole numbers as ranges: 0-3, 8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
