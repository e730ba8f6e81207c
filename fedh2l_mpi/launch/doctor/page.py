"""Print the page one section at a time, so that earlier findings are readable even if the next step hangs."""

import io
import sys
from collections import Counter
from collections.abc import Sequence

from fedh2l_mpi.launch.doctor.findings import Finding, Level

# The width of the terminal behind a pipe is unknown.
PIPED_WIDTH = 80
STYLES = {Level.FACT: "", Level.GOOD: "green", Level.WARNING: "yellow", Level.FAILURE: "bold red"}
WHAT_WIDTH = 11


class Page:
    """Print sections of findings, and count the findings.

    Parameters
    ----------
    launched : bool
        True under a launcher. Some launchers give ranks a terminal of their own even if the output goes to a file.
    """

    def __init__(self, launched: bool = False) -> None:
        self._counts: Counter[Level] = Counter()
        self._on_terminal = sys.stdout.isatty() and not launched

    @property
    def failed(self) -> bool:
        """True if a failure was shown."""
        return self._counts[Level.FAILURE] > 0

    def show(self, section: str, findings: Sequence[Finding]) -> None:
        """Print a section."""
        if not findings:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
        table.add_column(width=4)
        table.add_column(width=WHAT_WIDTH)
        table.add_column(overflow="fold")
        for finding in findings:
            self._counts[finding.level] += 1
            style = STYLES[finding.level]
            bad = finding.level in (Level.WARNING, Level.FAILURE)
            table.add_row(
                Text(finding.level.value, style), Text(finding.what), Text(finding.text, style if bad else "")
            )
        self._print(Text(section, "bold"), table)

    def close(self) -> None:
        """Print the verdict."""
        from rich.text import Text

        counted = [(self._counts[Level.FAILURE], "failure"), (self._counts[Level.WARNING], "warning")]
        counts = ", ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in counted if count)
        verdict = f"a run would {'not ' if self.failed else ''}work here"
        style = STYLES[Level.FAILURE if self.failed else Level.GOOD]
        self._print(Text(f"{verdict}: {counts}" if counts else verdict, style))

    def _print(self, *parts: object) -> None:
        from rich.console import Console

        # On a broken pipe, print() raises BrokenPipeError, while rich would end the process.
        written = io.StringIO()
        width = None if self._on_terminal else PIPED_WIDTH
        console = Console(file=written, force_terminal=self._on_terminal, highlight=False, width=width)
        console.print(*parts, sep="\n")
        print("\n".join(line.rstrip() for line in written.getvalue().splitlines()), flush=True)
