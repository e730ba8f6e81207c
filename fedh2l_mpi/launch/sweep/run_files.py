"""Paths, lock and state of one element of a sweep.

In the sweep's directory, an element with label L has the run directory `L/`, the config `L.yaml`, and, if it failed,
its output `L.log`.

The process that runs an element holds a lock on `L.yaml`. The program that it starts inherits this lock, so the
operating system releases it when the last of the two ends, even if they are killed. Ranks under a launcher may lack
the lock, and other nodes may not see it. A run directory is therefore moved only if the lock in `L/` is free, too.
"""

import fcntl
import os
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
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.clocks import Patience

POLL_S = 0.1


class DifferentConfigError(UserError):
    """The element's run directory contains a run of a different config."""


@dataclass(frozen=True)
class SweepRunFiles:
    """Paths, lock and state of one element in the sweep's directory."""

    root: Path
    element: Element

    @property
    def label(self) -> str:
        """Name of the element, and of its run directory."""
        return self.element.label

    @property
    def run(self) -> RunDirectory:
        """Run directory."""
        return RunDirectory(self.root / self.label)

    @property
    def config(self) -> Path:
        """Config file that the run starts with; it also carries the lock."""
        return self.root / f"{self.label}.yaml"

    @property
    def log(self) -> Path:
        """File with the output of the run."""
        return self.root / f"{self.label}.log"

    def read_finished(self) -> metrics.RunMetrics | None:
        """Return the run's metrics if it has finished, else None.

        Raises
        ------
        DifferentConfigError
            If the finished run has a different config.
        UserError
            If its metrics file cannot be read.
        """
        try:
            return metrics.read(self.run.metrics) if self.has_finished() else None
        except DifferentConfigError:
            raise
        except UserError as error:
            said = str(error).removesuffix(".")
            raise UserError(f"{said}. To run this element again, move {self.run.path} away.") from None

    def has_finished(self) -> bool:
        """Return True if the run has finished. Raises like `read_finished`, but does not notice damaged arrays."""
        if not self.run.metrics.exists():
            return False
        run = metrics.look(self.run.metrics)
        rounds, planned = run.rounds, run.attributes.get("rounds_planned")
        # A file that is being written, or whose writer was killed, may be incomplete: the run repairs it on resume.
        if run.closed and (run.problems or not isinstance(planned, int)):
            problem = run.problems[0] if run.problems else "attribute 'rounds_planned' is missing"
            raise UserError(f"{self.run.metrics}: {problem}")
        ends_early = run.attributes.get("state") == "complete" and bool(run.attributes.get("early_stop"))
        if run.problems or not isinstance(planned, int) or (rounds < planned and not ends_early):
            return False
        self._refuse_different("a finished")
        return True

    def _refuse_different(self, state: str) -> None:
        """Raise if the run's config differs from the element's in more than where and how fast it runs."""
        config, stored = self.element.config, loading.load_stored(self.run.config)
        differing = differing_keys(config, stored)
        if differing:
            keys = ", ".join(f"{key} (there {there!r}, here {here!r})" for key, here, there in differing)
            recipe = f"Set recipe: {stored.recipe} in the sweep file, c" if stored.recipe != config.recipe else "C"
            raise DifferentConfigError(
                f"{self.run.path}: this directory contains {state} run of a different config. It differs in {keys}. "
                f"{recipe}hoose another --out, or move that directory away."
            )

    def lock(self, patience_s: float = 0.0) -> int | None:
        """Return a file descriptor that holds the lock while it is open, or None if another process holds the lock."""
        # Mode "w" would empty the file before the lock is ours, while another process may be using it.
        descriptor = os.open(self.config, os.O_RDWR | os.O_CREAT, 0o666)
        patience = Patience(patience_s)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if patience.is_over:
                    os.close(descriptor)
                    return None
                patience.pause(POLL_S)
            except OSError as error:
                os.close(descriptor)
                raise UserError(
                    f"{self.root}: this file system cannot lock files ({error.strerror}), so two sweeps could run the "
                    "same element. Choose an --out on another file system."
                ) from None
            else:
                return descriptor

    def prepare(self, patience_s: float) -> None:
        """Write the element's config where a job finds it, without running it.

        Raises
        ------
        UserError
            If another process runs the element, or the directory contains a run of a different config.
        """
        lock = self.lock(patience_s)
        if lock is None:
            raise UserError(f"{self.config}: another process runs this element. Wait until it ends, or stop it.")
        try:
            if self.run.config.exists():
                self._refuse_different("a")
            text = self.element.config.to_yaml().encode()
            if self.config.read_bytes() != text:
                # Written in place, because the lock is on this very file; no job reads it before it has the lock.
                os.pwrite(lock, text, 0)
                os.ftruncate(lock, len(text))
                atomic_files.sync_descriptor(lock)
        finally:
            os.close(lock)

    def can_resume(self) -> bool:
        """Return True if an unfinished run has a checkpoint and the config of this element."""
        if not self.run.committed():
            return False
        try:
            return not differing_keys(self.element.config, loading.load_stored(self.run.config))
        except UserError:
            return False

    def set_aside(self) -> bool:
        """Rename the directory of an unfinished run; return True if there was one. The caller must hold the lock.

        Raises
        ------
        UserError
            If another process works on the run, or may do so.
        """
        if not self.run.path.exists():
            return False
        numbers = (int(path.suffix.removeprefix(".unfinished-")) for path in self._earlier_set_aside())
        aside = RunDirectory(self.root / f"{self.label}.unfinished-{max(numbers, default=0) + 1}")
        lock = RunLock(self.run.lock)
        try:
            atomic_files.move(self.run.path, aside.path)
            aside.lock.unlink()
        finally:
            lock.release()
        return True

    def _earlier_set_aside(self) -> Iterator[Path]:
        for path in self.root.iterdir():
            prefix, _, number = path.name.rpartition(".unfinished-")
            if prefix == self.label and number.isdigit():
                yield path

    def state(self) -> str:
        """Return finished, running, unfinished, to do, unreadable or another config's. Changes nothing."""
        if self.config.exists():
            with self.config.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "running"
        try:
            if self.has_finished():
                return "finished"
        except DifferentConfigError:
            return "another config's"
        except UserError:
            return "unreadable"
        return "unfinished" if self.run.path.exists() else "to do"
