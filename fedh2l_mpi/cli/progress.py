"""Show a run's start and progress on rank 0: a bar on a terminal, plain lines in a batch log."""

import logging
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi import metrics
from fedh2l_mpi.config import Config
from fedh2l_mpi.runtime.terminal import is_terminal
from fedh2l_mpi.runtime.world import World

log = logging.getLogger("fedh2l_mpi")

_COLUMN = {field.name: number for number, field in enumerate(metrics.ROW_FIELDS)}


# In a batch log, a round without evaluation is worth a line only where rounds are slow.
QUIET_S = 30.0


# More participants than this are summed up instead of listed.
LISTED = 32


def columns(table_PW: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """A field of every participant, float64 (P,), from a round's rows."""
    return table_PW[:, _COLUMN[name]]


class Progress:
    """Follows a run on rank 0; silent when `quiet`.

    Parameters
    ----------
    config : Config
        A resolved config.
    first_round : int
        Rounds that were finished before.
    """

    def __init__(self, config: Config, quiet: bool, first_round: int = 0) -> None:
        self._rounds, self._quiet, self._first = config.rounds, quiet, first_round
        self._begin = self._said = time.monotonic()
        self._accuracy = float("nan")
        self._bar: Any = None
        if not quiet and is_terminal():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=self._rounds, completed=first_round, accuracy="-", phases="")
            self._bar.start()

    def round(self, round_index: int, table_PW: NDArray[np.float64]) -> None:
        """Tell of a finished round."""
        evaluated = columns(table_PW, "accuracy_all")
        if not np.isnan(evaluated).all():
            self._accuracy = float(np.nanmean(evaluated))
        # Participants of one rank take turns, so a phase's mean over participants is what a person can compare.
        phases = {name: 1e3 * _mean(table_PW, f"seconds_{name}") for name in ("local", "wait", "mutual")}
        timing = ", ".join(f"{name} {ms:.0f} ms" for name, ms in phases.items())
        if self._bar is not None:
            accuracy = "-" if np.isnan(self._accuracy) else f"{self._accuracy:.3f}"
            self._bar.update(self._task, completed=round_index + 1, accuracy=accuracy, phases=timing)
        now = time.monotonic()
        is_news = not np.isnan(evaluated).all() or now - self._said > QUIET_S
        if is_news:
            self._said = now
            done = round_index + 1
            left = (now - self._begin) / (done - self._first) * (self._rounds - done)
            line = (
                f"{done} of {self._rounds} rounds: private {_mean(table_PW, 'loss_private'):.3f} nats, "
                f"mutual {_mean(table_PW, 'loss_distillation'):.3f} nats, all-domain {self._accuracy:.3f}, "
                f"{timing} per participant, {_duration(left)} left"
            )
            # Where there is a bar, the terminal has this already.
            log.info(line, extra={"file_only": self._bar is not None})

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def log_start(
    config: Config, world: World, description: list[dict[str, Any]], histogram_PC: NDArray[np.int64], domains: int
) -> None:
    """Write into the log which process this is, and on rank 0 who learns where, on what."""
    log.info(str(world))
    if world.rank != 0:
        return
    part = config.data.partition
    log.info(
        f"{config.size} participants, {config.topology.kind}, {config.data.name} ({part.kind}, {domains} "
        f"domains), {config.method.name}, {config.rounds} rounds, seed {config.seed}"
    )
    for index, row in enumerate(description[:LISTED]):
        domain = f"domain {row['own_domain']}" if row["own_domain"] >= 0 else "all domains"
        log.info(
            f"participant {index}: {row['architecture']}, {row['parameters']:,} parameters, rank {row['rank']} on "
            f"{row['host']} (pid {row['pid']}), {row['device']}; {row['private_samples']} private samples of {domain}, "
            f"by label {histogram_PC[index].tolist()}"
        )
    if len(description) > LISTED:
        log.info(f"and {len(description) - LISTED} more; metrics.h5 has them all")


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        MofNCompleteColumn(),
        TextColumn("rounds"),
        BarColumn(bar_width=20),
        TextColumn("all-domain {task.fields[accuracy]}  {task.fields[phases]}  left"),
        TimeRemainingColumn(),
    )


def _mean(table_PW: NDArray[np.float64], name: str) -> float:
    values = columns(table_PW, name)
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
