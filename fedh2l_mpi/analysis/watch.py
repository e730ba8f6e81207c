"""Follow a running run in its metrics file, and draw a compact view of it in the terminal.

Every look opens the file again, without a lock and without waiting for the writer, and closes it at once. Only new rows
of the large arrays are read. If a look is slow, looks become rarer, because the writer uses the same file system.

Shape letters: R rounds, P participants.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.outcome import known_mean
from fedh2l_mpi.analysis.run import Run, load_run, readable
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import TIMINGS, RunMetrics, RunState, slowest_rank_seconds
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.terminal import open_console, rich_text, say
from fedh2l_mpi.runtime.units import size

if TYPE_CHECKING:
    from rich.console import RenderableType

# Largest share of the time that looking may take.
BUSY_SHARE = 0.05
# A reader may meet the writer in the middle of a flush, so a failed look is repeated.
TRIES, RETRY_S = 5, 0.1
BARS = "▁▂▃▄▅▆▇█"
CURVE = 40
LOSSES = ("loss_private", "loss_seed", "loss_distillation")


@dataclass
class WatchedRun:
    """A run that is followed; every look adds its new rounds.

    Attributes
    ----------
    accuracy_E : list of float
        All-domain accuracy, mean over participants, of every evaluated round.
    rows : int
        Number of rounds that have been read.
    writer : tuple
        Host and process that wrote them.
    """

    path: Path
    rows: int = 0
    writer: tuple[str | int | None, ...] = ()
    accuracy_E: list[float] = field(default_factory=list)
    lowest: float = math.nan
    highest: float = math.nan
    sent: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    round_seconds: list[float] = field(default_factory=list)
    state: RunState = field(default_factory=lambda: RunState("running", 0, 0))
    title: str = ""
    problems: list[str] = field(default_factory=list)

    def look(self) -> float:
        """Read the new rounds, and return the time that this took [s].

        Raises
        ------
        UserError
            If the file cannot be read after TRIES tries.
        """
        begin = time.monotonic()
        for left in reversed(range(TRIES)):
            try:
                run = load_run(self.path)
                with run.metrics.opened():
                    first = self._first(run.metrics)
                    new, state = _read(run.metrics, first), run.condition
            except UserError:
                if not left or not self.path.exists():
                    raise
            else:
                # Values that were met in the middle of a flush are read again, as they may look damaged.
                if not run.problems or run.metrics.closed or not left:
                    self._add(run, first, new, state)
                    break
            if left:
                time.sleep(RETRY_S)
        return time.monotonic() - begin

    def _first(self, measured: RunMetrics) -> int:
        """Return the first round to read: 0 if the run resumed from a checkpoint, as it then repeats rounds."""
        return self.rows if measured.rounds >= self.rows and _writer(measured) == self.writer else 0

    def _add(self, run: Run, first: int, new: dict[str, NDArray[np.float64]], state: RunState) -> None:
        self.title, self.writer = self.title or _title(run), _writer(run.metrics)
        if first == 0:
            self.accuracy_E, self.round_seconds, self.sent = [], [], 0.0
        if new:
            accuracy_RP = new["accuracy_all"]
            for accuracy_P in accuracy_RP[~np.isnan(accuracy_RP).all(axis=1)]:
                self.accuracy_E.append(known_mean(accuracy_P))
                self.lowest, self.highest = float(np.nanmin(accuracy_P)), float(np.nanmax(accuracy_P))
            self.sent += float(np.nansum(new["bytes_sent"], dtype=float)) / run.participants
            self.round_seconds += slowest_rank_seconds([new[name] for name in TIMINGS], new["rank"]).tolist()
            self.seconds = {name.removeprefix("seconds_"): known_mean(new[name][-1]) for name in TIMINGS}
            self.losses = {name: known_mean(new[name][-1]) for name in LOSSES}
        self.rows = run.metrics.rounds
        self.state = state
        self.problems = list(run.problems)

    @property
    def ended(self) -> bool:
        """True if the run has ended."""
        return self.state.word != "running"


def follow(path: Path, interval_s: float) -> RunState:
    """Watch until the run ends, and return its last state; print one line per change if there is no terminal."""
    from rich.live import Live

    console = open_console()
    watched = WatchedRun(_appeared(path, interval_s))
    took_s = watched.look()
    if not console.is_terminal:
        while True:
            say(line(watched), flush=True)
            if watched.ended:
                for problem in watched.problems:
                    say(f"problem: {problem}")
                return watched.state
            seen = watched.rows
            while watched.rows == seen and not watched.ended:
                time.sleep(pause_s(interval_s, took_s))
                took_s = watched.look()
    with Live(view(watched), console=console, auto_refresh=False, transient=False) as live:
        while not watched.ended:
            time.sleep(pause_s(interval_s, took_s))
            took_s = watched.look()
            live.update(view(watched), refresh=True)
    return watched.state


def pause_s(interval_s: float, took_s: float) -> float:
    """Return the time until the next look [s]: the interval, or longer if a look takes long."""
    return max(interval_s, took_s / BUSY_SHARE)


def _appeared(path: Path, interval_s: float) -> Path:
    """Wait for the metrics file, which a queued job makes when it starts, and return it."""
    with readable(path):
        # A file of any name is read, so that its error is reported; taken as a directory, it would be waited for.
        file = path if path.suffix == ".h5" or path.is_file() else RunDirectory(path).metrics
        if not file.parent.exists() and not file.parent.parent.exists():
            raise UserError(f"{path}: there is no such directory.")
        if not file.exists():
            say(f"waiting for {file}", flush=True)
        while not file.exists():
            time.sleep(interval_s)
    return file


def line(watched: WatchedRun) -> str:
    """Return the run in one line."""
    accuracy = f"{watched.accuracy_E[-1]:.3f}" if watched.accuracy_E else "-"
    return f"{watched.state}, all-domain accuracy {accuracy}, {size(watched.sent)} sent, {_left(watched)}".rstrip(", ")


def view(watched: WatchedRun) -> "RenderableType":
    """Return the run in a few lines, to be drawn again after every look."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    state = watched.state
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("run", rich_text(watched.title))
    grid.add_row("state", rich_text(f"{state}{', ' if _left(watched) else ''}{_left(watched)}"))
    if state.planned:
        grid.add_row("", ProgressBar(total=state.planned, completed=state.rounds, width=CURVE))
    if watched.accuracy_E:
        spread = f"{watched.accuracy_E[-1]:.3f}  (participants {watched.lowest:.3f} to {watched.highest:.3f})"
        grid.add_row("all domains", rich_text(spread))
        grid.add_row("", rich_text(curve(watched.accuracy_E)))
    known = {name.removeprefix("loss_"): value for name, value in watched.losses.items() if not math.isnan(value)}
    grid.add_row(
        rich_text("losses [nats]"), rich_text(", ".join(f"{name} {value:.3f}" for name, value in known.items()) or "-")
    )
    phases = {name: value for name, value in watched.seconds.items() if value > 0}
    shown = ", ".join(f"{name} {1e3 * value:.3g}" for name, value in phases.items())
    grid.add_row(rich_text("phases [ms]"), rich_text(shown or "-"))
    grid.add_row("sent", rich_text(f"{size(watched.sent)} by a participant"))
    for problem in watched.problems:
        grid.add_row("problem", rich_text(problem))
    return grid


