"""What a person sees while a sweep runs."""

import datetime
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from fedh2l_mpi.analysis.outcome import Outcome
from fedh2l_mpi.launch.sweep.run_files import Place
from fedh2l_mpi.runtime import terminal


class Follower:
    """Tells a person how a sweep goes on: lines, and under them a progress bar on a terminal; nothing where quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._total = self._done = self._failed = self._ran = 0
        self._elsewhere: set[str] = set()
        self._begin = time.monotonic()

    def begin(self, total: int, done: int) -> None:
        """So many elements, and so many of them finished before."""
        self._total, self._done = total, done
        if done:
            self._say(f"{done} of {total} runs have finished before")
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
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def tick(self, labels: Sequence[str]) -> None:
        """These are running now."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=self._left(), labels=" ".join(labels))

    def finished(self, place: Place, outcome: Outcome, seconds: float | None) -> None:
        """An element has finished here after so many seconds; None: in another process."""
        self._done += 1
        self._ran += seconds is not None
        took = f"{seconds:.0f} s" if seconds is not None else "in another process"
        left = f", {self._left()}" if self._left() else ""
        self._say(
            f"{self._done} of {self._total} runs: {place.label}: all-domain {outcome.values['accuracy_all']:.3f}, "
            f"{took}{left}"
        )

    def failed(self, place: Place, reason: str, ran: bool = True) -> None:
        """An element has failed, or cannot be run here (not `ran`). Told even where quiet."""
        self._failed += 1
        self._ran += ran
        self._say(f"{place.label} failed: {reason}{f'; see {place.log}' if ran else ''}", file=sys.stderr)

    def starts_again(self, place: Place) -> None:
        """What was there of an element has been set aside."""
        self._say(f"{place.label} had not finished: starts again, what was there is kept as {place.label}.unfinished-*")

    def goes_on(self, place: Place) -> None:
        """An unfinished element is gone on with."""
        self._say(f"{place.label} had not finished: goes on from its checkpoint")

    def is_elsewhere(self, place: Place, waits: bool) -> None:
        """Another process runs an element."""
        if place.label not in self._elsewhere:
            self._elsewhere.add(place.label)
            self._say(f"{place.label}: another process runs it" + ("" if waits else "; left to that"))

    def _left(self) -> str:
        """How many have failed, and how long the rest will take; empty if there is nothing to say."""
        parts = [f"{self._failed} failed"] if self._failed else []
        rest = self._total - self._done - self._failed
        if self._ran and rest:
            seconds = (time.monotonic() - self._begin) / self._ran * rest
            parts.append(f"{datetime.timedelta(seconds=round(seconds))} left")
        return ", ".join(parts)

    def _say(self, text: str, file: TextIO | None = None) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet or file is not None:
            print(
                f"{time.strftime('%H:%M:%S')} {text}" if file is None else f"fedh2l_mpi: {text}", file=file, flush=True
            )
