"""Show a run's start and progress on rank 0: a bar on a terminal or in a notebook, plain lines in a batch log.

rich is imported by the rank that shows a bar, not by the others.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config
from fedh2l_mpi.runtime.terminal import is_notebook, is_terminal
from fedh2l_mpi.runtime.world import World

if TYPE_CHECKING:
    from rich.console import Console

    from fedh2l_mpi.data.federated import Plan

log = logging.getLogger("fedh2l_mpi")
Columns = Mapping[str, NDArray[np.float64]]
# In a batch log, a round without evaluation gets a line only if rounds are slow.
QUIET_S = 30.0
# More participants than this are listed in the log file only, and more than that are only counted.
SHOWN, LISTED = 8, 32
# A terminal with fewer columns has no room for the times of the phases.
TIMED_COLUMNS = 80


class Bar(Protocol):
    """A place where the newest state of a run is shown."""

    def update(self, done: int, accuracy: str, timing: str) -> None:
        """Show the state after `done` rounds."""

    def stop(self) -> None:
        """Leave the terminal or the notebook as it was."""


class Progress:
    """Progress of a run on rank 0.

    Parameters
    ----------
    config : Config
        A resolved config.
    shows : bool
        Whether a bar may be shown; where neither a terminal nor a notebook is there, none is.
    """

    def __init__(self, config: Config, shows: bool) -> None:
        self._rounds, self._shows, self._first = config.rounds, shows, 0
        self._begin = self._logged = time.monotonic()
        self._accuracy = float("nan")
        self._bar: Bar | None = None

    @contextlib.contextmanager
    def after(self, first_round: int) -> Iterator[None]:
        """Show the bar while the context lasts, beginning after the rounds that were finished before."""
        self._first = first_round
        self._begin = self._logged = time.monotonic()
        if self._shows and is_terminal():
            self._bar = TerminalBar(self._rounds, first_round)
        elif self._shows and is_notebook():
            self._bar = NotebookBar(self._rounds, first_round)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def round(self, index: int, columns_P: Columns) -> None:
        """Show a finished round, and log it if it was evaluated.

        Parameters
        ----------
        columns_P : mapping of str to float64 (P, ...)
            The round's numbers of all participants, by the names of the metrics file.
        """
        is_evaluated = not np.isnan(columns_P["accuracy_all"]).all()
        if is_evaluated:
            self._accuracy = float(np.nanmean(columns_P["accuracy_all"]))
        # Participants of one rank take turns, so a person can compare a phase's mean over participants only.
        phases = {name: _mean(columns_P[f"seconds_{name}"]) for name in ("local", "wait", "mutual")}
        timing = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in phases.items())
        done = index + 1
        if self._bar is not None:
            self._bar.update(done, "-" if np.isnan(self._accuracy) else f"{self._accuracy:.3f}", _short(phases))
        now = time.monotonic()
        if not is_evaluated and now - self._logged <= QUIET_S:
            return
        self._logged = now
        left = (now - self._begin) / (done - self._first) * (self._rounds - done)
        line = (
            f"{done} of {self._rounds} rounds: private {_mean(columns_P['loss_private']):.3f} nats, "
            f"mutual {_mean(columns_P['loss_distillation']):.3f} nats, all-domain {self._accuracy:.3f}, "
            f"{timing} per participant, {_duration(left)} left"
        )
        # A terminal with a bar shows this already.
        log.info(line, extra={"file_only": self._bar is not None})


class TerminalBar:
    """A line of at most 80 columns, in which the bar gets the columns that the text leaves."""

    def __init__(self, rounds: int, done: int, console: "Console | None" = None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        def whole() -> Column:
            return Column(no_wrap=True)

        self._bar = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=whole()),
            BarColumn(bar_width=20),
            TextColumn("accuracy {task.fields[accuracy]}{task.fields[timing]}", table_column=whole()),
            TimeRemainingColumn(table_column=whole()),
            TextColumn("left", table_column=whole()),
            console=console,
        )
        self._task = self._bar.add_task("", total=rounds, completed=done, accuracy="-", timing="")
        self._bar.start()

    def update(self, done: int, accuracy: str, timing: str) -> None:
        """Show the state after `done` rounds."""
        shown = f", {timing}" if timing and self._bar.console.width >= TIMED_COLUMNS else ""
        self._bar.update(self._task, completed=done, accuracy=accuracy, timing=shown)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


class NotebookBar:
    """A line with a bar in a notebook's output, which needs nothing but IPython."""

    WIDTH = 20

    def __init__(self, rounds: int, done: int) -> None:
        from IPython.display import display

        self._rounds = rounds
        self._handle: Any = display(self._text(done, "-", ""), raw=True, display_id=True)

    def update(self, done: int, accuracy: str, timing: str) -> None:
        """Show the state after `done` rounds."""
        self._handle.update(self._text(done, accuracy, timing), raw=True)

    def stop(self) -> None:
        """Leave the last state in the notebook."""

    def _text(self, done: int, accuracy: str, timing: str) -> dict[str, str]:
        full = self.WIDTH * done // self._rounds
        bar = "█" * full + "░" * (self.WIDTH - full)
        return {"text/plain": f"{done}/{self._rounds} rounds {bar} all-domain {accuracy}  {timing}".rstrip()}


