"""A config as flat settings by dotted keys, and which of them make two runs different."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from fedh2l_mpi.config import Config

Settings = Mapping[str, Any]
# Keys that older runs do not have, and what those runs did; an absent key reads as null, which needs no word here.
ADDED = {"exchange.codec": "float32", "optimizer.precision": "float32"}
# Where and how fast a run runs, how it is secured, and when it ends.
NEVER_COUNT = ("devices.", "exchange.deadline_s", "checkpoint.", "run.")
# What a run that is gone on with may have otherwise, too: how long it is, and where its data lie.
MAY_CHANGE = ("rounds", "data.root")
# A job that copies a pack to its nodes' own disks has it in the folder `<SCRATCH><job>/<COPY_OF>/`, by its whole path.
SCRATCH, COPY_OF = "fedh2l_mpi-", "copy-of"
_COPY = re.compile(rf".*/{SCRATCH}[^/]+/{COPY_OF}/", re.DOTALL)


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections by dotted keys; an empty one stays as it is."""
    keys: dict[str, Any] = {}
    for key, value in section.items():
        inner = isinstance(value, Mapping) and value
        keys |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return keys


def what_counts(settings: Settings) -> dict[str, Any]:
    """The settings that a run's numbers depend on: all but where and how fast it ran."""
    # A pack is the data itself; the folder of a public data set only says where a copy of it lies.
    elsewhere = () if settings.get("data.name") == "pack" else ("data.root",)
    ignored = (*NEVER_COUNT, *elsewhere)
    if isinstance(settings.get("data.root"), str):
        # The job's number makes it no other pack.
        settings = {**settings, "data.root": _COPY.sub("", settings["data.root"], count=1)}
    # An empty section says as much as an absent one.
    told = {**settings, **{key: value for key, value in ADDED.items() if key not in settings}}
    return {key: value for key, value in told.items() if not key.startswith(ignored) and value != {}}


def differing_keys(ours: Config, theirs: Config) -> list[tuple[str, Any, Any]]:
    """Dotted keys that make two runs different, with both values; where and how fast they run does not."""
    a, b = what_counts(flat(ours.model_dump())), what_counts(flat(theirs.model_dump()))
    return [(key, a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)]


def what_must_stay(config: Config) -> dict[str, Any]:
    """The settings that a run keeps when it is gone on with: its numbers so far depend on them.

    Not how many rounds there will be, and not where data lie: of the data, the seed set and everybody's counts of
    labels are compared by a digest.
    """
    counted = what_counts(flat(config.model_dump()))
    return {key: value for key, value in counted.items() if key not in MAY_CHANGE}


def unusual(config: Config) -> dict[str, Any]:
    """What must stay and is not the default, as JSON has it: a later version's new keys change nothing of old runs."""
    usual = what_must_stay(Config())
    found = {key: value for key, value in what_must_stay(config).items() if usual.get(key) != value}
    return dict(json.loads(json.dumps(found)))


def digest(config: Config) -> str:
    """SHA-256, in hexadecimal, of `unusual`."""
    return hashlib.sha256(json.dumps(unusual(config), sort_keys=True).encode()).hexdigest()
