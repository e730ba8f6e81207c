"""Running a sweep: each element is a program of its own, in a run directory of its own; then the table of them all.

In the sweep's directory, for an element with label L: `L/` is its run directory, `L.yaml` its config, `L.log` what it
said if it failed. Whoever runs an element holds a lock on its `L.yaml`, and so does the run itself: the operating
system lets go of it when the last of them has ended, however that came about.
"""

import contextlib
import datetime
import fcntl
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from fedh2l_mpi import config_file, console, metrics
from fedh2l_mpi.analysis import curves, tables
from fedh2l_mpi.analysis.tables import Outcome
from fedh2l_mpi.config import Config
from fedh2l_mpi.errors import EXIT_FAULT, EXIT_INTERRUPTED, UserError
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.sweep_file import Element, Mistakes, Sweep
from fedh2l_mpi.world import LAUNCHERS

POLL_S = 0.1
# How often to look whether a run of another process has ended.
ELSEWHERE_S = 1.0
# Longer than another process needs to look at a lock.
PATIENCE_S = 1.0
# For a child to end in order, before it is killed.
GRACE_S = 10.0


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
        UserError
            If its file cannot be read, or what has finished here is another config's run.
        """
        if not self.run.metrics.exists():
            return None
        run = metrics.read(self.run.metrics)
        if run.rounds < int(run.attributes["rounds_planned"]):
            return None
        theirs = config_file.load(self.run.config)
        differing = differing_keys(self.element.config, theirs)
        if differing:
            raise UserError(
                f"{self.run.path}: holds a finished run of another config; "
                + "; ".join(f"{key}: there {there!r}, here {here!r}" for key, here, there in differing)
                + "; choose another --out, or move that directory away"
            )
        return run

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

    def make_way(self) -> bool:
        """Move what an unfinished run has left out of the way; whether there was any. Call with the lock held.

        Here is where such a run would be gone on with instead.
        """
        if not self.run.path.exists():
            return False
        numbers = (int(path.suffix.removeprefix(".unfinished-")) for path in self._set_aside())
        self.run.path.rename(self.root / f"{self.label}.unfinished-{max(numbers, default=0) + 1}")
        return True

    def _set_aside(self) -> Iterator[Path]:
        for path in self.root.iterdir():
            prefix, _, number = path.name.rpartition(".unfinished-")
            if prefix == self.label and number.isdigit():
                yield path

    def state(self) -> str:
        """finished, running, unfinished or to do, for a list. Changes nothing."""
        if self.config.exists():
            with self.config.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "running"
        try:
            if self.finished() is not None:
                return "finished"
        except UserError:
            return "another config's"
        return "unfinished" if self.run.path.exists() else "to do"


def differing_keys(ours: Config, theirs: Config) -> list[tuple[str, Any, Any]]:
    """Dotted keys that make two runs different, with both values; where and how fast they run does not."""
    a, b = _flat(ours.model_dump()), _flat(theirs.model_dump())
    # A pack is the data itself; the folder of a public data set only says where a copy of it lies.
    elsewhere = () if ours.data.name == "pack" else ("data.root",)
    ignored = ("devices.", "exchange.deadline_s", *elsewhere)
    return [(key, a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key) and not key.startswith(ignored)]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_fit(elements: Sequence[Element], path: Path) -> None:
    """Refuse at once what the runs would refuse one by one: data, graphs, models and methods that do not fit.

    A user's own classes are left to their runs: whatever they do at import ends one run, not the sweep.

    Raises
    ------
    UserError
        With a line for each mistake, and the elements that have it.
    """
    from fedh2l_mpi import methods
    from fedh2l_mpi.data import federation
    from fedh2l_mpi.data.sources import open_source
    from fedh2l_mpi.topology import Topology

    source_of = functools.cache(open_source)
    planned: set[str] = set()
    mistakes = Mistakes()
    for element in elements:
        config = element.config
        with mistakes.of(element.label):
            Topology(config.topology, config.size, config.seed, config.rounds)
            if config.method.name in methods.METHODS:
                methods.build(config)
            source = source_of(config.data.name, config.data.root)
            # Elements that differ in the method have the same data, dealt in the same way.
            dealt = repr((config.data, config.seed_set, config.evaluation, config.size, config.seed))
            if dealt not in planned:
                federation.plan(config, source)
                planned.add(dealt)
    mistakes.tell(path)


def listing(sweep: Sweep, root: Path) -> str:
    """The elements with their numbers and states, a line each."""
    width = len(str(len(sweep.elements) - 1))
    states = [Place(root, element).state() for element in sweep.elements]
    longest = max(map(len, states))
    return "\n".join(
        f"{number:>{width}}  {state:<{longest}}  {element.label}"
        for number, (state, element) in enumerate(zip(states, sweep.elements, strict=True))
    )


def mpi_command(ranks: int | None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What to put before `python` so that it runs on so many ranks; nothing for None.

    Raises
    ------
    UserError
        If there is no mpirun.
    """
    if ranks is None:
        return []
    # The environment's own first: another MPI's mpirun starts ranks that do not find each other.
    beside = Path(sys.executable).with_name("mpirun")
    found = environ.get("MPIEXEC") or (str(beside) if beside.exists() else shutil.which("mpirun"))
    if not found:
        raise UserError("--ranks: no mpirun beside python nor on the PATH; name one in MPIEXEC, or leave --ranks out")
    return [*shlex.split(found), "-n", str(ranks)]


