"""Findings of a validation, and the report that collects them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

OF_ARRAY = re.compile(r"array '\w+'")


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes
    ----------
    level : {"ok", "note", "error"}
        A note is no error, but the user should know it. A file without errors is valid.
    what : str
        One line.
    group : str
        Subject of the check.
    """

    level: str
    what: str
    group: str = "file"


@dataclass
class Report:
    """Collect findings."""

    findings: list[Finding] = field(default_factory=list)

    def ok(self, group: str, what: str) -> None:
        self.findings.append(Finding("ok", what, group))

    def note(self, group: str, what: str) -> None:
        self.findings.append(Finding("note", what, group))

    def error(self, group: str, what: str) -> None:
        self.findings.append(Finding("error", what, group))

    def verdict(self, group: str, errors: Sequence[str], sound: str) -> None:
        """Add all errors, or, if there are none, one finding that says what is sound."""
        for what in errors:
            self.error(group, what)
        if not errors:
            self.ok(group, sound)
