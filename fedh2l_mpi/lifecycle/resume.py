"""Resume from the newest checkpoint whose files are sound on every rank."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files
from fedh2l_mpi.lifecycle.checkpoint_files import DamagedError
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

log = logging.getLogger("fedh2l_mpi")

# Facts in the manifest that must equal those of this process, and what each of them describes.
MUST_AGREE = {
    "participants": "the number of participants",
    "data_sha256": "the seed set, the labels of the private data or the partition file",
}
# Facts that may differ, with a warning, because they may change the last bits of the numbers.
MAY_CHANGE_LAST_BITS = {
    "threads": "devices.threads",
    "devices": "the kind of device",
    "gpus": "the model of a GPU",
    "source_sha256": "the code",
    "libraries": "a library",
}


def restore(
    world: World,
    directory: RunDirectory,
    participants: Sequence[Participant],
    facts: Mapping[str, Any],
    rounds: int,
) -> int:
    """Restore the states of the participants on this rank, and return the number of finished rounds. **Collective.**

    Parameters
    ----------
    facts : mapping
        Facts about this process's run, as `CheckpointWriter` gets them.
    rounds : int
        Number of rounds of the whole run.

    Raises
    ------
    UserError
        On every rank: if no checkpoint is sound, its data or its config differ, or no round remains but the last
        finished round was not evaluated.
    """
    problems: list[str] = []
    damaged: list[Path] = []
    for folder in world.from_first(lambda: directory.committed()):
        # An unreadable file (unlike a damaged one) stops the run on every rank, so that no valid checkpoint is
        # discarded.
        manifest, states, problem = world.together(
            lambda folder=folder: _read(world, directory, folder, participants)  # type: ignore[misc]
        )
        found = [text for text in world.collect(problem) if text]
        if not found:
            world.together(
                lambda m=manifest, s=states: _restore(m, s, participants, facts, rounds)  # type: ignore[misc]
            )
            world.from_first(lambda: _check_columns(directory, facts))
            world.from_first(lambda m=manifest: _check_last_round(directory, m, rounds))  # type: ignore[misc]
            world.from_first(lambda: checkpoint_files.set_aside(damaged))
            return int(manifest["round"])
        problems += found
        damaged.append(folder)
        log.warning(f"checkpoint {folder.name} cannot be used: {found[0]}. The checkpoint before it is tried next.")
    listed = "\n  ".join(problems) or f"{directory.checkpoints}: only checkpoints renamed as damaged are left"
    raise UserError(
        f"--resume: no checkpoint of {directory.path} is sound:\n  {listed}\n  The finished rounds are in "
        f"{directory.metrics}. Fix: choose another --out to start again.",
        agreed=True,
    )


def changes_of_last_bits(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return what has changed since a checkpoint that may change the last bits of the numbers, in words.

    What one of the two does not know is left out: a checkpoint of an earlier version names no GPUs, and a run on a CPU
    has none, nor their libraries.
    """
    changed = []
    for fact, what in MAY_CHANGE_LAST_BITS.items():
        there, here = manifest.get(fact), facts[fact]
        if isinstance(there, dict):
            differing = [name for name in there if name in here and there[name] != here[name]]
            there, here = ({name: found[name] for name in differing} for found in (there, here))
        if there and here and there != here:
            changed.append(f"{what} has changed since the checkpoint was made: there {there}, here {here}")
    return changed


def _read(
    world: World, directory: RunDirectory, folder: Path, participants: Sequence[Participant]
) -> tuple[dict[str, Any], dict[int, dict[str, Any]], str]:
    """Return a checkpoint's manifest, the states of this rank's participants, and an empty text; or the damage."""
    try:
        manifest = checkpoint_files.read_manifest(folder)
        states = checkpoint_files.load(folder, manifest, [participant.index for participant in participants])
        if world.rank == 0:
            _check_rows(directory, manifest)
    except DamagedError as error:
        return {}, {}, str(error)
    return manifest, states, ""


def _check_rows(directory: RunDirectory, manifest: Mapping[str, Any]) -> None:
    try:
        found = metrics.rows_digest(directory.metrics, manifest["round"])
    except (ValueError, UserError) as error:
        raise DamagedError(f"its rows in {directory.metrics} cannot be read ({error})") from None
    if found != manifest["rows_sha256"]:
        raise DamagedError(f"its rows in {directory.metrics} have changed since they were written")


def _check_columns(directory: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Check that the file has the run's own arrays, because the rounds of a run all have the same ones."""
    ours, theirs = facts.get("columns", []), metrics.look(directory.metrics).columns.names
    if ours != theirs:
        raise UserError(
            f"--resume: the run's own arrays have changed: there {', '.join(theirs) or 'none'}, here "
            f"{', '.join(ours) or 'none'}. Fix: restore the method's notes, or start again in another --out."
        )


def _check_last_round(directory: RunDirectory, manifest: Mapping[str, Any], rounds: int) -> None:
    """Check that the last round was evaluated if no round remains, because every run evaluates its last round."""
    if manifest["round"] < rounds:
        return
    is_evaluated = not np.isnan(metrics.look(directory.metrics).read_row("accuracy", rounds - 1)).all()
    if not is_evaluated:
        raise UserError(
            f"rounds: got {rounds}, and the run in {directory.path} has finished them, but the last one was not "
            f"evaluated. Fix: use {rounds + 1} or more."
        )


def _restore(
    manifest: Mapping[str, Any],
    states: Mapping[int, Mapping[str, Any]],
    participants: Sequence[Participant],
    facts: Mapping[str, Any],
    rounds: int,
) -> None:
    if manifest["round"] > rounds:
        raise UserError(
            f"rounds: got {rounds}, but the run has already finished {manifest['round']}. "
            f"Fix: use {manifest['round']} or more."
        )
    ours, theirs = facts["settings"], manifest["settings"]
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if keys:
        differing = [f"{key}: there {theirs.get(key, 'default')}, here {ours.get(key, 'default')}" for key in keys]
        raise UserError(
            f"--resume: the config has changed since the checkpoint of {manifest['round']} rounds: "
            f"{'; '.join(differing)}. Fix: restore these values in config.yaml."
        )
    for fact, what in MUST_AGREE.items():
        if manifest[fact] != facts[fact]:
            raise UserError(
                f"--resume: {what} differs from the checkpoint after {manifest['round']} rounds: "
                f"there {manifest[fact]}, here {facts[fact]}. Fix: resume with the run's own data and participants."
            )
    if changed := changes_of_last_bits(manifest, facts):
        log.warning(
            f"{'; '.join(changed)}. The last bits of the numbers may differ from those of an uninterrupted run."
        )
    for participant in participants:
        try:
            participant.restore(states[participant.index])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--resume: the checkpoint after {manifest['round']} rounds does not fit this run: {error}"
            ) from None
