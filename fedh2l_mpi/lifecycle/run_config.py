"""Which config a run has: the one that is named, or that of the run to go on with. Torch is not needed to be told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.run_directory import RunDirectory

Mode = Literal["never", "auto", "require"]
MODES: tuple[Mode, ...] = get_args(Mode)


def load(path: str | None, overrides: Sequence[str], out: str | None, mode: Mode) -> Config:
    """The config of a command that names the file `path`, or none; not resolved yet.

    Raises
    ------
    UserError
        As `config_file.load`.
    """
    return with_participants(loading.load(path or stored_config(out, mode), overrides), out, mode)


def stored_config(out: str | None, mode: Mode) -> Path | None:
    """The config of the run to go on with, for a command that names none; None where there is no such run."""
    if mode == "never" or out is None:
        return None
    path = RunDirectory(Path(out)).config
    return path if path.is_file() else None


def with_participants(config: Config, out: str | None, mode: Mode) -> Config:
    """The config, and where it leaves the number of participants to the ranks, that of the run to go on with."""
    stored = stored_config(out, mode)
    if stored is None or config.participants is not None:
        return config
    return config.model_copy(update={"participants": loading.load(stored).participants})
