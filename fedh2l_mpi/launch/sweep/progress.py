"""Show how far a sweep is: one line per event and, on a terminal, a progress bar."""

import datetime
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from fedh2l_mpi.analysis.outcome import Outcome
from fedh2l_mpi.launch.sweep.run_files import SweepRunFiles
from fedh2l_mpi.runtime import terminal


class SweepProgress:
    """Print one line per event of a sweep, above a progress bar on a terminal. If quiet, print failures only."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._total = self._done = self._failed = self._ran = 0
        self._elsewhere: set[str] = set()
        self._begin = time.monotonic()

    def begin(self, total: int, done: int) -> None:
        """Start: of `total` elements, `done` have finished in an earlier call."""
        self._total, self._done = total, done
        if done:
            self._print(f"{done} of {total} runs had already finished")
        if not self._quiet and terminal.is_terminal() and done < total:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                MofNCompleteColumn(),
                TextColumn("runs"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[labels]}", markup=False),
            )
            self._task = self._bar.add_task("", total=total, completed=done, left="", labels="")
            self._bar.start()

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def tick(self, labels: Sequence[str]) -> None:
        """Update the progress bar; `labels` name the elements that are running now."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=self._remaining(), labels=" ".join(labels))

    def run_finished(self, files: SweepRunFiles, outcome: Outcome, seconds: float | None) -> None:
        """Report that an element finished, here after `seconds`, or in another process (None)."""
        self._done += 1
        self._ran += seconds is not None
        took = f"{seconds:.0f} s" if seconds is not None else "in another process"
        left = f", {self._remaining()}" if self._remaining() else ""
        self._print(
            f"{self._done} of {self._total} runs: {files.label}: all-domain {outcome.values['accuracy_all']:.3f}, "
            f"{took}{left}"
        )

    def run_failed(self, files: SweepRunFiles, reason: str, ran: bool = True) -> None:
        """Report that an element failed, or could not be started (`ran` is False). Printed even if quiet."""
        self._failed += 1
        self._ran += ran
        self._print(f"{files.label} failed: {reason}{f'. Log: {files.log}' if ran else ''}", file=sys.stderr)

    def run_restarts(self, files: SweepRunFiles) -> None:
        """Report that an unfinished element starts again, because it cannot be resumed."""
        self._print(f"{files.label} had not finished. It starts again; old files are in {files.label}.unfinished-*")

    def run_resumes(self, files: SweepRunFiles) -> None:
        """Report that an unfinished element resumes."""
        self._print(f"{files.label} had not finished. It resumes from its checkpoint")

    def runs_elsewhere(self, files: SweepRunFiles, waits: bool) -> None:
        """Report, once, that another process runs an element."""
        if files.label not in self._elsewhere:
            self._elsewhere.add(files.label)
            self._print(f"{files.label}: another process runs it" + ("" if waits else ", so it is skipped here"))

    def _remaining(self) -> str:
        """Return the number of failures and the estimated time left, or an empty string."""
        parts = [f"{self._failed} failed"] if self._failed else []
        rest = self._total - self._done - self._failed
        if self._ran and rest:
            seconds = (time.monotonic() - self._begin) / self._ran * rest
            parts.append(f"{datetime.timedelta(seconds=round(seconds))} left")
        return ", ".join(parts)

    def _print(self, text: str, file: TextIO | None = None) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet or file is not None:
            print(
                f"{time.strftime('%H:%M:%S')} {text}" if file is None else f"fedh2l_mpi: {text}", file=file, flush=True
            )
