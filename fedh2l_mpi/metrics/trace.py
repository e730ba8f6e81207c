"""Trace of a run: the times of every rank's activities, in Chrome's trace-event format for Perfetto.

Every rank appends its events to its own file in the run directory, after a round and about once a second. A killed run
therefore leaves its events up to that moment. Each part is a valid trace (Chrome's array format, whose end may be
missing). When the run ends in order, rank 0 joins all parts, including those of earlier attempts of the same run.

A process of the trace is a rank. Its threads are the rounds and the checkpoint writer. Ranks on one host share one
clock. Clocks of different hosts are compared once, at the start, by messages there and back. The error is at most half
of the fastest round trip, which the trace records; later drift is not corrected. After a resume, the times are as exact
as the time of day on rank 0's host.

Format: Google's "Trace Event Format", of which these events are used: M, X, b, e.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.clocks import clock_offsets
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World

ROUND_PATH, CHECKPOINT_WRITER = 1, 2
LANES = {ROUND_PATH: "rounds", CHECKPOINT_WRITER: "writer of checkpoints"}
# Events stay in memory for this long, or until there are this many.
FLUSH_S, FLUSH_EVENTS = 1.0, 2**15
# The members of an event that concerns all participants of the rank.
EVERYONE = ()
# name, category, begin and end [perf_counter s], round, participants, lane
Event = tuple[str, str, float, float, int, tuple[int, ...], int]
MESSAGES = "messages"


def during(trace: "Trace | None", name: str, round_index: int) -> AbstractContextManager[None]:
    """Record what runs inside the context as an event of this rank, if there is a trace."""
    return trace.during(name, round_index) if trace is not None else nullcontext()


def check(out: Path, directory: RunDirectory, resumes: bool) -> None:
    """Raise unless the trace file can be created, or is the earlier trace of this resumed run.

    Parameters
    ----------
    resumes : bool
        True if the run is resumed. Then its trace may exist, provided that its parts exist, too.

    Raises
    ------
    UserError
        Names the file, or the temporary file in which the parts are joined.
    """
    try:
        own = resumes and _started(directory).get("out") == str(out.resolve())
        if out.exists() and not (own and out.is_file()):
            raise UserError(f"--trace: {out} already exists. Name a new file.")
        unfinished = _unfinished(out)
        # A kill while the parts were joined may have left this run's own temporary file.
        if unfinished.exists() and not own:
            raise UserError(
                f"--trace: {out} is first written as {unfinished}, which already exists. Name another file, or remove "
                "it."
            )
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise UserError(f"--trace: {out} cannot be written: {error.strerror}") from None


class Trace:
    """The events of one rank. The constructor is **collective**.

    Parameters
    ----------
    out : Path
        The file into which the parts are joined.
    deadline_s : float
        Longest wait for another rank [s].

    Raises
    ------
    UserError
        On every rank alike, if the run directory cannot be written.
    """

    def __init__(self, world: World, hosting: Hosting, directory: RunDirectory, out: Path, deadline_s: float) -> None:
        self._world, self._directory, self._out = world, directory, out
        hosted = hosting.participants_of(world.rank)
        self._hosted = (hosted.start, hosted.stop - 1)
        self._attempt, elapsed_s, now_s = world.from_first(self._begin)
        ahead_s, self._unsure_s = self._offset(deadline_s)
        # The start of the trace on this rank's own clock.
        self._origin_s = now_s + ahead_s - elapsed_s
        self._events: list[Event] = []
        self._flushed_s = time.perf_counter()
        self._file: TextIO = world.together(self._open)

    def phase(
        self, name: str, round_index: int, begin_s: float, end_s: float, members: tuple[int, ...] = EVERYONE
    ) -> None:
        """Add a phase of one participant, of several that step together, or of all that are hosted here."""
        # All participants of a rank publish together when their messages are posted.
        title = "post messages" if name == "publish" and members == EVERYONE else name
        self._events.append((title, name, begin_s, end_s, round_index, members, ROUND_PATH))

    def messages(self, round_index: int, posted_s: float, seen_s: float) -> None:
        """Add a round's messages in transit: from posting them until this rank saw that all had arrived."""
        self._events.append((MESSAGES, MESSAGES, posted_s, seen_s, round_index, EVERYONE, ROUND_PATH))

    def checkpoint_work(self, what: str, rounds: int, begin_s: float, end_s: float) -> None:
        """Add work of the checkpoint writer on the checkpoint after `rounds` rounds. Its thread calls this."""
        self._events.append((what, "checkpoint writer", begin_s, end_s, rounds - 1, EVERYONE, CHECKPOINT_WRITER))

    @contextmanager
    def during(self, name: str, round_index: int) -> Iterator[None]:
        """Add the time inside the context as an event of this rank."""
        begin = time.perf_counter()
        yield
        self.phase(name, round_index, begin, time.perf_counter())

    def flush(self, only_if_due: bool = False) -> None:
        """Append the events in memory to this rank's part.

        Parameters
        ----------
        only_if_due : bool
            Do nothing if the last flush was less than FLUSH_S ago and events are few.

        Raises
        ------
        OSError
            If the part cannot be written.
        """
        begin, count = time.perf_counter(), len(self._events)
        if only_if_due and begin - self._flushed_s < FLUSH_S and count < FLUSH_EVENTS:
            return
        # Another thread may append events meanwhile, so take the number of events counted above.
        events = self._events[:count]
        del self._events[:count]
        try:
            self._file.write("".join(map(self._text, events)))
            self._file.flush()
        except OSError as error:
            # If the disk is full, the error names no file, so add the name.
            raise OSError(error.errno, error.strerror, self._file.name) from None
        self._flushed_s = time.perf_counter()
        if events:
            self.phase("timeline", events[-1][4], begin, self._flushed_s)

    def end(self, complete: bool) -> None:
        """Join the parts of all ranks. **Collective.**

        Parameters
        ----------
        complete : bool
            True if the run can not be resumed any more. Then its parts are removed.

        Raises
        ------
        UserError
            On every rank alike, if the file cannot be written. The parts are kept.
        """
        self.close()
        # This collective call also ensures that all parts are closed before rank 0 reads them.
        unsure = dict(self._world.collect((self._world.host, self._unsure_s)))
        self._world.from_first(lambda: self._join(unsure, complete))

    def close(self) -> None:
        """Write the remaining events to this rank's part, and close it.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        self.flush()
        self._file.close()

    def _begin(self) -> tuple[int, float, float]:
        """Return the number of this attempt, the age of the trace [s] and this clock's time [s]. Runs on rank 0."""
        started = _started(self._directory)
        now_s, clock_s = time.time(), time.perf_counter()
        begun_s = float(started.get("begun_s", now_s))
        try:
            self._directory.traces.mkdir(parents=True, exist_ok=True)
            atomic_files.write_text(
                _started_file(self._directory), json.dumps({"begun_s": begun_s, "out": str(self._out.resolve())})
            )
            attempt = 1 + max((int(path.name.partition("-")[2]) for path in _attempts(self._directory)), default=0)
            self._directory.trace(attempt, 0).parent.mkdir()
        except OSError as error:
            raise UserError(f"--trace: {self._directory.traces} cannot be written: {error.strerror}") from None
        # The clock may have been set back since the trace began.
        return attempt, max(0.0, now_s - begun_s), clock_s

    def _offset(self, deadline_s: float) -> tuple[float, float]:
        """Return how far this rank's clock is ahead of rank 0's, and the uncertainty [s]. **Collective.**"""
        hosts = self._world.collect(self._world.host)
        partners = [rank for rank, host in enumerate(hosts) if hosts.index(host) == rank and host != hosts[0]]
        measured = clock_offsets(self._world, partners, deadline_s, time.perf_counter)
        by_host = self._world.from_first(lambda: dict(zip([hosts[rank] for rank in partners], measured, strict=True)))
        return by_host.get(self._world.host, (0.0, 0.0))

    def _open(self) -> TextIO:
        """Create this rank's part, and write the names of its process and threads."""
        path = self._directory.trace(self._attempt, self._world.rank)
        labels = [f"hosts participants {self._hosted[0]} to {self._hosted[1]}"]
        if self._unsure_s:
            labels.append(f"clock within {1e6 * self._unsure_s:.0f} us of rank 0's")
        names = [
            ("process_name", 0, {"name": f"rank {self._world.rank} ({self._world.host})"}),
            ("process_sort_index", 0, {"sort_index": self._world.rank}),
            ("process_labels", 0, {"labels": ", ".join(labels)}),
            *(("thread_name", lane, {"name": name}) for lane, name in LANES.items()),
            *(("thread_sort_index", lane, {"sort_index": lane}) for lane in LANES),
        ]
        try:
            # On a network file system, this host may not see yet the folder that rank 0 made.
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w", encoding="utf-8")
            file.write("[\n")
            for name, lane, given in names:
                event = {"name": name, "ph": "M", "ts": 0, "pid": self._world.rank, "tid": lane, "args": given}
                file.write(json.dumps(event) + ",\n")
            file.flush()
        except OSError as error:
            raise UserError(f"--trace: {path} cannot be written: {error.strerror}") from None
        return file

    def _text(self, event: Event) -> str:
        """Format an event as lines of the file. No JSON library is used, to save time between rounds."""
        name, category, begin_s, end_s, round_index, members, lane = event
        begin_us, end_us = 1e6 * (begin_s - self._origin_s), 1e6 * (end_s - self._origin_s)
        if members == EVERYONE:
            who = f'"participants":{list(self._hosted)}'
        else:
            who = f'"participant":{members[0]}' if len(members) == 1 else f'"cohort":{list(members)}'
        given = f'"pid":{self._world.rank},"tid":{lane},"args":{{{who},"round":{round_index}}}}}'
        if category == MESSAGES:
            named = (
                f'"name":"messages of round {round_index}","cat":"{category}",'
                f'"id":"{self._world.rank}.{self._attempt}.{round_index}",'
            )
            # Both events are on one line, so a truncated file has both of them or none.
            begin, end = f'"ph":"b","ts":{begin_us:.3f}', f'"ph":"e","ts":{end_us:.3f}'
            return f"{{{named}{begin},{given},{{{named}{end},{given},\n"
        timed = f'"ph":"X","ts":{begin_us:.3f},"dur":{end_us - begin_us:.3f}'
        return f'{{"name":"{name}","cat":"{category}",{timed},{given},\n'

    def _join(self, unsure_s: dict[str, float], complete: bool) -> None:
        about = {
            "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_started(self._directory)["begun_s"])),
            "run": str(self._directory.path),
            "clock_uncertainty_us": {host: round(1e6 * seconds, 3) for host, seconds in unsure_s.items()},
        }
        unfinished = _unfinished(self._out)
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(about)},"traceEvents":[')
                separator = "\n"
                for folder in _attempts(self._directory):
                    for part in sorted(folder.iterdir()):
                        for line in events_of(part):
                            file.write(separator + line)
                            separator = ",\n"
                file.write("\n]}\n")
            atomic_files.publish(unfinished, self._out)
            if complete:
                shutil.rmtree(self._directory.traces)
        except OSError as error:
            raise UserError(
                f"--trace: cannot write {error.filename or unfinished}: {error.strerror}. The parts are in "
                f"{self._directory.traces}; open each of them by itself."
            ) from None


def events_of(part: Path) -> Iterator[str]:
    """Yield the events of a rank's part as texts of one or two JSON objects, up to the last complete line."""
    with part.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("{") and line.endswith("},\n"):
                yield line[:-2]


def _attempts(directory: RunDirectory) -> list[Path]:
    return sorted(directory.traces.glob("attempt-*")) if directory.traces.is_dir() else []


def _started_file(directory: RunDirectory) -> Path:
    return directory.traces / "begun.json"


def _started(directory: RunDirectory) -> dict[str, Any]:
    """Return the start of the trace and the path of the joined file; empty if there is no trace."""
    try:
        return dict(json.loads(_started_file(directory).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _unfinished(out: Path) -> Path:
    return out.with_name(f"{out.name}.new")
