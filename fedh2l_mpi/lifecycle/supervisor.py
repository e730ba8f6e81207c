"""Supervise one rank's rounds: status, checkpoints, requests to stop, and clean-up after an error."""

import contextlib
import logging
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config
from fedh2l_mpi.lifecycle.checkpoint_writer import CheckpointWriter, Stateful
from fedh2l_mpi.lifecycle.early_stop import EarlyStop
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.lifecycle.status_reporter import StatusReporter
from fedh2l_mpi.lifecycle.stopping import Stopping
from fedh2l_mpi.metrics.run_recorder import RunRecorder
from fedh2l_mpi.metrics.trace import Trace, during
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import processes
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World

log = logging.getLogger("fedh2l_mpi")
Listener = Callable[[int, NDArray[np.float64]], None]


class Supervisor:
    """Context of the rounds: it reports their begin and end, and leaves readable files if an error ends them.

    Building it is **collective**.

    Parameters
    ----------
    config : Config
        A resolved config.
    participants : sequence of Stateful
        The participants hosted here, whose states make a checkpoint.
    facts : mapping
        Facts about the run for a checkpoint's manifest.
    recorder : RunRecorder
        The metrics file, which is closed at the end.
    first_round : int
        Rounds that were finished before.
    listener : callable
        Rank 0 calls it with each round and its table of rows (P, row width), after the round is in the file.
    signals : Signals or None
        Signals that may ask the run to stop, the first Ctrl-C among them; None: signals have their default effect.

    Attributes
    ----------
    directory : RunDirectory
        The run's directory.
    first_round : int
        The first round that this process runs.
    trace : Trace or None
        The trace of the run.
    outcome : StopRequest
        The request that stopped the run; NOTHING while it runs, and if it is complete, which a run is after an early
        stop, too.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        hosting: Hosting,
        directory: RunDirectory,
        participants: Sequence[Stateful],
        facts: Mapping[str, Any],
        recorder: RunRecorder,
        first_round: int = 0,
        listener: Listener = lambda index, table: None,
        signals: Signals | None = None,
        trace: Trace | None = None,
        early_stop: EarlyStop | None = None,
    ) -> None:
        deadline_s = config.exchange.deadline_s
        self._config, self._world, self._participants = config, world, participants
        self._signals, self._rounds = signals, contextlib.ExitStack()
        self._recorder, self._listener, self.trace = recorder, listener, trace
        self.directory, self.first_round = directory, first_round
        recorder.on_written = self._round_is_written
        worked = trace.checkpoint_work if trace is not None else None
        keep = config.checkpoint.keep
        self.checkpoints = CheckpointWriter(world, hosting, directory, facts, keep, deadline_s, worked)
        self.stopping = Stopping(world, signals, config.run, directory, deadline_s)
        self.reporter = StatusReporter(world, directory, config.rounds)
        self.outcome, self._early_stop = StopRequest.NOTHING, early_stop
        # Rounds in the checkpoint that answers a request; None: no request waits for an answer.
        self._requested: int | None = None

    def __enter__(self) -> "Supervisor":
        self.reporter.begin(self.first_round)
        if self._signals is not None:
            self._rounds.enter_context(self._signals.interruptible(speaks=self._world.rank == 0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._rounds:
            try:
                if error is None:
                    self._finish()
            except BaseException as failure:
                self._give_up(failure)
                raise
            if error is not None:
                self._give_up(error)
                return
        if self.trace is not None:
            self.trace.end(complete=not self.outcome.stops)
        used = resource.getrusage(resource.RUSAGE_SELF)
        memory = processes.most_resident_bytes() / 2**20
        log.info(
            f"used {used.ru_utime + used.ru_stime:.1f} CPU s, at most {memory:.0f} MiB of memory",
            extra={"file_only": True},
        )

    def rounds_left(self) -> Iterator[int]:
        """Yield the rounds that are not finished; none if a signal has asked to stop before the first. **Collective.**

        A run whose rounds are all finished is complete, even if somebody asks it to stop.
        """
        asked = self.stopping.requested_before()
        if self.first_round < self._config.rounds:
            self.outcome = asked
        if self._stops_early:
            # The process that ran the last round was killed before it could close its files.
            self.outcome = StopRequest.NOTHING
        index = self.first_round
        while index < self._config.rounds and not self.outcome.stops and not self._stops_early:
            yield index
            index += 1

    def after_round(self, index: int, scores: Mapping[int, Mapping[str, Any]] = MappingProxyType({})) -> StopRequest:
        """Agree with all ranks whether to stop, and begin a checkpoint if it is due or asked for. **Collective.**

        Parameters
        ----------
        scores : mapping
            From the participants hosted here to their scores; empty in a round without evaluation.
        """
        done, every = index + 1, self._config.checkpoint.every
        with self._world.doing(f"round {index}, agreeing"), during(self.trace, "agree", index):
            asked = self.stopping.agree(idle=self.poll)
            if self._early_stop is not None and scores:
                self._early_stop.note(done, scores, idle=self.poll)
        is_last = done == self._config.rounds or self._stops_early
        if is_last:
            # The run is complete, even if somebody asked it to stop.
            asked = StopRequest.NOTHING
        self.outcome = asked if asked.stops else StopRequest.NOTHING
        is_due = every is not None and done % every == 0
        if asked:
            self._requested = done
            self.stopping.begin_answer()
        if is_due or asked or is_last:
            with self._world.doing(f"round {index}, checkpoint"), during(self.trace, "checkpoint", index):
                self.checkpoints.begin(done, self._participants, self.poll)
        self.poll()
        if self.trace is not None:
            self.trace.flush(only_if_due=True)
        return asked

    def poll(self) -> None:
        """Do what can be done without waiting: write rows that have arrived, commit checkpoints that are written."""
        self._recorder.poll()
        if self.checkpoints.poll():
            self.reporter.checkpoint = self.checkpoints.newest
            if self._requested is not None and self.checkpoints.newest >= self._requested:
                self.stopping.finish_answer()
                self._requested = None

    def _round_is_written(self, index: int, table: NDArray[np.float64], digest: str) -> None:
        self.checkpoints.note_rows(index + 1, digest)
        self.reporter.progress(index + 1)
        self._listener(index, table)

    def _finish(self) -> None:
        """Wait until everything on its way has arrived and is in its files; close them and report the end."""
        with self._world.doing("the end of the run"):
            self.stopping.close(idle=self.poll)
            self._recorder.finish()
            self.checkpoints.finish()
            self.reporter.checkpoint = self.checkpoints.newest or self.first_round
            self.stopping.remove_requests()
            state, reason = ("stopped", self.outcome.reason) if self.outcome.stops else ("complete", "")
            early = str(self._early_stop) if state == "complete" and self._stops_early else ""
            if early and self._early_stop is not None:
                self._early_stop.log()
            self._recorder.close(state, early)
            self.reporter.end(state, reason or early)

    @property
    def _stops_early(self) -> bool:
        return self._early_stop is not None and self._early_stop.stops

    def _give_up(self, error: BaseException) -> None:
        """Leave files that can be read, and a report of the error, which no second error may replace."""
        state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"{self.directory.resume_command} {self.directory.resume_effect}")
        steps: dict[str, Callable[[], None]] = {
            "reporting the error": lambda: self.reporter.fail(error),
            # A closed file opens everywhere. On a full disk it cannot be closed, but can still be read.
            "closing the metrics file": lambda: self._recorder.close(state),
            "closing the trace": lambda: self.trace.close() if self.trace is not None else None,
            "abandoning checkpoints": self.checkpoints.abandon,
            "dismissing the watchdog": self.reporter.leave,
        }
        for what, step in steps.items():
            try:
                step()
            except Exception as second:
                log.warning(f"{what} failed, too: {type(second).__name__}: {second}", extra={"file_only": True})
