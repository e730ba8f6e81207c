"""Paths in a run directory, and the choice of a directory for a run."""

import errno
import itertools
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import atomic_files

COMMITTED = re.compile(r"round-\d{8,}")


@dataclass(frozen=True)
class RunDirectory:
    """Paths in a directory that holds one run.

    Attributes
    ----------
    named_by_time : bool
        The name comes from the time, so a run that finds it taken may use a different one.
    """

    path: Path
    named_by_time: bool = False

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.h5"

    @property
    def predictions(self) -> Path:
        """The file of predictions, if the run writes one."""
        return self.path / "predictions.h5"

    @property
    def posteriors(self) -> Path:
        """The file of kept posteriors, if the run keeps any."""
        return self.path / "posteriors.h5"

    @property
    def status(self) -> Path:
        """The status file: the run's progress or its end."""
        return self.path / "status"

    @property
    def lock(self) -> Path:
        """The lock of the process that works on the run."""
        return self.path / "lock"

    @property
    def stop_request(self) -> Path:
        """A file that asks the run to stop; anyone may make it."""
        return self.path / "STOP"

    @property
    def checkpoint_request(self) -> Path:
        """A file that asks the run for a checkpoint; anyone may make it."""
        return self.path / "CHECKPOINT"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, rounds: int) -> Path:
        """Return the folder of the checkpoint after `rounds` finished rounds."""
        return self.checkpoints / f"round-{rounds:08d}"

    def committed(self) -> list[Path]:
        """Return the checkpoints whose names say that they are complete, newest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [path for path in self.checkpoints.iterdir() if COMMITTED.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)

    @property
    def resume_command(self) -> str:
        """The command that resumes the run, or starts it again if it has no checkpoint."""
        return f"python -m fedh2l_mpi --resume auto --out {shlex.quote(str(self.path))}"

    @property
    def resume_effect(self) -> str:
        """The predicate that follows `resume_command` in a message."""
        committed = self.committed()
        return f"resumes it after round {int(committed[0].name.partition('-')[2])}" if committed else "starts it again"

    def log(self, rank: int) -> Path:
        """Return the path of a rank's log."""
        return self.path / "log" / f"rank-{rank:04d}.log"

    @property
    def traces(self) -> Path:
        """The folder of the parts of the run's trace."""
        return self.path / "trace"

    def trace(self, attempt: int, rank: int) -> Path:
        """Return the path of a rank's part of a trace; starting and each resuming are one attempt, counted from 1."""
        return self.traces / f"attempt-{attempt:04d}" / f"rank-{rank:04d}.json"

    def make(self) -> "RunDirectory":
        """Make the directory and return it; a name from the time gets a number if another run has taken it.

        Raises
        ------
        UserError
            If it cannot be made.
        """
        try:
            if not self.named_by_time:
                self.path.mkdir(parents=True, exist_ok=True)
                return self
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return RunDirectory(next(path for path in self._candidates() if _is_made_here(path)))
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be written: {error.strerror}.") from None

    def _candidates(self) -> Iterator[Path]:
        yield self.path
        yield from (self.path.with_name(f"{self.path.name}-{n}") for n in itertools.count(2))

    def create(self, config_text: str) -> None:
        """Write the resolved config into the directory. Only rank 0 calls it, holding the lock, after all checks.

        Raises
        ------
        UserError
            If the directory cannot be written, or another run has taken it in the meantime.
        """
        try:
            self.log(0).parent.mkdir(parents=True, exist_ok=True)
            # If two runs start at the same moment, one gets the lock first, and the other finds a complete config.
            if self.config.exists():
                raise FileExistsError(errno.EEXIST, "File exists", str(self.config))
            atomic_files.write_text(self.config, config_text)
        except FileExistsError as error:
            raise UserError(f"--out: {self.path} cannot be used: {error.filename} exists already.") from None
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be written: {error.strerror}.") from None


def _is_made_here(path: Path) -> bool:
    """Make a directory; return False if it exists already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def choose(out: str | None, name: str, holds_a_run: bool = False) -> RunDirectory:
    """Choose the directory of a run that starts or resumes; this writes nothing.

    Parameters
    ----------
    out : str or None
        The directory; None means a new one under `runs/`, named after the config and the time. Its final name is known
        once it is made, because several runs may start in the same second.
    name : str
        Name of the run if `out` is None.
    holds_a_run : bool
        The directory may contain a run already.

    Raises
    ------
    UserError
        If the directory contains a run already, or is a file.
    """
    if out is None:
        return RunDirectory(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", named_by_time=True)
    directory = RunDirectory(Path(out))
    try:
        if directory.path.exists() and not directory.path.is_dir():
            raise UserError(f"--out: {directory.path} is a file. Use a directory, or a path that does not exist.")
        for taken in (directory.metrics, directory.config):
            if taken.exists() and not holds_a_run:
                raise UserError(
                    f"--out: {directory.path} holds a run already ({taken.name}). Choose a different directory, or "
                    "resume that run with --resume auto."
                )
    except OSError as error:
        raise UserError(f"--out: {directory.path} cannot be used: {error.strerror}.") from None
    return directory
