"""Runs the elements of a sweep, each as a program of its own: starts them, waits for them, and ends them."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.analysis.outcome import Outcome, read_outcome
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.sweep.progress import Follower
from fedh2l_mpi.launch.sweep.run_files import POLL_S, AnotherConfigError, Place
from fedh2l_mpi.launch.sweep.sweep_file import Element
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.launcher import LAUNCHERS

# How often to look whether a run of another process has ended.
ELSEWHERE_S = 1.0
# Longer than another process needs to look at a lock.
PATIENCE_S = 1.0
# For a child to end in order, before it is killed.
GRACE_S = 10.0
# Open MPI 5 and 4: each mpirun would bind its ranks to the node's first cores, whoever else runs there.
UNBOUND = {"PRTE_MCA_hwloc_default_binding_policy": "none", "OMPI_MCA_hwloc_base_binding_policy": "none"}


def mpi_command(ranks: int | None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What to put before `python` so that it runs on so many ranks; nothing for None.

    Raises
    ------
    UserError
        If there is no mpirun, or not the one that MPIEXEC names.
    """
    if ranks is None:
        return []
    named = environ.get("MPIEXEC", "").strip()
    if named:
        try:
            words = shlex.split(named)
        except ValueError as error:
            raise UserError(f"MPIEXEC: got {named!r}, must be a command as a shell reads it: {error}") from None
        if not shutil.which(words[0]):
            raise UserError(f"MPIEXEC: got {named!r}, but there is no program {words[0]}; name another, or unset it")
        return [*words, "-n", str(ranks)]
    # The environment's own first: another MPI's mpirun starts ranks that do not find each other.
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        raise UserError("--ranks: no mpirun beside python nor on the PATH; name one in MPIEXEC, or leave --ranks out")
    return [found, "-n", str(ranks)]


def child_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without what a launcher has said of this process: a run would take it as said of itself."""
    about_us = {name for _, *names in LAUNCHERS for name in names}
    return {**UNBOUND, **{name: value for name, value in environ.items() if name not in about_us}}


@dataclass
class Child:
    """A run that goes on."""

    place: Place
    process: subprocess.Popen[bytes]
    lock: int
    begin: float

    def end(self, how: int) -> None:
        """Signal its processes, of which there may be none left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)


