"""Follows a running run in its metrics file, and draws a compact view of it in the terminal.

The file is opened anew for every look, without a lock and without HDF5's waiting for the writer, and closed at once; of
its large arrays only new rows are read. Where that is slow, it looks less often: the writer shares that file system.

Shape letters: R rounds, P participants.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis import summary as numbers
from fedh2l_mpi.analysis.run import Run, look_at, readable
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import TIMINGS, RunMetrics, RunState, slowest_rank_seconds
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.units import size

if TYPE_CHECKING:
    from rich.console import RenderableType

# A look may take this part of the time, no more.
BUSY_SHARE = 0.05
# A reader can meet the writer half-way through a flush: then it looks again, and later once more.
TRIES, RETRY_S = 5, 0.1
BARS = "▁▂▃▄▅▆▇█"
CURVE = 40
LOSSES = ("loss_private", "loss_seed", "loss_distillation")


@dataclass
class Follower:
    """What is known of a run so far; every look adds the rounds that are new.

    Attributes
    ----------
    accuracy_E : list of float
        All-domain accuracy, mean over participants, of every evaluated round.
    rows : int
        Rounds that have been read.
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
        """Read what is new; how long that took [s].

        Raises
        ------
        UserError
            If the file cannot be read, also after some tries.
        """
        begin = time.monotonic()
        for left in reversed(range(TRIES)):
            try:
                run = look_at(self.path)
            except UserError:
                if not left or not self.path.exists():
                    raise
            else:
                try:
                    first = self._first(run.metrics)
                    new, state = _read(run.metrics, first), run.condition
                finally:
                    run.close()
                # What was met half-way is not taken: it is unknown only until it is read again.
                if not run.problems or run.metrics.closed or not left:
                    self._add(run, first, new, state)
                    break
            if left:
                time.sleep(RETRY_S)
        return time.monotonic() - begin

    def _first(self, measured: RunMetrics) -> int:
        """The first round to read: 0 if the run went on from a checkpoint, after which rounds are done again."""
        return self.rows if measured.rounds >= self.rows and _writer(measured) == self.writer else 0

    def _add(self, run: Run, first: int, new: dict[str, NDArray[np.float64]], state: RunState) -> None:
        self.title, self.writer = self.title or _title(run), _writer(run.metrics)
        if first == 0:
            self.accuracy_E, self.round_seconds, self.sent = [], [], 0.0
        if new:
            accuracy_RP = new["accuracy_all"]
            for accuracy_P in accuracy_RP[~np.isnan(accuracy_RP).all(axis=1)]:
                self.accuracy_E.append(numbers.mean(accuracy_P))
                self.lowest, self.highest = float(np.nanmin(accuracy_P)), float(np.nanmax(accuracy_P))
            self.sent += float(np.nansum(new["bytes_sent"], dtype=float)) / run.participants
            self.round_seconds += slowest_rank_seconds([new[name] for name in TIMINGS], new["rank"]).tolist()
            self.seconds = {name.removeprefix("seconds_"): numbers.mean(new[name][-1]) for name in TIMINGS}
            self.losses = {name: numbers.mean(new[name][-1]) for name in LOSSES}
        self.rows = run.metrics.rounds
        self.state = state
        self.problems = list(run.problems)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.state.word != "running"


