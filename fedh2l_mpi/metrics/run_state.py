"""What became of a run, told from its metrics file alone."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedh2l_mpi.metrics.reader import RunMetrics
from fedh2l_mpi.metrics.schema import TIMINGS
from fedh2l_mpi.metrics.timing import slowest_rank_seconds
from fedh2l_mpi.runtime.processes import is_running, start_s

# A file that nobody closed belongs to a run that goes on, unless it has been silent for this long.
SILENT_S = 600.0
SILENT_ROUNDS = 20
# Further apart than the clocks of a machine and of its file server.
CLOCKS_S = 60.0


@dataclass(frozen=True)
class RunState:
    """A run's state.

    Attributes
    ----------
    word : {"complete", "running", "stopped", "failed", "crashed"}
        Stopped: ended in order before its last round. Failed: ended by an error, which closed the file. Crashed:
        killed.
    rounds, planned : int
        Finished rounds, and how many there were to be (0: unknown).
    """

    word: str
    rounds: int
    planned: int

    def __str__(self) -> str:
        if self.word == "complete":
            return f"complete, {self.rounds} rounds"
        where = "now in" if self.word == "running" else "before" if self.word == "stopped" else "in"
        return f"{self.word} {where} round {self.rounds}: {self.rounds} of {self.planned or '?'} rounds finished"


def infer_state(run: RunMetrics, path: Path) -> RunState:
    """What became of the run whose metrics file this is."""
    planned = run.attributes.get("rounds_planned", 0)
    planned = planned if isinstance(planned, int) else 0
    told = run.attributes.get("state")
    if told not in ("complete", "stopped", "failed"):
        if run.closed:
            # Files from before the state was recorded.
            told = "complete" if run.rounds == planned else "stopped"
        else:
            told = "running" if _goes_on(run, path) else "crashed"
    return RunState(str(told), run.rounds, planned)


def _goes_on(run: RunMetrics, path: Path) -> bool:
    pid = run.attributes.get("pid")
    if run.attributes.get("host") == socket.gethostname() and isinstance(pid, int):
        if not is_running(pid):
            return False
        started_s = start_s(pid)
        # One that is younger than the file has been given the number of the writer, after a reboot, say.
        return started_s is None or started_s < path.stat().st_mtime + CLOCKS_S
    # The last rounds are enough, and quick to read in a large file.
    last = (slice(-SILENT_ROUNDS, None),)
    rounds_R = slowest_rank_seconds([run.part(name, last) for name in TIMINGS], run["rank"])
    silent_s = SILENT_ROUNDS * float(np.max(rounds_R, initial=0.0))
    return time.time() - path.stat().st_mtime < max(SILENT_S, silent_s)