def child_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without what a launcher has said of this process: a run would take it as said of itself."""
    about_us = {name for _, *names in LAUNCHERS for name in names}
    return {name: value for name, value in environ.items() if name not in about_us}


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
    """

    def __init__(
        self,
        elements: Sequence[Element],
        root: Path,
        jobs: int,
        ranks: int | None,
        follower: "Follower",
        waits: bool = True,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, str] = {}
        self.interrupted = False
        self._root, self._jobs, self._follower, self._waits = root, jobs, follower, waits
        self._command = [*mpi_command(ranks), sys.executable, "-m", "fedh2l_mpi"]
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
            run = place.finished()
            if run is None:
                self._waiting.append(place)
            else:
                self.outcomes[place.label] = tables.outcome(run)

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
                self.outcomes[place.label] = tables.outcome(run)
                self._follower.finished(place, self.outcomes[place.label], None)
                os.close(lock)
                return
            if place.make_way():
                self._follower.starts_again(place)
            os.ftruncate(lock, 0)
            os.write(lock, place.element.config.to_yaml().encode())
            with place.log.open("wb") as log:
                # A session of its own: Ctrl-C in the terminal is for us to pass on, and what it starts ends with it.
                process = subprocess.Popen(
                    [*self._command, str(place.config), "--out", str(place.run.path), "--quiet"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=child_environment(),
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(lock)
            raise
        self._children.append(Child(place, process, lock, time.monotonic()))

    def _ended(self, child: Child) -> None:
        place, code = child.place, child.process.returncode
        # Ranks that outlive their mpirun would keep the lock.
        child.end(signal.SIGKILL)
        os.close(child.lock)
        run = place.finished() if code == 0 else None
        if run is not None:
            place.log.unlink()
            self.outcomes[place.label] = tables.outcome(run)
            self._follower.finished(place, self.outcomes[place.label], time.monotonic() - child.begin)
        else:
            self.failed[place.label] = why(place.log, code)
            self._follower.failed(place, self.failed[place.label])

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


class Follower:
    """Tells a person how a sweep goes on: lines, and under them a progress bar on a terminal; nothing where quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._total = self._done = self._ran = 0
        self._elsewhere: set[str] = set()
        self._begin = time.monotonic()

    def begin(self, total: int, done: int) -> None:
        """So many elements, and so many of them finished before."""
        self._total, self._done = total, done
        if done:
            self._say(f"{done} of {total} runs have finished before")
        if not self._quiet and console.is_terminal() and done < total:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                MofNCompleteColumn(),
                TextColumn("runs"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[labels]}", markup=False),
            )
            self._task = self._bar.add_task("", total=total, completed=done, left="", labels="")
            self._bar.start()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def tick(self, labels: Sequence[str]) -> None:
        """These are running now."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=self._left(), labels=" ".join(labels))

    def finished(self, place: Place, outcome: Outcome, seconds: float | None) -> None:
        """An element has finished here after so many seconds; None: in another process."""
        self._done += 1
        self._ran += seconds is not None
        took = f"{seconds:.0f} s" if seconds is not None else "in another process"
        left = f", {self._left()}" if self._left() else ""
        self._say(
            f"{self._done} of {self._total} runs: {place.label}: all-domain {outcome.values['accuracy_all']:.3f}, "
            f"{took}{left}"
        )

    def failed(self, place: Place, reason: str) -> None:
        """An element has failed. Told even where quiet."""
        self._done += 1
        self._ran += 1
        self._say(f"{place.label} failed: {reason}; see {place.log}", file=sys.stderr)

    def starts_again(self, place: Place) -> None:
        """What was there of an element has been set aside."""
        self._say(f"{place.label} had not finished: starts again, what was there is kept as {place.label}.unfinished-*")

    def is_elsewhere(self, place: Place, waits: bool) -> None:
        """Another process runs an element."""
        if place.label not in self._elsewhere:
            self._elsewhere.add(place.label)
            self._say(f"{place.label}: another process runs it" + ("" if waits else "; left to that"))

    def _left(self) -> str:
        if not self._ran or self._done == self._total:
            return ""
        seconds = (time.monotonic() - self._begin) / self._ran * (self._total - self._done)
        return f"{datetime.timedelta(seconds=round(seconds))} left"

    def _say(self, text: str, file: TextIO | None = None) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet or file is not None:
            print(
                f"{time.strftime('%H:%M:%S')} {text}" if file is None else f"fedh2l_mpi: {text}", file=file, flush=True
            )


def run(
    sweep: Sweep, root: Path, jobs: int = 1, ranks: int | None = None, index: int | None = None, quiet: bool = False
) -> int:
    """Run what has not finished, and write the table of what has; the exit code.

    Parameters
    ----------
    index : int or None
        Number of the only element to run, without a table; None: all of them.

    Raises
    ------
    UserError
        If there is no such element, a directory holds another config's run, or nothing can be written.
    """
    elements = sweep.elements
    if index is not None:
        if not 0 <= index < len(elements):
            raise UserError(f"--index: got {index}, must be from 0 to {len(elements) - 1} (--list shows the elements)")
        elements = elements[index : index + 1]
    follower = Follower(quiet)
    runner = Runner(elements, root, jobs, ranks, follower, waits=index is None)
    if runner.to_do:
        check_fit(runner.to_do, sweep.path)
    try:
        runner.run()
    finally:
        follower.close()
    if runner.interrupted:
        print(
            f"fedh2l_mpi: interrupted with {len(runner.outcomes)} of {len(elements)} runs finished; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    if index is None and runner.outcomes:
        _conclude(sweep, root, runner.outcomes, quiet)
    if runner.failed:
        names = "".join(f"\n  {label}: {reason}" for label, reason in runner.failed.items())
        print(f"fedh2l_mpi: {len(runner.failed)} of {len(elements)} runs failed:{names}", file=sys.stderr)
    return EXIT_FAULT if runner.failed else 0


def _conclude(sweep: Sweep, root: Path, outcomes: Mapping[str, Outcome], quiet: bool) -> None:
    """Print the table, and write it and the curves into the sweep's directory."""
    finished = [element for element in sweep.elements if element.label in outcomes]
    by_row = {row: [outcomes[e.label] for e in finished if e.row == row] for row in sweep.rows}
    asked, title = sweep.table, sweep.table.title or sweep.path.stem
    table = tables.table(by_row, asked.columns, asked.reach, asked.compare_to, title)
    axes = list(dict.fromkeys(axis for element in sweep.elements for axis in element.settings))
    every = [(element.label, element.settings, outcomes[element.label]) for element in finished]
    written = {
        "table.md": lambda path: path.write_text(tables.markdown(table), encoding="utf-8"),
        "table.csv": lambda path: path.write_text(tables.long_form(every, asked.reach, axes), encoding="utf-8"),
        "curves.png": lambda path: curves.plot(by_row, title, path),
    }
    if not quiet:
        print(f"\n{tables.plain(table)}\n")
    for name, write in written.items():
        try:
            _replace(root / name, write)
        except UserError as error:
            # A table without its picture is still a table.
            print(f"fedh2l_mpi: no {name}: {error}", file=sys.stderr)
        else:
            if not quiet:
                print(f"{name.partition('.')[0]}: {root / name}")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name first: another sweep in this directory may be writing the same one."""
    new = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(new)
        new.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)
