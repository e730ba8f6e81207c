"""Load the config named by the caller or, when resuming, the stored one. This module does not import torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.run_directory import RunDirectory

Mode = Literal["never", "auto", "require"]
MODES: tuple[Mode, ...] = get_args(Mode)


def load(
    source: str | Path | Mapping[str, Any] | Config | None, overrides: Sequence[str], out: str | None, mode: Mode
) -> Config:
    """Return the caller's config, or the stored one if the caller names none. It is not resolved yet.

    Raises
    ------
    UserError
        As `config.loading.load`.
    """
    chosen = source if source is not None else stored_config(out, mode)
    return with_participants(loading.load(chosen, overrides), out, mode)


def stored_config(out: str | None, mode: Mode) -> Path | None:
    """Return the config file of the run to resume; None if there is no such run, or it is not to be resumed."""
    if mode == "never" or out is None:
        return None
    path = RunDirectory(Path(out)).config
    return path if path.is_file() else None


def with_participants(config: Config, out: str | None, mode: Mode) -> Config:
    """Return the config with the number of participants of the run to resume, if it leaves that to the ranks."""
    stored = stored_config(out, mode)
    if stored is None or config.participants is not None:
        return config
    return config.model_copy(update={"participants": loading.load(stored).participants})
