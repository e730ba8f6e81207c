"""What a person sees: a progress bar on a terminal, plain lines in a batch log, and the table at the end.

rich is imported by the rank that prints, not by the others.
"""

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi import metrics
from fedh2l_mpi.config import Config
from fedh2l_mpi.world import World

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

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
    """

    def __init__(self, config: Config, quiet: bool) -> None:
        self._rounds, self._quiet = config.rounds, quiet
        self._begin = self._said = time.monotonic()
        self._accuracy = float("nan")
        self._bar: Any = None
        if not quiet and is_terminal():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=self._rounds, accuracy="-", phases="")
            self._bar.start()

    def round(self, round_index: int, table_PW: NDArray[np.float64]) -> None:
        """Tell of a finished round."""
        evaluated = columns(table_PW, "accuracy_all")
        if not np.isnan(evaluated).all():
            self._accuracy = float(np.nanmean(evaluated))
        # Participants of one rank take turns, so a phase's mean over participants is what a person can compare.
        phases = {
            name: 1e3 * float(np.nanmean(columns(table_PW, f"seconds_{name}"))) for name in ("local", "wait", "mutual")
        }
        timing = ", ".join(f"{name} {ms:.0f} ms" for name, ms in phases.items())
        if self._bar is not None:
            accuracy = "-" if np.isnan(self._accuracy) else f"{self._accuracy:.3f}"
            self._bar.update(self._task, completed=round_index + 1, accuracy=accuracy, phases=timing)
        now = time.monotonic()
        is_news = not np.isnan(evaluated).all() or now - self._said > QUIET_S
        if is_news:
            self._said = now
            done = round_index + 1
            left = (now - self._begin) / done * (self._rounds - done)
            line = (
                f"round {done} of {self._rounds}: private {_mean(table_PW, 'loss_private'):.3f} nats, "
                f"mutual {_mean(table_PW, 'loss_distillation'):.3f} nats, all-domain {self._accuracy:.3f}, "
                f"{timing} per participant, {_duration(left)} left"
            )
            log.info(line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def setup_logging(path: str, rank: int, size: int, lines: bool) -> None:
    """Send this rank's log to its file, and to the terminal where `lines` is true (rank 0 in a batch log)."""
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    if lines:
        handlers.append(logging.StreamHandler(sys.stdout))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {rank}/{size} %(levelname)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def is_terminal() -> bool:
    """Whether standard output is a terminal; under mpirun it is a pipe."""
    return sys.stdout.isatty()


def log_start(config: Config, world: World, description: list[dict[str, Any]], histogram_PC: NDArray[np.int64]) -> None:
    """Write into the log which process this is, and on rank 0 who learns where, on what."""
    log.info(str(world))
    if world.rank != 0:
        return
    part = config.data.partition
    log.info(
        f"{config.size} participants, {config.topology.kind}, {config.data.name} ({part.kind}, {part.domains} "
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


def result_table(run: metrics.RunMetrics) -> "Table":
    """The last round of a run, a row per participant and their mean, as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=f"after round {run.rounds}; accuracies on test data",
        title_justify="left",
        padding=(0, 1),
        box=SIMPLE_HEAD,
    )
    for name, justify in (
        ("participant", "right"),
        ("architecture", "left"),
        ("parameters", "right"),
        ("own\ndomain", "right"),
        ("all\ndomains", "right"),
        ("worst\ndomain", "right"),
        ("all domains at\nbest validation", "right"),
        ("bytes\nsent", "right"),
        ("sharing parameters\nwould have sent", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    sent = run["bytes_sent"].sum(axis=0)
    # Sharing parameters sends one copy of the model over every edge in every round.
    would = (run["degree"] * run["parameter_bytes"]).sum(axis=0)
    best = accuracy_at_best_validation(run)
    for i in range(min(len(sent), LISTED)):
        table.add_row(
            str(i),
            run["architecture"][i].decode(),
            f"{run['parameters'][i]:,}",
            *(f"{run[name][-1, i]:.3f}" for name in ("accuracy_own", "accuracy_all", "accuracy_worst")),
            f"{best[i]:.3f}",
            f"{sent[i]:,}",
            f"{would[i]:,}",
        )
    table.add_section()
    left_out = f"mean of {len(sent)}" if len(sent) > LISTED else "mean"
    means = (run[name][-1].mean() for name in ("accuracy_own", "accuracy_all", "accuracy_worst"))
    table.add_row(
        left_out,
        "",
        f"{run['parameters'].mean():,.0f}",
        *(f"{mean:.3f}" for mean in means),
        f"{np.nanmean(best) if not np.isnan(best).all() else float('nan'):.3f}",
        f"{sent.mean():,.0f}",
        f"{would.mean():,.0f}",
    )
    return table


def accuracy_at_best_validation(run: metrics.RunMetrics) -> NDArray[np.float64]:
    """All-domain accuracy (P,) in the evaluated round whose validation accuracy was highest (the first of equals)."""
    validation, everywhere = run["accuracy_validation"], run["accuracy_all"]
    best = np.full(validation.shape[1], np.nan)
    known = ~np.isnan(validation).all(axis=0)
    chosen = np.nanargmax(validation[:, known], axis=0)
    best[known] = everywhere[chosen, np.flatnonzero(known)]
    return best


def output() -> "RichConsole":
    """Where tables are printed: as wide as the terminal, 120 columns in a batch log."""
    from rich.console import Console

    return Console() if is_terminal() else Console(width=120)


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
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
