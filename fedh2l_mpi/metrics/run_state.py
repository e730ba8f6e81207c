"""Infer the state of a run, such as complete or crashed, from its metrics file alone."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedh2l_mpi.metrics.reader import RunMetrics
from fedh2l_mpi.metrics.schema import TIMINGS
from fedh2l_mpi.metrics.timing import slowest_rank_seconds
from fedh2l_mpi.runtime.processes import is_running, start_mark, start_s

# A file that was not closed belongs to a running run, unless it has not changed for this long.
SILENT_S = 600.0
SILENT_ROUNDS = 20
# The clocks of a machine and of its file server differ by less than this.
CLOCKS_S = 60.0


@dataclass(frozen=True)
class RunState:
    """State of a run, with its number of rounds.

    Attributes
    ----------
    word : {"complete", "running", "stopped", "failed", "crashed"}
        Stopped: the run ended in order before its last round. Failed: an error ended it, and the file was closed.
        Crashed: it was killed.
    rounds, planned : int
        Finished rounds and planned rounds (0: unknown).
    early_stop : str
        How `run.early_stop` ended the run before the planned rounds; empty if it did not.
    """

    word: str
    rounds: int
    planned: int
    early_stop: str = ""

    def __str__(self) -> str:
        if self.word == "complete":
            return f"complete, {self.rounds} rounds" + (f": {self.early_stop}" if self.early_stop else "")
        where = "now in" if self.word == "running" else "before" if self.word == "stopped" else "in"
        return f"{self.word} {where} round {self.rounds}: {self.rounds} of {self.planned or '?'} rounds finished"


def infer_state(run: RunMetrics, path: Path) -> RunState:
    """Return the state of the run that wrote this metrics file."""
    planned = run.attributes.get("rounds_planned", 0)
    planned = planned if isinstance(planned, int) else 0
    word = run.attributes.get("state")
    if word not in ("complete", "stopped", "failed"):
        if run.closed:
            # Early versions did not record the state, so it follows from the number of rounds.
            word = "complete" if run.rounds == planned else "stopped"
        else:
            word = "running" if _is_alive(run, path) else "crashed"
    return RunState(str(word), run.rounds, planned, str(run.attributes.get("early_stop", "")))


def _is_alive(run: RunMetrics, path: Path) -> bool:
    pid = run.attributes.get("pid")
    if run.attributes.get("host") == socket.gethostname() and isinstance(pid, int):
        if not is_running(pid):
            return False
        mark, now = run.attributes.get("process_start"), start_mark(pid)
        if mark not in (None, "unknown") and now is not None:
            return mark == now
        started_s = start_s(pid)
        # Files of earlier versions do not say when their writer started, so the clock must say it. A process that is
        # younger than the file only has the writer's old number, for example after a reboot.
        return started_s is None or started_s < path.stat().st_mtime + CLOCKS_S
    # The last rounds are enough, and reading only these is quick in a large file.
    last = (slice(-SILENT_ROUNDS, None),)
    rounds_R = slowest_rank_seconds([run.part(name, last) for name in TIMINGS], run["rank"])
    silent_s = SILENT_ROUNDS * float(np.max(rounds_R, initial=0.0))
    return time.time() - path.stat().st_mtime < max(SILENT_S, silent_s)
