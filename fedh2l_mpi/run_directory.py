"""The one owner of a run directory's paths."""

import errno
import itertools
import re
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
        Nobody has asked for this name: if another run of the same second is there, another name will do.
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
    def status(self) -> Path:
        """What the run is doing, or what became of it."""
        return self.path / "status"

    @property
    def lock(self) -> Path:
        """Who is at work on the run."""
        return self.path / "lock"

    @property
    def stop_request(self) -> Path:
        """Whoever makes this file asks the run to stop."""
        return self.path / "STOP"

    @property
    def checkpoint_request(self) -> Path:
        """Whoever makes this file asks for a checkpoint."""
        return self.path / "CHECKPOINT"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, rounds: int) -> Path:
        """The checkpoint after `rounds` finished rounds."""
        return self.checkpoints / f"round-{rounds:08d}"

    def committed(self) -> list[Path]:
        """The checkpoints that are whole, as far as their names tell, the newest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [path for path in self.checkpoints.iterdir() if COMMITTED.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)

    def log(self, rank: int) -> Path:
        """The log of a rank."""
        return self.path / "log" / f"rank-{rank:04d}.log"

    @property
    def traces(self) -> Path:
        """The folder of the parts of the run's timeline."""
        return self.path / "trace"

    def trace(self, attempt: int, rank: int) -> Path:
        """A rank's part of the timeline of one of the times that the run was begun or gone on with, counted from 1."""
        return self.traces / f"attempt-{attempt:04d}" / f"rank-{rank:04d}.json"

    def make(self) -> "RunDirectory":
        """Make the directory, and which one that is: of a name by the time, the first that no other run has.

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
            raise UserError(f"--out: {self.path} cannot be written: {error.strerror}") from None

    def _candidates(self) -> Iterator[Path]:
        yield self.path
        yield from (self.path.with_name(f"{self.path.name}-{n}") for n in itertools.count(2))

    def create(self, config_text: str) -> None:
        """Put the resolved config into the directory; for rank 0 alone, with the lock held, once the run is sound.

        Raises
        ------
        UserError
            If the directory cannot be written, or another run took it in the meantime.
        """
        try:
            self.log(0).parent.mkdir(parents=True, exist_ok=True)
            # Of two runs that start at the same moment, one has the lock; what the other finds is whole.
            if self.config.exists():
                raise FileExistsError(errno.EEXIST, "File exists", str(self.config))
            atomic_files.write_text(self.config, config_text)
        except FileExistsError as error:
            raise UserError(f"--out: {self.path} cannot be used: {error.filename} exists already") from None
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be written: {error.strerror}") from None


def _is_made_here(path: Path) -> bool:
    """Make a directory; False if it exists already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def choose(out: str | None, name: str, holds_a_run: bool = False) -> RunDirectory:
    """The directory for a new run, or of one to go on with; nothing is written yet.

    Parameters
    ----------
    out : str or None
        The directory; None means a new one under `runs/`, named after the config and the time. Which name it has in
        the end is known when it is made: several runs may start in one second.
    name : str
        What the run is called where `out` is None.
    holds_a_run : bool
        Whether it may hold a run already.

    Raises
    ------
    UserError
        If the directory holds a run already, or is a file.
    """
    if out is None:
        return RunDirectory(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", named_by_time=True)
    directory = RunDirectory(Path(out))
    try:
        if directory.path.exists() and not directory.path.is_dir():
            raise UserError(f"--out: {directory.path} is a file, must be a directory or new")
        for taken in (directory.metrics, directory.config):
            if taken.exists() and not holds_a_run:
                raise UserError(
                    f"--out: {directory.path} holds a run already ({taken.name}); choose another directory, or go on "
                    "with that run with --resume auto"
                )
    except OSError as error:
        raise UserError(f"--out: {directory.path} cannot be used: {error.strerror}") from None
    return directory
