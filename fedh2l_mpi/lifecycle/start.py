"""Decide whether to start, resume or skip a run, and reserve its directory."""

import logging
from types import TracebackType
from typing import Any, Literal

from fedh2l_mpi import metrics
from fedh2l_mpi.config import Config, comparison, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files, status
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
            directory.create(config.to_yaml())
            return directory
        try:
            if self.kind == "new":
                _make_way(self.requested)
            self.requested.log(0).parent.mkdir(exist_ok=True)
            atomic_files.write_text(self.requested.config, config.to_yaml())
        except OSError as error:
            raise UserError(f"--out: {self.requested.path} cannot be written: {error.strerror}") from None
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
        # A directory of that name would be another run, which began in the same second.
        return RunReservation(directory)
    if not directory.config.exists():
        if mode == "require":
            raise UserError(f"--resume require: {directory.path} holds no run; --resume auto begins one")
        if directory.metrics.exists() or directory.committed():
            raise UserError(
                f"--resume {mode}: {directory.path} holds a run without its config.yaml; put that back "
                "(metrics.h5 has its text as the attribute 'config'), or choose another --out"
            )
        return RunReservation(directory)
    lock = RunLock(directory.lock)
    try:
        if lock.taken_from is not None:
            log.warning(f"the lock of a process that has ended ({lock.taken_from}) was taken over")
        _check_config(directory, config)
        finished = _finished(directory)
        if finished > config.rounds:
            raise UserError(
                f"rounds: got {config.rounds}, but the run in {directory.path} has finished {finished}; ask "
                "for as many or more"
            )
        if finished == config.rounds:
            _say_that_it_is_complete(directory, finished)
            return RunReservation(directory, "done", lock)
        checkpoint_files.clear(directory.checkpoints)
        if any(directory.checkpoints.glob("round-*")):
            return RunReservation(directory, "resume", lock)
        if finished:
            # Only a run that was killed before its first checkpoint begins anew; this one has a result.
            raise UserError(
                f"rounds: got {config.rounds}, but the run in {directory.path} is complete after {finished} and has no "
                f"checkpoint to go on from; put {directory.checkpoints} back, or choose another --out"
            )
        if mode == "require":
            raise UserError(f"--resume require: {directory.path} has no checkpoint; --resume auto begins anew")
        return RunReservation(directory, "new", lock)
    except BaseException:
        lock.release()
        raise


def _check_config(directory: RunDirectory, config: Config) -> None:
    if not directory.config.read_text(encoding="utf-8", errors="replace").strip():
        raise UserError(
            f"{directory.config}: is empty; put its text back (metrics.h5 has it as the attribute 'config'), or choose "
            "another --out"
        )
    theirs = comparison.what_must_stay(loading.load(directory.config))
    ours = comparison.what_must_stay(config)
    differing = [
        f"{key}: there {_shown(theirs, key)}, here {_shown(ours, key)}"
        for key in {**theirs, **ours}
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise UserError(
            f"--resume: the run in {directory.path} has another config:\n  "
            + "\n  ".join(differing)
            + f"\n  without CONFIG and --set, its own is used ({directory.config}); what may change: "
            + ", ".join(key.rstrip(".") for key in (*comparison.MAY_CHANGE, *comparison.NEVER_COUNT))
        )


def _shown(of: dict[str, Any], key: str) -> str:
    return repr(list(of[key]) if isinstance(of.get(key), tuple) else of.get(key))


def _finished(directory: RunDirectory) -> int:
    """Rounds of a run that was completed; 0 if it was not."""
    try:
        run = metrics.look(directory.metrics)
    except UserError:
        return 0
    try:
        return run.rounds if run.closed and run.attributes.get("state") == "complete" and not run.problems else 0
    finally:
        run.close()


def _say_that_it_is_complete(directory: RunDirectory, rounds: int) -> None:
    """For a run that was killed between its last row and its last word."""
    said = status.read(directory.status)
    if said is None or said.state != "complete":
        status.write(directory.status, Status("complete", rounds, rounds, checkpoint=rounds, who="resumed, all done"))


def _rounds(directory: RunDirectory) -> int | None:
    """Rounds in the metrics file, as far as it can be read; None if it cannot."""
    try:
        run = metrics.look(directory.metrics)
    except UserError:
        return None
    try:
        return None if run.problems else run.rounds
    finally:
        run.close()


def _make_way(directory: RunDirectory) -> None:
    """Let the run begin at round 0; rounds that had been finished are kept under another name."""
    aside = ""
    if directory.metrics.exists() and _rounds(directory) == 0:
        directory.metrics.unlink()
    elif directory.metrics.exists():
        taken = (directory.metrics.with_name(f"metrics.unfinished-{number}.h5") for number in range(1, 10**6))
        free = next(path for path in taken if not path.exists())
        directory.metrics.rename(free)
        aside = f"; what there was is kept as {free}"
    log.warning(f"{directory.path} has no checkpoint to go on from: the run begins at round 0 again{aside}")