class Runner:
    """Runs elements, some at a time, until all are finished or have failed.

    Parameters
    ----------
    elements : sequence of Element
        In the order in which they are started.
    root : Path
        The sweep's directory.
    jobs : int
        How many run at a time.
    ranks : int or None
        MPI processes of each; None: a single process without MPI.
    follower : Follower
        Is told what happens.
    waits : bool
        Whether to wait for what another process runs, or leave it to that.
    share_imports : bool
        Whether each run imports once on a node for all its ranks.
    """

    def __init__(
        self,
        elements: Sequence[Element],
        root: Path,
        jobs: int,
        ranks: int | None,
        follower: Follower,
        waits: bool = True,
        share_imports: bool = False,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, str] = {}
        self.interrupted = False
        self._root, self._jobs, self._follower, self._waits = root, jobs, follower, waits
        self._command = [*mpi_command(ranks), sys.executable, "-m", "fedh2l_mpi"]
        self._command += [shared_imports.OPTION] if share_imports else []
        self._children: list[Child] = []
        self._elsewhere: deque[Place] = deque()
        self._looked = time.monotonic()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: {root} cannot be written: {error.strerror}") from None
        # Before anything runs: a directory that holds another config's run is told of now.
        self._waiting: deque[Place] = deque()
        for place in (Place(root, element) for element in elements):
            try:
                run = place.finished()
            except AnotherConfigError:
                raise
            except UserError:
                # Told when its turn has come: another process may be writing it now.
                run = None
            if run is None:
                self._waiting.append(place)
            else:
                self.outcomes[place.label] = read_outcome(run)

    @property
    def to_do(self) -> list[Element]:
        """What has not finished, and does not run yet."""
        return [place.element for place in self._waiting]

    def run(self) -> None:
        """Run what has not finished; returns when nothing is left to do, or after a signal."""
        self._follower.begin(len(self._waiting) + len(self.outcomes), len(self.outcomes))
        with self._signals():
            try:
                while (self._waiting or self._children or self._elsewhere) and not self.interrupted:
                    self._look_elsewhere()
                    while self._waiting and len(self._children) < self._jobs and not self.interrupted:
                        self._start(self._waiting.popleft())
                    for child in [child for child in self._children if child.process.poll() is not None]:
                        self._children.remove(child)
                        self._ended(child)
                    self._follower.tick([child.place.label for child in self._children])
                    time.sleep(POLL_S if self._children or not self._waiting else 0.0)
            finally:
                self._end_children()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a note, so that no child is started and forgotten half-way."""

        def note(number: int, frame: object) -> None:
            self.interrupted = True

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _look_elsewhere(self) -> None:
        if self._elsewhere and time.monotonic() - self._looked > ELSEWHERE_S:
            self._waiting.extend(self._elsewhere)
            self._elsewhere.clear()
            self._looked = time.monotonic()

    def _start(self, place: Place) -> None:
        lock = place.lock(0.0 if self._waits else PATIENCE_S)
        if lock is None:
            self._follower.is_elsewhere(place, self._waits)
            if self._waits:
                self._elsewhere.append(place)
            return
        try:
            # Another process may have finished it since we looked.
            run = place.finished()
            if run is not None:
                self.outcomes[place.label] = read_outcome(run)
                self._follower.finished(place, self.outcomes[place.label], None)
                os.close(lock)
                return
            if place.can_go_on():
                self._follower.goes_on(place)
            elif place.make_way():
                self._follower.starts_again(place)
            os.ftruncate(lock, 0)
            os.write(lock, place.element.config.to_yaml().encode())
            with place.log.open("wb") as log:
                # A session of its own: Ctrl-C in the terminal is for us to pass on, and what it starts ends with it.
                process = subprocess.Popen(
                    [*self._command, str(place.config), "--out", str(place.run.path), "--resume", "auto", "--quiet"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=child_environment(),
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except UserError as error:
            # What is wrong with one of them ends no other.
            os.close(lock)
            self._fail(place, str(error), ran=False)
            return
        except BaseException:
            os.close(lock)
            raise
        self._children.append(Child(place, process, lock, time.monotonic()))

    def _ended(self, child: Child) -> None:
        place, code = child.place, child.process.returncode
        # Ranks that outlive their mpirun would keep the lock.
        child.end(signal.SIGKILL)
        os.close(child.lock)
        if code:
            self._fail(place, why(place.log, code))
            return
        try:
            run = place.finished()
        except UserError as error:
            self._fail(place, str(error))
            return
        if run is None:
            self._fail(place, "was stopped before its last round; the same command goes on with it")
            return
        place.log.unlink()
        self.outcomes[place.label] = read_outcome(run)
        self._follower.finished(place, self.outcomes[place.label], time.monotonic() - child.begin)

    def _fail(self, place: Place, reason: str, ran: bool = True) -> None:
        self.failed[place.label] = reason
        self._follower.failed(place, reason, ran)

    def _end_children(self) -> None:
        """End what still runs: in order, and by force if it takes too long."""
        for child in self._children:
            child.end(signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
            child.end(signal.SIGKILL)
            child.process.wait()
            os.close(child.lock)
            # It did not fail.
            child.place.log.unlink(missing_ok=True)
        self._children.clear()


def why(log: Path, code: int) -> str:
    """Why a run failed, in a line: its own last error, or else its last words, or else the signal that ended it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # A launcher and Python's traceback have their say after it.
    own = [line for line in lines if line.startswith("fedh2l_mpi: error: ")]
    if own:
        return own[0].removeprefix("fedh2l_mpi: error: ")
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1]}" if lines else how
