"""Compare configs as flat settings by dotted keys: find the settings that make two runs different."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from fedh2l_mpi.config import Config, DataConfig, classic

Settings = Mapping[str, Any]
# Keys without influence on the numbers: place, speed, checkpoints and end of a run. The recipe is one of them, because
# each key that it decides is compared itself.
NEVER_COUNT = (
    "recipe",
    "devices.",
    "exchange.deadline_s",
    "exchange.keep_posteriors",
    "checkpoint.",
    "run.",
    "evaluation.predictions",
)
# The rule of an early stop decides how many rounds a run has, so it counts where there is one.
EARLY_STOP = "run.early_stop."
# Keys that may also change on resume: the number of rounds, an early stop, and the location of the data.
MAY_CHANGE = ("rounds", "data.root", EARLY_STOP)
# A job that copies a pack to its nodes' disks keeps the pack's whole path, below `<SCRATCH><job>/<COPY_OF>/`.
SCRATCH, COPY_OF = "fedh2l_mpi-", "copy-of"
_COPY = re.compile(rf".*/{SCRATCH}[^/]+/{COPY_OF}/", re.DOTALL)


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one mapping by dotted keys; an empty section is kept as a value."""
    keys: dict[str, Any] = {}
    for key, value in section.items():
        inner = isinstance(value, Mapping) and value
        keys |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return keys


def what_counts(settings: Settings) -> dict[str, Any]:
    """Return the settings that change a run's numbers: all settings except those of its place and speed."""
    kind = DataConfig.class_of(settings.get("data.name"))
    elsewhere = () if kind is not None and kind.root_is_content else ("data.root",)
    ignored = (*NEVER_COUNT, *elsewhere)
    counted = EARLY_STOP if settings.get(f"{EARLY_STOP}patience") is not None else ()
    if isinstance(settings.get("data.root"), str):
        # Drop the job's folder, because a copy is the same pack.
        settings = {**settings, "data.root": _COPY.sub("", settings["data.root"], count=1)}
    # Drop empty sections, because they mean the same as absent ones.
    return {
        key: value
        for key, value in settings.items()
        if (key.startswith(counted) or not key.startswith(ignored)) and value != {}
    }


def differing_keys(ours: Config, theirs: Config) -> list[tuple[str, Any, Any]]:
    """Return the dotted keys that make two runs different, with both values."""
    a, b = what_counts(flat(ours.model_dump())), what_counts(flat(theirs.model_dump()))
    return [(key, a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)]


def what_must_stay(config: Config) -> dict[str, Any]:
    """Return the settings that a resumed run keeps, because its numbers so far depend on them.

    The number of rounds, an early stop and the location of the data may change. The data themselves are compared by a
    digest of the seed set and of all participants' label counts.
    """
    counted = what_counts(flat(config.model_dump()))
    return {key: value for key, value in counted.items() if not key.startswith(MAY_CHANGE)}


def unusual(config: Config) -> dict[str, Any]:
    """Return the settings that must stay and are not classic, as JSON values.

    Classic values are left out, so that neither new keys nor new defaults change the settings of old runs.
    """
    counted = what_must_stay(config)
    found = {key: value for key, value in counted.items() if not classic.is_usual(key, value)}
    return dict(json.loads(json.dumps(found)))


def digest(config: Config) -> str:
    """Return the SHA-256 of `unusual`, in hexadecimal."""
    return hashlib.sha256(json.dumps(unusual(config), sort_keys=True).encode()).hexdigest()
