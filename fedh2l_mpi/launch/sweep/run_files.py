"""Where an element of a sweep lies, who runs it, and how far it is.

In the sweep's directory, for an element with label L: `L/` is its run directory, `L.yaml` its config, `L.log` what it
said if it failed. Whoever runs an element holds a lock on its `L.yaml`, and hands it on to the program that it starts:
the operating system lets go of it when the last of them has ended, however that came about. Ranks under a launcher need
not have it, nor need it be seen from another node: a run is left in its place unless the lock in `L/` is free, too.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi import metrics
from fedh2l_mpi.config import loading
from fedh2l_mpi.config.comparison import differing_keys
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.sweep.sweep_file import Element
from fedh2l_mpi.lifecycle.lock import RunLock
from fedh2l_mpi.run_directory import RunDirectory

POLL_S = 0.1


class AnotherConfigError(UserError):
    """What lies where an element's run should be is a run of another config."""


@dataclass(frozen=True)
class Place:
    """The paths of one element in the sweep's directory."""

    root: Path
    element: Element

    @property
    def label(self) -> str:
        """Name of the element."""
        return self.element.label

    @property
    def run(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.root / self.label)

    @property
    def config(self) -> Path:
        """What the run is started with, and locked by."""
        return self.root / f"{self.label}.yaml"

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.root / f"{self.label}.log"

    def finished(self) -> metrics.RunMetrics | None:
        """The run's metrics, if it has finished.

        Raises
        ------
        AnotherConfigError
            If what has finished here is another config's run.
        UserError
            If its file cannot be read.
        """
        try:
            return metrics.read(self.run.metrics) if self.has_finished() else None
        except AnotherConfigError:
            raise
        except UserError as error:
            raise UserError(f"{error}; move {self.run.path} away to have it run anew") from None

    def has_finished(self) -> bool:
        """Whether the run has finished; raises as `finished`, but for damage in the arrays, which are not read."""
        if not self.run.metrics.exists():
            return False
        run = metrics.look(self.run.metrics)
        rounds, planned = run.rounds, run.attributes.get("rounds_planned")
        run.close()
        # Of a file that is being written, or whose writer was killed, not all need be there: the run itself sees to it.
        if run.closed and (run.problems or not isinstance(planned, int)):
            problem = run.problems[0] if run.problems else "attribute 'rounds_planned' is missing"
            raise UserError(f"{self.run.metrics}: {problem}")
        if run.problems or not isinstance(planned, int) or rounds < planned:
            return False
        self._refuse_another("a finished run")
        return True

    def _refuse_another(self, what: str) -> None:
        """Raise if the run's config differs from the element's, but for where and how fast it runs."""
        differing = differing_keys(self.element.config, loading.load(self.run.config))
        if differing:
            raise AnotherConfigError(
                f"{self.run.path}: holds {what} of another config; "
                + "; ".join(f"{key}: there {there!r}, here {here!r}" for key, here, there in differing)
                + "; choose another --out, or move that directory away"
            )

    def lock(self, patience_s: float = 0.0) -> int | None:
        """A file descriptor that holds the element's lock while it is open; None if another process holds it."""
        # Not "w": what another process has put there stays, until the lock is ours.
        descriptor = os.open(self.config, os.O_RDWR | os.O_CREAT, 0o666)
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    os.close(descriptor)
                    return None
                time.sleep(POLL_S)
            except OSError as error:
                os.close(descriptor)
                raise UserError(
                    f"{self.root}: files cannot be locked there ({error.strerror}), so two sweeps could run the same "
                    "element; choose another --out"
                ) from None
            else:
                return descriptor

    def prepare(self, patience_s: float) -> None:
        """Write the element's config where a job finds it; nothing is run.

        Raises
        ------
        UserError
            If another process runs the element, or another config's run is there.
        """
        lock = self.lock(patience_s)
        if lock is None:
            raise UserError(f"{self.config}: another process runs this element; left to that")
        try:
            if self.run.config.exists():
                self._refuse_another("a run")
            text = self.element.config.to_yaml().encode()
            if self.config.read_bytes() != text:
                # Not under another name first: the lock is on this very file, and no job reads it before it has that.
                os.pwrite(lock, text, 0)
                os.ftruncate(lock, len(text))
                os.fsync(lock)
        finally:
            os.close(lock)

    def can_go_on(self) -> bool:
        """Whether an unfinished run has a checkpoint, and is of this element's config."""
        if not self.run.committed():
            return False
        try:
            return not differing_keys(self.element.config, loading.load(self.run.config))
        except UserError:
            return False

    def make_way(self) -> bool:
        """Move what an unfinished run has left out of the way; whether there was any. Call with the lock held.

        Raises
        ------
        UserError
            If another process is at work on the run, or may be.
        """
        if not self.run.path.exists():
            return False
        numbers = (int(path.suffix.removeprefix(".unfinished-")) for path in self._set_aside())
        aside = RunDirectory(self.root / f"{self.label}.unfinished-{max(numbers, default=0) + 1}")
        lock = RunLock(self.run.lock)
        try:
            self.run.path.rename(aside.path)
            aside.lock.unlink()
        finally:
            lock.release()
        return True

    def _set_aside(self) -> Iterator[Path]:
        for path in self.root.iterdir():
            prefix, _, number = path.name.rpartition(".unfinished-")
            if prefix == self.label and number.isdigit():
                yield path

    def state(self) -> str:
        """finished, running, unfinished, to do, unreadable or another config's, for a list. Changes nothing."""
        if self.config.exists():
            with self.config.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "running"
        try:
            if self.has_finished():
                return "finished"
        except AnotherConfigError:
            return "another config's"
        except UserError:
            return "unreadable"
        return "unfinished" if self.run.path.exists() else "to do"
