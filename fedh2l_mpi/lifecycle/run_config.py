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

    When resuming, the caller's config has the defaults of the stored run's recipe, unless it names a recipe. A time
    limit (`run.max_wall`) counts only if the caller gives it.

    Raises
    ------
    UserError
        As `config.loading.load`.
    """
    stored = stored_config(out, mode)
    if stored is None:
        return loading.load(source, overrides)
    before = loading.load_stored(stored)
    if source is None:
        # Earlier versions stored the limit of the process that started the run.
        config = loading.load_stored(stored, ("run.max_wall=null", *overrides))
    else:
        config = loading.load(source, overrides, resumes=stored)
    return _as_started(config, before)


def stored_text(config: Config) -> str:
    """Return the text that a run keeps of its config. The time limit is the process's own, so it is left out."""
    return config.model_copy(update={"run": config.run.model_copy(update={"max_wall": None})}).to_yaml()


def stored_config(out: str | None, mode: Mode) -> Path | None:
    """Return the config file of the run to resume; None if there is no such run, or it is not to be resumed."""
    if mode == "never" or out is None:
        return None
    path = RunDirectory(Path(out)).config
    return path if path.is_file() else None


def _as_started(config: Config, before: Config) -> Config:
    """Return the config with what the run to resume filled in when it started, where the config leaves that open.

    It is the number of participants, which depends on the ranks, keys of the optimiser, which depend on the number of
    rounds, and speeds that were measured: an extended run keeps them.
    """
    participants = before.participants if config.participants is None else config.participants
    optimizer = config.optimizer.as_started(before.optimizer)
    network = config.network.as_started(before.network)
    return config.model_copy(update={"participants": participants, "optimizer": optimizer, "network": network})
