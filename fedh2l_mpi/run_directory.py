"""The one owner of a run directory's paths."""

import time
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.errors import UserError


@dataclass(frozen=True)
class RunDirectory:
    """Paths in a directory that holds one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.h5"

    def log(self, rank: int) -> Path:
        """The log of a rank."""
        return self.path / "log" / f"rank-{rank:04d}.log"


def create(out: str | None, name: str, config_text: str) -> RunDirectory:
    """A directory for a new run, with the resolved config in it. Called by rank 0 alone.

    Parameters
    ----------
    out : str or None
        The directory; None means a new one under `runs/`, named after the config and the time.
    name : str
        What the run is called where `out` is None.

    Raises
    ------
    UserError
        If the directory holds a run already or cannot be written.
    """
    path = Path(out) if out is not None else Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = RunDirectory(path)
    try:
        if out is None:
            # Several runs may start in one second.
            number = 2
            while directory.path.exists():
                directory = RunDirectory(path.with_name(f"{path.name}-{number}"))
                number += 1
        for taken in (directory.metrics, directory.config):
            if taken.exists():
                raise UserError(f"--out: {directory.path} holds a run already ({taken.name}); choose another directory")
        directory.log(0).parent.mkdir(parents=True, exist_ok=True)
        # Exclusively: of two runs that start at the same moment, one wins.
        with directory.config.open("x", encoding="utf-8") as file:
            file.write(config_text)
    except FileExistsError as error:
        raise UserError(f"--out: {directory.path} cannot be used: {error.filename} exists already") from None
    except OSError as error:
        raise UserError(f"--out: {directory.path} cannot be written: {error.strerror}") from None
    return directory