def curve(values: list[float]) -> str:
    """Draw values from 0 to 1 as bars, one character each; many values become means of neighbours."""
    pieces: list[NDArray[np.float64]] = np.array_split(np.array(values), min(CURVE, len(values)))
    return "".join(BARS[min(len(BARS) - 1, int(piece.mean() * len(BARS)))] for piece in pieces)


def _writer(measured: RunMetrics) -> tuple[str | int | None, ...]:
    return measured.attributes.get("host"), measured.attributes.get("pid")


def _read(measured: RunMetrics, first: int) -> dict[str, NDArray[np.float64]]:
    """Read the ranks, and the arrays from round `first` on; nothing if there is no such round."""
    if measured.rounds <= first:
        return {}
    names = ("accuracy_all", "bytes_sent", *TIMINGS, *LOSSES)
    return {"rank": measured["rank"], **{name: _since(measured, name, first) for name in names}}


def _since(measured: RunMetrics, name: str, first: int) -> NDArray[np.float64]:
    """Return the rows of an array from round `first` on."""
    if first == 0:
        return measured[name]
    return np.stack([measured.read_row(name, row) for row in range(first, measured.rounds)])


def _title(run: Run) -> str:
    method, data = run.key("method.name", "?"), run.key("data.name", "?")
    return f"{run.name}: {method}, {data}, {run.participants} participants, {run.key('topology.kind', 'graph')}"


def _left(watched: WatchedRun) -> str:
    """Return the time left, estimated from the last rounds, or an empty string if it is unknown."""
    rounds = watched.state.planned - watched.state.rounds
    if watched.ended or rounds <= 0 or not watched.round_seconds:
        return ""
    seconds = rounds * float(np.median(watched.round_seconds[-20:]))
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes}:{rest:02d} min left"