def follow(path: Path, interval_s: float) -> RunState:
    """Watch until the run ends, and its last state; a line per change where standard output is no terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    follower = Follower(_appeared(path, interval_s))
    took_s = follower.look()
    if not console.is_terminal:
        while True:
            print(line(follower), flush=True)
            if follower.ended:
                for problem in follower.problems:
                    print(f"problem: {problem}")
                return follower.state
            seen = follower.rows
            while follower.rows == seen and not follower.ended:
                time.sleep(pause_s(interval_s, took_s))
                took_s = follower.look()
    with Live(view(follower), console=console, auto_refresh=False, transient=False) as live:
        while not follower.ended:
            time.sleep(pause_s(interval_s, took_s))
            took_s = follower.look()
            live.update(view(follower), refresh=True)
    return follower.state


def pause_s(interval_s: float, took_s: float) -> float:
    """Time until the next look: longer than asked for where a look takes long."""
    return max(interval_s, took_s / BUSY_SHARE)


def _appeared(path: Path, interval_s: float) -> Path:
    """The metrics file, once it is there: a queued job makes it when it starts."""
    with readable(path):
        # A file of another name is looked at, too, and its complaint told: as a directory it would never appear.
        file = path if path.suffix == ".h5" or path.is_file() else RunDirectory(path).metrics
        if not file.parent.exists() and not file.parent.parent.exists():
            raise UserError(f"{path}: no such directory")
        if not file.exists():
            print(f"waiting for {file}", flush=True)
        while not file.exists():
            time.sleep(interval_s)
    return file


def line(follower: Follower) -> str:
    """The run in one line."""
    accuracy = f"{follower.accuracy_E[-1]:.3f}" if follower.accuracy_E else "-"
    return f"{follower.state}, all-domain accuracy {accuracy}, {size(follower.sent)} sent, {_left(follower)}".rstrip(
        ", "
    )


def view(follower: Follower) -> "RenderableType":
    """The run in a few lines that are drawn again and again."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    state = follower.state
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="ellipsis", no_wrap=True)
    grid.add_row("run", Text(follower.title))
    grid.add_row("state", Text(f"{state}{', ' if _left(follower) else ''}{_left(follower)}"))
    if state.planned:
        grid.add_row("", ProgressBar(total=state.planned, completed=state.rounds, width=CURVE))
    if follower.accuracy_E:
        spread = f"{follower.accuracy_E[-1]:.3f}  (participants {follower.lowest:.3f} to {follower.highest:.3f})"
        grid.add_row("all domains", Text(spread))
        grid.add_row("", Text(curve(follower.accuracy_E)))
    known = {name.removeprefix("loss_"): value for name, value in follower.losses.items() if not math.isnan(value)}
    grid.add_row(Text("losses [nats]"), Text(", ".join(f"{name} {value:.3f}" for name, value in known.items()) or "-"))
    phases = {name: value for name, value in follower.seconds.items() if value > 0}
    told = ", ".join(f"{name} {1e3 * value:.3g}" for name, value in phases.items())
    grid.add_row(Text("phases [ms]"), Text(told or "-"))
    grid.add_row("sent", Text(f"{size(follower.sent)} by a participant"))
    for problem in follower.problems:
        grid.add_row("problem", Text(problem))
    return grid


def curve(values: list[float]) -> str:
    """Values from 0 to 1 as bars, one character each; of many, means over neighbours."""
    pieces: list[NDArray[np.float64]] = np.array_split(np.array(values), min(CURVE, len(values)))
    return "".join(BARS[min(len(BARS) - 1, int(piece.mean() * len(BARS)))] for piece in pieces)


def _writer(measured: RunMetrics) -> tuple[str | int | None, ...]:
    return measured.attributes.get("host"), measured.attributes.get("pid")


def _read(measured: RunMetrics, first: int) -> dict[str, NDArray[np.float64]]:
    """What a look adds: the ranks, and arrays from round `first` on; nothing if there is no such round."""
    if measured.rounds <= first:
        return {}
    names = ("accuracy_all", "bytes_sent", *TIMINGS, *LOSSES)
    return {"rank": measured["rank"], **{name: _since(measured, name, first) for name in names}}


def _since(measured: RunMetrics, name: str, first: int) -> NDArray[np.float64]:
    """Rows of an array from round `first` on."""
    if first == 0:
        return measured[name]
    return np.stack([measured.of_round(name, row) for row in range(first, measured.rounds)])


def _title(run: Run) -> str:
    method, data = run.key("method.name", "?"), run.key("data.name", "?")
    return f"{run.name}: {method}, {data}, {run.participants} participants, {run.key('topology.kind', 'graph')}"


def _left(follower: Follower) -> str:
    """Time left, by the median of the last rounds; nothing where it cannot be told."""
    rounds = follower.state.planned - follower.state.rounds
    if follower.ended or rounds <= 0 or not follower.round_seconds:
        return ""
    seconds = rounds * float(np.median(follower.round_seconds[-20:]))
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes}:{rest:02d} min left"
