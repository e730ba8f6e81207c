"""Status file of a run: its state in one small file for people, scripts and batch jobs.

The file has lines `key: value`, and `sed -n 's/^state: //p' status` prints the state. The exit code of a launcher is
no substitute, because mpirun may return 0 after it has lost a node.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.runtime import atomic_files

STATES = ("running", "stopped", "complete", "failed")


@dataclass(frozen=True)
class Status:
    """State of a run.

    Attributes
    ----------
    state : {"running", "stopped", "complete", "failed"}
        A stopped run ended in order before its last round, and can be resumed.
    round, rounds : int
        Number of finished rounds, and of all rounds.
    reason : str
        Reason of a stop or a failure, one line; empty otherwise.
    checkpoint : int
        Finished rounds in the newest checkpoint; 0 if there is none.
    who : str
        Host, pid and job of the process that wrote the file.
    time : str
        Time of the writing, as ISO 8601 in UTC; empty means now.
    """

    state: str
    round: int
    rounds: int
    reason: str = ""
    checkpoint: int = 0
    who: str = ""
    time: str = ""

    def text(self) -> str:
        """Return the file's text."""
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
    """Replace the status file. Set `forced` to force it to the disk if the next job depends on it."""
    atomic_files.write_text(path, status.text(), forced)


def read(path: Path) -> Status | None:
    """Return the status in the file; None if the file is missing or is no status file."""
    try:
        # A pipe would be waited for.
        if not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = {key: value for key, _, value in (line.partition(": ") for line in lines)}
    if values.get("state") not in STATES:
        return None

    def number(key: str) -> int:
        return int(values[key]) if values.get(key, "").isdigit() else 0

    return Status(
        values["state"],
        number("round"),
        number("rounds"),
        values.get("reason", ""),
        number("checkpoint"),
        values.get("process", ""),
        values.get("time", ""),
    )


def end(path: Path, state: str, reason: str, who: str) -> None:
    """Report the end of a running run. An end that another rank has already reported is unchanged.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    now = read(path)
    if now is not None and now.state == "running":
        write(path, Status(state, now.round, now.rounds, reason, now.checkpoint, who))
