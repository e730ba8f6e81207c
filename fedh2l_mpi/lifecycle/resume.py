"""Going on from a checkpoint: the newest one of which every rank finds its part sound, and no other."""

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

# Facts of the run that a checkpoint has, too: what another value of them means.
MUST_AGREE = {
    "participants": "the number of participants",
    "data_sha256": "the seed set or the labels of the private data",
}
MAY_MOVE_NUMBERS = {
    "threads": "devices.threads",
    "devices": "the kind of device",
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
    """Give the participants hosted here their states back; the number of rounds that are finished. **Collective.**

    Parameters
    ----------
    facts : mapping
        Of this process's run, as `CheckpointWriter` has them.
    rounds : int
        How many there are to be in all.

    Raises
    ------
    UserError
        On every rank alike: if no checkpoint is sound, it is of other data or another config, or a last round that was
        not evaluated would be the run's last.
    """
    problems: list[str] = []
    damaged: list[Path] = []
    for folder in world.from_first(lambda: directory.committed()):
        # What cannot be read now ends it here, on every rank: it is not for us to give up a checkpoint.
        manifest, states, problem = world.together(
            lambda folder=folder: _look(world, directory, folder, participants)  # type: ignore[misc]
        )
        found = [text for text in world.collect(problem) if text]
        if not found:
            world.together(lambda m=manifest, s=states: _take(m, s, participants, facts, rounds))  # type: ignore[misc]
            world.from_first(lambda m=manifest: _check_last_round(directory, m, rounds))  # type: ignore[misc]
            world.from_first(lambda: checkpoint_files.set_aside(damaged))
            return int(manifest["round"])
        problems += found
        damaged.append(folder)
        log.warning(f"checkpoint {folder.name} cannot be used: {found[0]}; trying the one before")
    listed = "\n  ".join(problems) or f"{directory.checkpoints} has none but what was set aside as damaged"
    raise UserError(
        f"--resume: no checkpoint of {directory.path} is sound:\n  {listed}\n  the finished rounds are in "
        f"{directory.metrics}; to begin anew, choose another --out",
        agreed=True,
    )


def _look(
    world: World, directory: RunDirectory, folder: Path, participants: Sequence[Participant]
) -> tuple[dict[str, Any], dict[int, dict[str, Any]], str]:
    """A checkpoint's manifest and the states that are for this rank; or else what is wrong with it."""
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
        raise DamagedError(f"its rows in {directory.metrics}: {error}") from None
    if found != manifest["rows_sha256"]:
        raise DamagedError(f"its rows in {directory.metrics}: have changed since they were written")


def _check_last_round(directory: RunDirectory, manifest: Mapping[str, Any], rounds: int) -> None:
    """Of a run that lacks no round any more: its last one is evaluated, whatever `evaluation.every`."""
    if manifest["round"] < rounds:
        return
    run = metrics.look(directory.metrics)
    try:
        is_evaluated = not np.isnan(run.read_row("accuracy", rounds - 1)).all()
    finally:
        run.close()
    if not is_evaluated:
        raise UserError(
            f"rounds: got {rounds}, as many as the run in {directory.path} has finished, but the last of them was not "
            f"evaluated; ask for {rounds + 1} or more"
        )


def _take(
    manifest: Mapping[str, Any],
    states: Mapping[int, Mapping[str, Any]],
    participants: Sequence[Participant],
    facts: Mapping[str, Any],
    rounds: int,
) -> None:
    if manifest["round"] > rounds:
        raise UserError(f"rounds: got {rounds}, but the run has finished {manifest['round']}; ask for as many or more")
    ours, theirs = facts["settings"], manifest["settings"]
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if keys:
        told = "; ".join(f"{key}: there {theirs.get(key, 'default')}, here {ours.get(key, 'default')}" for key in keys)
        raise UserError(f"--resume: the config has changed since the checkpoint of {manifest['round']} rounds: {told}")
    for fact, what in MUST_AGREE.items():
        if manifest[fact] != facts[fact]:
            raise UserError(
                f"--resume: {what} of the checkpoint after {manifest['round']} rounds is another: "
                f"there {manifest[fact]}, here {facts[fact]}"
            )
    for fact, what in MAY_MOVE_NUMBERS.items():
        if manifest[fact] != facts[fact]:
            log.warning(
                f"{what} has changed since the checkpoint was made, so the numbers may differ in their last bits from "
                f"those of an unbroken run: there {manifest[fact]}, here {facts[fact]}"
            )
    for participant in participants:
        try:
            participant.restore(states[participant.index])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--resume: the checkpoint after {manifest['round']} rounds does not fit: {error}"
            ) from None
