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
    return as_started(loading.load(chosen, overrides), out, mode)


def stored_config(out: str | None, mode: Mode) -> Path | None:
    """Return the config file of the run to resume; None if there is no such run, or it is not to be resumed."""
    if mode == "never" or out is None:
        return None
    path = RunDirectory(Path(out)).config
    return path if path.is_file() else None


def as_started(config: Config, out: str | None, mode: Mode) -> Config:
    """Return the config with what the run to resume filled in when it started, where the config leaves that open.

    It is the number of participants, which depends on the ranks, and keys of the optimiser, which depend on the number
    of rounds: an extended run keeps them.
    """
    stored = stored_config(out, mode)
    if stored is None or (config.participants is not None and config.optimizer.is_resolved):
        return config
    started = loading.load(stored)
    participants = started.participants if config.participants is None else config.participants
    optimizer = config.optimizer.as_started(started.optimizer)
    return config.model_copy(update={"participants": participants, "optimizer": optimizer})
