"""A run's timeline: what every rank did, when, in Chrome's trace-event form, for Perfetto and chrome://tracing.

Every rank appends its events to a file of its own in the run directory, after a round and about once a second: what a
killed run did is there up to then. Such a part is a trace by itself (Chrome's array form, whose end may be missing).
When the run ends in order, rank 0 joins the parts, also those of earlier times that the run was begun or gone on with.

A process of the trace is a rank; its lanes (threads) are the path of the rounds and the writer of checkpoints. Ranks on
one host share one clock. Between hosts, clocks are compared once, at the start, by messages there and back: as exact as
half of the fastest round trip, which is told in the trace; what they drift apart afterwards is not corrected. After a
run was gone on with, its times are as exact as the time of day of rank 0's host.

Format: Google's "Trace Event Format", of which these events are used: M, X, b, e.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
# Events wait in memory for so long, or until they are so many.
FLUSH_S, FLUSH_EVENTS = 1.0, 2**15
# The members of an event that no participant is charged with, nor a cohort: it is told of all that the rank hosts.
EVERYONE = ()
# name, category, begin and end [perf_counter s], round, participants, lane
Event = tuple[str, str, float, float, int, tuple[int, ...], int]
MESSAGES = "messages"


def check(out: Path, directory: RunDirectory, resumes: bool) -> None:
    """Refuse a file that cannot be made, or that holds something else than this run's timeline so far.

    Parameters
    ----------
    resumes : bool
        Whether the run is gone on with: then its timeline may be there, if all its parts are, too.

    Raises
    ------
    UserError
        Names the file, or the one beside it that the parts are joined in.
    """
    try:
        own = resumes and _started(directory).get("out") == str(out.resolve())
        if out.exists() and not (own and out.is_file()):
            raise UserError(f"--trace: {out} exists already; name a new file")
        unfinished = _unfinished(out)
        # Of its own, one may be left by a kill while the parts were joined.
        if unfinished.exists() and not own:
            raise UserError(
                f"--trace: {out} is written as {unfinished} first, and that exists already; name another file, or "
                "remove it"
            )
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise UserError(f"--trace: {out} cannot be written: {error.strerror}") from None


class Trace:
    """One rank's events. Building it is **collective**.

    Parameters
    ----------
    out : Path
        The file that the parts become.
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
        # On this rank's own clock, when the timeline began.
        self._origin_s = now_s + ahead_s - elapsed_s
        self._events: list[Event] = []
        self._flushed_s = time.perf_counter()
        self._file: TextIO = world.together(self._open)

    def phase(
        self, name: str, round_index: int, begin_s: float, end_s: float, members: tuple[int, ...] = EVERYONE
    ) -> None:
        """A phase of one participant, of several that step together, or of all that are hosted here."""
        # What the participants of a rank publish together is the messages.
        told = "post messages" if name == "publish" and members == EVERYONE else name
        self._events.append((told, name, begin_s, end_s, round_index, members, ROUND_PATH))

    def messages(self, round_index: int, posted_s: float, seen_s: float) -> None:
        """A round's messages were on their way, from when they were posted until they were seen to be complete."""
        self._events.append((MESSAGES, MESSAGES, posted_s, seen_s, round_index, EVERYONE, ROUND_PATH))

    def checkpoint_work(self, what: str, rounds: int, begin_s: float, end_s: float) -> None:
        """The writer of checkpoints did something for that after `rounds` rounds; called by its thread."""
        self._events.append((what, "checkpoint writer", begin_s, end_s, rounds - 1, EVERYONE, CHECKPOINT_WRITER))

    @contextmanager
    def during(self, name: str, round_index: int) -> Iterator[None]:
        """What runs inside is an event of this rank."""
        begin = time.perf_counter()
        yield
        self.phase(name, round_index, begin, time.perf_counter())

    def flush(self, only_if_due: bool = False) -> None:
        """Append what there is to this rank's part.

        Parameters
        ----------
        only_if_due : bool
            Unless the last time was a moment ago and events are few.

        Raises
        ------
        OSError
            If that fails.
        """
        begin, count = time.perf_counter(), len(self._events)
        if only_if_due and begin - self._flushed_s < FLUSH_S and count < FLUSH_EVENTS:
            return
        # Another thread may append meanwhile: what is taken is counted first.
        events = self._events[:count]
        del self._events[:count]
        try:
            self._file.write("".join(map(self._text, events)))
            self._file.flush()
        except OSError as error:
            # Of a full disk, the error itself names no file.
            raise OSError(error.errno, error.strerror, self._file.name) from None
        self._flushed_s = time.perf_counter()
        if events:
            self.phase("timeline", events[-1][4], begin, self._flushed_s)

    def end(self, complete: bool) -> None:
        """Join the parts of all ranks. **Collective.**

        Parameters
        ----------
        complete : bool
            Whether the run will never be gone on with; its parts are removed then.

        Raises
        ------
        UserError
            On every rank alike, if the file cannot be written; the parts stay.
        """
        self.close()
        # Before rank 0 reads them.
        unsure = dict(self._world.collect((self._world.host, self._unsure_s)))
        self._world.from_first(lambda: self._join(unsure, complete))

    def close(self) -> None:
        """Leave this rank's part as complete as it can be.

        Raises
        ------
        OSError
            If what there is cannot be written.
        """
        self.flush()
        self._file.close()

    def _begin(self) -> tuple[int, float, float]:
        """On rank 0: the number of this attempt, how old the timeline is, and this clock's time [s]."""
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
        return attempt, now_s - begun_s, clock_s

    def _offset(self, deadline_s: float) -> tuple[float, float]:
        """How far this rank's clock is ahead of rank 0's, and how sure that is [s]. **Collective.**"""
        hosts = self._world.collect(self._world.host)
        partners = [rank for rank, host in enumerate(hosts) if hosts.index(host) == rank and host != hosts[0]]
        measured = clock_offsets(self._world, partners, deadline_s, time.perf_counter)
        by_host = self._world.from_first(lambda: dict(zip([hosts[rank] for rank in partners], measured, strict=True)))
        return by_host.get(self._world.host, (0.0, 0.0))

    def _open(self) -> TextIO:
        """This rank's part, with what it is called."""
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
            # Ranks on other hosts may not see yet what rank 0 has made.
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
        """An event as the lines of the file; written out, since this is done between rounds."""
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
            # One line: of a file that was cut, both ends are there or none.
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
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._out)
            if complete:
                shutil.rmtree(self._directory.traces)
        except OSError as error:
            raise UserError(
                f"--trace: {error.filename or unfinished}: {error.strerror}; the parts are in "
                f"{self._directory.traces}, and each can be opened by itself"
            ) from None


def events_of(part: Path) -> Iterator[str]:
    """The events of a rank's part, as texts of one or two JSON objects; of a killed run, up to the last whole line."""
    with part.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("{") and line.endswith("},\n"):
                yield line[:-2]


def _attempts(directory: RunDirectory) -> list[Path]:
    return sorted(directory.traces.glob("attempt-*")) if directory.traces.is_dir() else []


def _started_file(directory: RunDirectory) -> Path:
    return directory.traces / "begun.json"


def _started(directory: RunDirectory) -> dict[str, Any]:
    """When the timeline began, and which file its parts become; empty where there is none."""
    try:
        return dict(json.loads(_started_file(directory).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _unfinished(out: Path) -> Path:
    return out.with_name(f"{out.name}.new")
