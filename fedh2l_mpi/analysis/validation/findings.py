"""Findings of a validation, and the report that collects them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

OF_ARRAY = re.compile(r"array '\w+'")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    level : {"ok", "note", "error"}
        Note: nothing is wrong, but a person should know. A file without errors is valid.
    what : str
        One line.
    group : str
        What the check was about.
    """

    level: str
    what: str
    group: str = "file"


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list)

    def ok(self, group: str, what: str) -> None:
        self.findings.append(Finding("ok", what, group))

    def note(self, group: str, what: str) -> None:
        self.findings.append(Finding("note", what, group))

    def error(self, group: str, what: str) -> None:
        self.findings.append(Finding("error", what, group))

    def verdict(self, group: str, errors: Sequence[str], sound: str) -> None:
        """The errors, or where there are none, one line that all is well."""
        for what in errors:
            self.error(group, what)
        if not errors:
            self.ok(group, sound)