def log_start(config: Config, world: World, everyone: Sequence[Mapping[str, Any]], plan: "Plan") -> None:
    """Log this process, and on rank 0 all participants with their ranks, devices and data."""
    log.info(str(world))
    if world.rank != 0:
        return
    part, histogram_PC = config.data.partition, plan.label_histogram()
    log.info(
        f"{config.size} participants, {config.topology.kind}, {config.data.name} ({part.kind}, {plan.domains} "
        f"domains), {config.method.name}, {config.rounds} rounds, seed {config.seed}"
    )
    if config.optimizer.precision == "tf32" and all(row["device"] == "cpu" for row in everyone):
        log.info("optimizer.precision=tf32 has no effect on a CPU: the run computes in float32")
    for index, row in enumerate(everyone[:LISTED]):
        domain = f"domain {row['own_domain']}" if row["own_domain"] >= 0 else "all domains"
        gpu = f" ({row['gpu']})" if row.get("gpu") else ""
        log.info(
            f"participant {index}: {row['architecture']}, {row['parameters']:,} parameters, rank {row['rank']} on "
            f"{row['host']} (pid {row['pid']}), {row['device']}{gpu}; {row['private_samples']} private samples of "
            f"{domain}, by label {histogram_PC[index].tolist()}",
            extra={"file_only": len(everyone) > SHOWN},
        )
    if len(everyone) > LISTED:
        log.info(f"and {len(everyone) - LISTED} more; metrics.h5 lists them all", extra={"file_only": True})
    if len(everyone) > SHOWN:
        counts = Counter(str(row["architecture"]) for row in everyone)
        log.info(", ".join(f"{count} x {name}" for name, count in counts.items()) + "; the log file lists participants")
    if unheld := plan.unheld_domains():
        log.warning(
            f"{len(unheld)} of {plan.domains} domains are held by nobody, but count in all-domain accuracy: "
            f"{', '.join(unheld[:LISTED])}. More participants would hold them"
            f"{', and so would a smaller data.partition.domains' if part.domains is not None else ''}."
        )
    rare = plan.rare_classes()
    if len(rare):
        log.warning(
            f"{len(rare)} of {plan.classes} classes {'is' if len(rare) == 1 else 'are'} held by one participant only, "
            f"the first is class {rare[0]}: the others learn it from the seed set and from posteriors alone."
        )
    if part.min_per_class is not None:
        log.info(
            f"draw {plan.draws} of the partition has data.partition.min_per_class={part.min_per_class} of every class"
        )
    fix = "data.partition.min_per_class=1 draws the partition until every class has some."
    if part.kind == "file":
        fix = "Give some rows of it to a participant in the partition file."
    for name, labels in plan.absent_classes().items():
        if len(labels):
            log.warning(
                f"{len(labels)} of {plan.classes} classes {'has' if len(labels) == 1 else 'have'} no {name} samples, "
                f"the first is class {labels[0]}. {fix}"
            )


def log_notes(world: World, note: str, caution: str, first_round: int, config: Config) -> None:
    """Log the caller's note, where a resumed run begins, and on rank 0 cautions about the method and the schedule."""
    if note:
        log.info(note)
    if caution and world.rank == 0:
        log.warning(caution)
    if world.rank == 0:
        _caution_about_schedules(config)
    if first_round:
        log.info(f"resumed after {first_round} of {config.rounds} rounds, from a checkpoint")


def _caution_about_schedules(config: Config) -> None:
    sections = {"": config.optimizer}
    sections |= {f"per_model.{name}.": config.optimizer.for_model(name) for name in config.optimizer.per_model}
    for place, section in sections.items():
        scheduled = section.schedule_rounds
        falls_to_zero = section.schedule in ("cosine", "linear")
        if falls_to_zero and scheduled is not None and scheduled < config.rounds:
            log.warning(
                f"optimizer.{place}schedule_rounds: the rate is 0 from round {scheduled} on, so later rounds train "
                "nothing"
            )


def _short(seconds: Mapping[str, float]) -> str:
    """Return the seconds of each phase in a common unit, such as `local 40, wait 0, mutual 57 ms`."""
    largest = max((value for value in seconds.values() if not np.isnan(value)), default=0.0)
    scale, unit, digits = (1e3, "ms", 0) if largest < 1 else (1.0, "s", 1 if largest < 100 else 0)
    return ", ".join(f"{name} {scale * value:.{digits}f}" for name, value in seconds.items()) + f" {unit}"


def _mean(values_P: NDArray[np.float64]) -> float:
    return float(np.nanmean(values_P)) if not np.isnan(values_P).all() else float("nan")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
