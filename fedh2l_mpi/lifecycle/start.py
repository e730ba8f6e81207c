"""Decide whether to start, resume or skip a run, and reserve its directory."""

import logging
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from fedh2l_mpi import metrics
from fedh2l_mpi.config import Config, comparison, loading
from fedh2l_mpi.config.text_files import read_text
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files, early_stop, run_config, status
from fedh2l_mpi.lifecycle.lock import RunLock
from fedh2l_mpi.lifecycle.run_config import Mode
from fedh2l_mpi.lifecycle.status import Status
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.world import World

log = logging.getLogger("fedh2l_mpi")
Kind = Literal["new", "resume", "done"]


class RunReservation:
    """One rank's part in the reservation of a run directory; rank 0 holds the lock. As a context, it releases it.

    Attributes
    ----------
    requested : RunDirectory
        The directory that was asked for. `settle` returns the one that the run gets.
    kind : {"new", "resume", "done"}
        What remains to be done; done: every round that is asked for is there. A new run whose lock is already held
        replaces a run that has no checkpoint.
    """

    def __init__(self, requested: RunDirectory, kind: Kind = "new", lock: RunLock | None = None) -> None:
        self.requested, self.kind, self._lock = requested, kind, lock

    def __enter__(self) -> "RunReservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def settle(self, config: Config) -> RunDirectory:
        """On rank 0: make the directory of a new run and lock it, write the config, and return the directory.

        Only now does a run that starts again replace what there was, because until now its start might have failed.

        Raises
        ------
        UserError
            If the directory cannot be written, or another process took it in the meantime.
        """
        if self._lock is None:
            directory = self.requested.make()
            self._lock = RunLock(directory.lock)
            directory.create(run_config.stored_text(config))
            return directory
        try:
            if self.kind == "new":
                _make_way(self.requested)
            self.requested.log(0).parent.mkdir(exist_ok=True)
            atomic_files.write_text(self.requested.config, run_config.stored_text(config))
        except OSError as error:
            raise UserError(
                f"--out: {self.requested.path} cannot be written: {error.strerror}. "
                "Fix: make room there and permit writing, or choose another --out."
            ) from None
        return self.requested

    def release(self) -> None:
        """Release the lock, so that another process may resume the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def reserve(world: World, directory: RunDirectory, config: Config, mode: Mode) -> RunReservation:
    """Decide what to do with a run directory. If it holds a run, rank 0 takes its lock. **Collective.**

    Raises
    ------
    UserError
        On every rank alike: if there is nothing to resume, the stored config differs, or another process is running it.
    """
    reservations = []

    def decide() -> Kind:
        reservations.append(_decide(directory, config, mode))
        return reservations[0].kind

    kind = world.from_first(decide)
    return reservations[0] if reservations else RunReservation(directory, kind)


def _decide(directory: RunDirectory, config: Config, mode: Mode) -> RunReservation:
    if directory.named_by_time:
        # A directory with this name is new, or belongs to a run that began in the same second.
        return RunReservation(directory)
    if not directory.config.exists():
        if mode == "require":
            raise UserError(f"--resume require: {directory.path} contains no run. Fix: use --resume auto to start one.")
        if directory.metrics.exists() or directory.committed():
            raise UserError(
                f"--resume {mode}: {directory.path} contains a run without its config.yaml. Fix: put that file back "
                "(metrics.h5 has its text as the attribute 'config'), or choose another --out."
            )
        return RunReservation(directory)
    lock = RunLock(directory.lock)
    try:
        if lock.taken_from is not None:
            log.warning(f"{directory.lock}: took over the lock of a process that has ended ({lock.taken_from})")
        refuse_other_config(directory, config)
        finished = _finished(directory)
        if finished > config.rounds:
            raise UserError(
                f"rounds: got {config.rounds}, but the run in {directory.path} has already finished {finished}. "
                f"Fix: use {finished} or more."
            )
        ended_early = early_stop.read_end(directory.metrics, config.run.early_stop, finished)
        if finished == config.rounds or ended_early:
            _report_complete(directory, Status("complete", finished, config.rounds, ended_early, finished))
            return RunReservation(directory, "done", lock)
        checkpoint_files.clear(directory.checkpoints)
        if any(directory.checkpoints.glob("round-*")):
            _log_end_that_is_undone(directory)
            return RunReservation(directory, "resume", lock)
        if finished:
            # Refuse this, because the run has a result. A run without a result starts again at round 0.
            raise UserError(
                f"rounds: got {config.rounds}, but the run in {directory.path} is complete after {finished} and has no "
                f"checkpoint to resume from. Fix: put {directory.checkpoints} back, or choose another --out."
            )
        if mode == "require":
            raise UserError(
                f"--resume require: {directory.path} has no checkpoint. Fix: use --resume auto to start again."
            )
        return RunReservation(directory, "new", lock)
    except BaseException:
        lock.release()
        raise


def refuse_other_config(directory: RunDirectory, config: Config) -> None:
    """Raise if a run directory has a run whose config differs in what must stay; nothing is changed.

    Raises
    ------
    UserError
        One line for each setting that differs.
    """
    try:
        is_empty = not read_text(directory.config, loading.MOST_BYTES).strip()
    except ValueError:
        # `load_stored` reports it.
        is_empty = False
    if is_empty:
        raise UserError(
            f"{directory.config}: the file is empty. Fix: put its text back (metrics.h5 has it as the attribute "
            "'config'), or choose another --out."
        )
    theirs = comparison.what_must_stay(loading.load_stored(directory.config))
    ours = comparison.what_must_stay(config)
    differing = [
        f"{key}: there {_shown(theirs, key)}, here {_shown(ours, key)}"
        for key in {**theirs, **ours}
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        allowed = ", ".join(key.rstrip(".") for key in (*comparison.MAY_CHANGE, *comparison.NEVER_COUNT))
        raise UserError(
            f"--resume: the run in {directory.path} has a different config:\n  "
            + "\n  ".join(differing)
            + f"\n  Allowed to change: {allowed}."
            + f"\n  Fix: leave out CONFIG and --set, so that the stored config is used ({directory.config})."
        )


def _shown(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    return repr(list(value) if isinstance(value, tuple) else value)


def _finished(directory: RunDirectory) -> int:
    """Return the rounds of a complete run; 0 if it is not complete."""
    try:
        run = metrics.look(directory.metrics)
    except UserError:
        return 0
    return run.rounds if run.closed and run.attributes.get("state") == "complete" and not run.problems else 0


def _log_end_that_is_undone(directory: RunDirectory) -> None:
    before = status.read(directory.status)
    if before is not None and before.state == "complete" and before.reason:
        log.info(f"{directory.path}: the run goes on after its {before.reason}, as run.early_stop is now")


def _report_complete(directory: RunDirectory, complete: Status) -> None:
    """Report that the run is complete, in case that it was killed before it could report that itself."""
    written = status.read(directory.status)
    if written is None or (written.state, written.reason) != (complete.state, complete.reason):
        status.write(directory.status, replace(complete, who="resumed, all done"))


def _rounds(directory: RunDirectory) -> int | None:
    """Return the number of rounds in the metrics file; None if the file cannot be read."""
    try:
        run = metrics.look(directory.metrics)
    except UserError:
        return None
    return None if run.problems else run.rounds


def _make_way(directory: RunDirectory) -> None:
    """Let the run begin at round 0, and keep the rounds that were finished before under another name."""
    kept = ""
    if directory.metrics.exists() and _rounds(directory) == 0:
        directory.metrics.unlink()
    elif directory.metrics.exists():
        taken = (directory.metrics.with_name(f"metrics.unfinished-{number}.h5") for number in range(1, 10**6))
        free = next(path for path in taken if not path.exists())
        atomic_files.move(directory.metrics, free)
        kept = f" Its earlier rounds are kept in {free}."
    log.warning(f"{directory.path} has no checkpoint to resume from, so the run begins at round 0 again.{kept}")
