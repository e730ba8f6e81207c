"""What a run is doing or what became of it, in one small file for people, scripts and batch jobs.

Lines `key: value`; `sed -n 's/^state: //p' status` is the state. The exit code of a launcher is no substitute: a
mpirun may return 0 after it has lost a node.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.runtime import atomic_files

STATES = ("running", "stopped", "complete", "failed")


@dataclass(frozen=True)
class Status:
    """A run's state.

    Attributes
    ----------
    state : {"running", "stopped", "complete", "failed"}
        Stopped: ended in order before its last round, and can be gone on with.
    round, rounds : int
        Finished rounds, and how many there are to be.
    reason : str
        Why it was stopped or has failed, one line; empty otherwise.
    checkpoint : int
        Finished rounds in the newest checkpoint; 0: there is none.
    who : str
        Host, pid and job of the process that wrote it.
    time : str
        When, as ISO 8601 in UTC; empty for now.
    """

    state: str
    round: int
    rounds: int
    reason: str = ""
    checkpoint: int = 0
    who: str = ""
    time: str = ""

    def text(self) -> str:
        """The file's text."""
        time = self.time or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        lines = {
            "state": self.state,
            "round": self.round,
            "rounds": self.rounds,
            "checkpoint": self.checkpoint,
            "time": time,
            "reason": " ".join(self.reason.split()),
            "process": self.who,
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items())


def write(path: Path, status: Status, forced: bool = True) -> None:
    """Replace the status file; `forced` to the disk where the next job decides by it."""
    atomic_files.write_text(path, status.text(), forced)


def read(path: Path) -> Status | None:
    """What the status file says; None if there is none, or it is none of ours."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    said = {key: value for key, _, value in (line.partition(": ") for line in lines)}
    if said.get("state") not in STATES:
        return None

    def number(key: str) -> int:
        return int(said[key]) if said.get(key, "").isdigit() else 0

    return Status(
        said["state"],
        number("round"),
        number("rounds"),
        said.get("reason", ""),
        number("checkpoint"),
        said.get("process", ""),
        said.get("time", ""),
    )


def end(path: Path, state: str, reason: str, who: str) -> None:
    """Say how a running run has ended. What another rank has said of that before stays.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    now = read(path)
    if now is not None and now.state == "running":
        write(path, Status(state, now.round, now.rounds, reason, now.checkpoint, who))
