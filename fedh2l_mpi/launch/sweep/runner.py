"""Run the elements of a sweep, each as its own program: start them, wait for them, and stop them."""

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
from fedh2l_mpi.launch.sweep.progress import SweepProgress
from fedh2l_mpi.launch.sweep.run_files import POLL_S, DifferentConfigError, SweepRunFiles
from fedh2l_mpi.launch.sweep.sweep_file import Element
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.clocks import Patience
from fedh2l_mpi.runtime.launcher import LAUNCHERS

# Seconds between looks at a run of another process.
ELSEWHERE_S = 1.0
# Longer than another process needs to look at a lock.
PATIENCE_S = 1.0
# Time for a child to stop by itself before it is killed.
GRACE_S = 10.0
# Every mpirun of Open MPI 5 and 4 binds its ranks to the node's first cores, so runs at a time would share cores.
UNBOUND = {"PRTE_MCA_hwloc_default_binding_policy": "none", "OMPI_MCA_hwloc_base_binding_policy": "none"}


def mpi_command(ranks: int | None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words that start `python` on this many ranks; none for None.

    Raises
    ------
    UserError
        If there is no mpirun, or the program that MPIEXEC names does not exist.
    """
    if ranks is None:
        return []
    named = environ.get("MPIEXEC", "").strip()
    if named:
        try:
            words = shlex.split(named)
        except ValueError as error:
            raise UserError(f"MPIEXEC: got {named!r}, which a shell cannot read as a command: {error}.") from None
        if not shutil.which(words[0]):
            raise UserError(f"MPIEXEC: got {named!r}, but there is no program {words[0]}. Correct or unset MPIEXEC.")
        return [*words, "-n", str(ranks)]
    # The mpirun of Python's environment comes first: ranks started by another MPI do not find each other.
    own = Path(sys.executable).with_name("mpirun")
    found = str(own) if own.exists() else shutil.which("mpirun")
    if not found:
        raise UserError(
            f"--ranks: there is no mpirun in {own.parent} nor on the PATH. Name one in MPIEXEC, or leave --ranks out."
        )
    return [found, "-n", str(ranks)]


def child_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without a launcher's variables: a run would believe that they describe itself."""
    launcher_names = {name for _, *names in LAUNCHERS for name in names}
    return {**UNBOUND, **{name: value for name, value in environ.items() if name not in launcher_names}}


@dataclass
class Child:
    """A running program of one element."""

    files: SweepRunFiles
    process: subprocess.Popen[bytes]
    lock: int
    begin: float

    def end(self, how: int) -> None:
        """Send a signal to all its processes, if any are left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)


class Runner:
    """Run elements, `jobs` at a time, until all have finished or failed.

    Parameters
    ----------
    elements : sequence of Element
        In the order in which they are started.
    root : Path
        The sweep's directory.
    jobs : int
        Number of runs at a time.
    ranks : int or None
        MPI processes of each; None: a single process without MPI.
    progress : SweepProgress
        Prints what happens.
    waits : bool
        True: wait for elements that another process runs. False: skip them.
    share_imports : bool
        True: each run imports its modules once per node, for all its ranks.
    """

    def __init__(
        self,
        elements: Sequence[Element],
        root: Path,
        jobs: int,
        ranks: int | None,
        progress: SweepProgress,
        waits: bool = True,
        share_imports: bool = False,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, str] = {}
        self.interrupted = False
        self._root, self._jobs, self._progress, self._waits = root, jobs, progress, waits
        self._command = [*mpi_command(ranks), sys.executable, "-m", "fedh2l_mpi"]
        self._command += [shared_imports.OPTION] if share_imports else []
        self._children: list[Child] = []
        self._elsewhere: deque[SweepRunFiles] = deque()
        self._looked = time.monotonic()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: {root} cannot be written: {error.strerror}") from None
        # A directory with a run of a different config is an error before anything runs.
        self._waiting: deque[SweepRunFiles] = deque()
        for files in (SweepRunFiles(root, element) for element in elements):
            try:
                run = files.read_finished()
            except DifferentConfigError:
                raise
            except UserError:
                # Another process may be writing the file now, so the error is reported only when its turn comes.
                run = None
            if run is None:
                self._waiting.append(files)
            else:
                self.outcomes[files.label] = read_outcome(run)

    @property
    def to_do(self) -> list[Element]:
        """Elements that have neither finished nor started."""
        return [files.element for files in self._waiting]

    def run(self) -> None:
        """Run every element that has not finished; return when none is left, or after a signal."""
        self._progress.begin(len(self._waiting) + len(self.outcomes), len(self.outcomes))
        with self._signals():
            try:
                while (self._waiting or self._children or self._elsewhere) and not self.interrupted:
                    self._look_elsewhere()
                    while self._waiting and len(self._children) < self._jobs and not self.interrupted:
                        self._start(self._waiting.popleft())
                    for child in [child for child in self._children if child.process.poll() is not None]:
                        self._children.remove(child)
                        self._ended(child)
                    self._progress.tick([child.files.label for child in self._children])
                    time.sleep(POLL_S if self._children or not self._waiting else 0.0)
            finally:
                self._end_children()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Record Ctrl-C and SIGTERM instead of raising, so that no child is started and then forgotten."""

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

    def _start(self, files: SweepRunFiles) -> None:
        lock = files.lock(0.0 if self._waits else PATIENCE_S)
        if lock is None:
            self._progress.runs_elsewhere(files, self._waits)
            if self._waits:
                self._elsewhere.append(files)
            return
        try:
            # Another process may have finished it since we looked.
            run = files.read_finished()
            if run is not None:
                self.outcomes[files.label] = read_outcome(run)
                self._progress.run_finished(files, self.outcomes[files.label], None)
                os.close(lock)
                return
            if files.can_resume():
                self._progress.run_resumes(files)
            elif files.set_aside():
                self._progress.run_restarts(files)
            os.ftruncate(lock, 0)
            os.write(lock, files.element.config.to_yaml().encode())
            with files.log.open("wb") as log:
                # In its own session, the child gets Ctrl-C only from us, and all its processes can be ended together.
                process = subprocess.Popen(
                    [*self._command, str(files.config), "--out", str(files.run.path), "--resume", "auto", "--quiet"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=child_environment(),
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except UserError as error:
            # An error of one element must not stop the others.
            os.close(lock)
            self._fail(files, str(error), ran=False)
            return
        except BaseException:
            os.close(lock)
            raise
        self._children.append(Child(files, process, lock, time.monotonic()))

    def _ended(self, child: Child) -> None:
        files, code = child.files, child.process.returncode
        # Ranks that outlive their mpirun would keep the lock, so they are killed.
        child.end(signal.SIGKILL)
        os.close(child.lock)
        if code:
            self._fail(files, failure_reason(files.log, code))
            return
        try:
            run = files.read_finished()
        except UserError as error:
            self._fail(files, str(error))
            return
        if run is None:
            self._fail(files, "the run was stopped before its last round; the same command resumes it")
            return
        files.log.unlink()
        self.outcomes[files.label] = read_outcome(run)
        self._progress.run_finished(files, self.outcomes[files.label], time.monotonic() - child.begin)

    def _fail(self, files: SweepRunFiles, reason: str, ran: bool = True) -> None:
        self.failed[files.label] = reason
        self._progress.run_failed(files, reason, ran)

    def _end_children(self) -> None:
        """Ask the running children to stop, and kill those that take too long."""
        for child in self._children:
            child.end(signal.SIGTERM)
        patience = Patience(GRACE_S)
        for child in self._children:
            while child.process.poll() is None and not patience.is_over:
                patience.pause()
            child.end(signal.SIGKILL)
            child.process.wait()
            os.close(child.lock)
            # It was stopped and did not fail, so its log is of no use.
            child.files.log.unlink(missing_ok=True)
        self._children.clear()


def failure_reason(log: Path, code: int) -> str:
    """Return one line: the run's own error, or its exit code or signal with the last line that it printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # The run's own error is seldom the last line: a launcher and Python's traceback print more after it.
    own = [line for line in lines if line.startswith("fedh2l_mpi: error: ")]
    if own:
        return own[0].removeprefix("fedh2l_mpi: error: ")
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1]}" if lines else how
