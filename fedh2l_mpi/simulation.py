"""A run: publish, local phase, mutual phase, evaluate, record; round by round. Reads like the method.

The only file that knows the order of the phases.
"""

import contextlib
import logging
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi import build, evaluation, metrics
from fedh2l_mpi.config import Config
from fedh2l_mpi.exchange import Exchange, Ledger
from fedh2l_mpi.lifecycle import resume, run_metadata
from fedh2l_mpi.lifecycle.checkpoint_writer import CheckpointWriter
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.lifecycle.status_reporter import StatusReporter
from fedh2l_mpi.lifecycle.stopping import Stopping
from fedh2l_mpi.methods import Round
from fedh2l_mpi.methods.batched import BatchedParticipants
from fedh2l_mpi.metrics.collector import Collector
from fedh2l_mpi.metrics.phase_timer import PhaseTimer
from fedh2l_mpi.metrics.trace import Trace
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.runtime.devices import assign_device
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph

log = logging.getLogger("fedh2l_mpi")
Listener = Callable[[int, NDArray[np.float64]], None]
# Under which name a participant keeps what its neighbours hold of its array, where unchanged rows are skipped.
HELD = "held_by_neighbours"


class Simulation:
    """One rank's part of a run.

    Building it is collective: data, models and graph are made, compared over the ranks, and the metrics file is begun.

    Parameters
    ----------
    config : Config
        A resolved config, the same on every rank.
    claim : RunReservation
        On the run directory. That of a new run is not created before the config has proved to work.
    signals : Signals or None
        That may ask the run to stop; None: signals are not looked at.
    trace : Path or None
        The file that the run's timeline is written to; None: there is none.

    Raises
    ------
    UserError
        On every rank alike, if data, models, graph or devices do not fit the config.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        claim: RunReservation,
        signals: Signals | None = None,
        trace: Path | None = None,
    ) -> None:
        self.config, self.world, self.directory = config, world, claim.directory
        torch.set_num_threads(config.devices.threads)
        device = torch.device(assign_device(world, config.devices))
        self.hosting = Hosting(config.size, world.size)
        self.hosted = build.load(config, world, self.hosting, device)
        self.method, self.topology = self.hosted.method, self.hosted.topology
        self.participants, self.learners = self.hosted.participants, self.hosted.learners
        self.private_samples = self.hosted.private_samples
        world.handshake(run_metadata.digests(config, self.hosted))
        self.description = run_metadata.description(world, self.hosted)
        facts = run_metadata.facts(config, world, self.hosted, self.description)
        deadline_s = config.exchange.deadline_s
        self.first_round = 0
        if claim.kind == "resume":
            self.first_round = resume.restore(world, self.directory, self.participants, facts, config.rounds)
        world.from_first(lambda: claim.settle(config))
        # Only now a directory that is named by the time has its name.
        self.directory = claim.directory = world.from_first(lambda: claim.directory)
        self.timeline = Trace(world, self.hosting, self.directory, trace, deadline_s) if trace is not None else None
        self.exchange = None
        if self.hosted.array is not None:
            pinned = device.type == "cuda"
            arrived = self.timeline.messages if self.timeline is not None else None
            self.exchange = Exchange(world, self.hosting, self.hosted.array, deadline_s, pinned, arrived)
            if self.hosted.array.skip_below is not None:
                self._keep_what_is_held(self.exchange)
        self.writer = self._writer() if world.rank == 0 else None
        self.recorder = Collector(
            world, self.hosting, metrics.row_width(self.hosted.plan.domains), self._write, deadline_s
        )
        keep = config.checkpoint.keep
        worked = self.timeline.checkpoint_work if self.timeline is not None else None
        self.checkpoints = CheckpointWriter(world, self.hosting, self.directory, facts, keep, deadline_s, worked)
        self.stopping = Stopping(world, signals, config.run, self.directory, deadline_s)
        self.lifecycle = StatusReporter(world, claim, config.rounds)
        # The checkpoint, after so many rounds, that answers what was asked for.
        self._requested: int | None = None

    def run(self, listener: Listener) -> StopRequest:
        """All rounds that are not finished yet, or as many as there is time for. **Collective.**

        Parameters
        ----------
        listener : callable
            Called on rank 0 with each finished round and its table of rows (P, row width), after it is in the file.

        Returns
        -------
        StopRequest
            Who stopped the run; NOTHING if it is complete.
        """
        self._listener = listener
        self.lifecycle.begin(self.first_round)
        try:
            asked = self.stopping.asked_before()
            if self.first_round == self.config.rounds:
                # It is complete, whoever wanted to stop it: only its last word was missing.
                asked = StopRequest.NOTHING
            for round_index in range(self.first_round, 0 if asked.stops else self.config.rounds):
                self._round(round_index)
                asked = self._checkpoint_or_stop(round_index)
                if asked.stops:
                    break
            self._finish()
            state, reason = ("stopped", asked.reason) if asked.stops else ("complete", "")
            self._close(state)
            self.lifecycle.end(state, reason)
        except BaseException as error:
            self._give_up(error)
            raise
        if self.timeline is not None:
            self.timeline.end(complete=state == "complete")
        used = resource.getrusage(resource.RUSAGE_SELF)
        log.info(
            f"used {used.ru_utime + used.ru_stime:.1f} CPU s, at most {used.ru_maxrss / 1024:.0f} MiB of memory",
            extra={"file_only": True},
        )
        return asked

    def _checkpoint_or_stop(self, round_index: int) -> StopRequest:
        """What all ranks do after this round, and the checkpoint that belongs to it."""
        done, every = round_index + 1, self.config.checkpoint.every
        self.world.at = f"round {round_index}, agreeing"
        with self._during("agree", round_index):
            asked = self.stopping.agreed(idle=self._idle)
        if done == self.config.rounds:
            # It is complete, whoever wanted to stop it.
            asked = StopRequest.NOTHING
        is_due = every is not None and done % every == 0
        if asked:
            self._requested = done
            self.stopping.checkpoint_begins()
        if is_due or asked or done == self.config.rounds:
            self.world.at = f"round {round_index}, checkpoint"
            with self._during("checkpoint", round_index):
                self.checkpoints.begin(done, self.participants, self._idle)
        self._idle()
        if self.timeline is not None:
            self.timeline.flush(only_if_due=True)
        return asked

    def _during(self, what: str, round_index: int) -> contextlib.AbstractContextManager[None]:
        """What runs inside is in the timeline, where there is one."""
        return self.timeline.during(what, round_index) if self.timeline is not None else contextlib.nullcontext()

    def _idle(self) -> None:
        """What need not be done at once: rows that have arrived, checkpoints that are written. Cheap, never waits."""
        self.recorder.poll()
        if self.checkpoints.poll():
            self.lifecycle.checkpoint = self.checkpoints.newest
            if self._requested is not None and self.checkpoints.newest >= self._requested:
                self.stopping.checkpoint_was_made()
                self._requested = None

    def _finish(self) -> None:
        """Wait until all that is on its way has arrived, and is in its files."""
        self.world.at = "the end of the run"
        self.stopping.close(idle=self._idle)
        self.recorder.finish()
        self.checkpoints.finish()
        self.lifecycle.checkpoint = self.checkpoints.newest or self.first_round
        self.stopping.run_has_ended()

    def _give_up(self, error: BaseException) -> None:
        """Leave files that can be read, and word of what happened."""
        self.lifecycle.fail(error)
        # A closed file opens everywhere. On a full disk it cannot be closed, and can still be read.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._close("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        if self.timeline is not None:
            with contextlib.suppress(OSError, ValueError):
                self.timeline.close()
        self.checkpoints.abandon()
        with contextlib.suppress(OSError):
            self.lifecycle.leave()

    def _close(self, state: str) -> None:
        if self.writer is not None:
            self.writer.close(state)

    def _writer(self) -> metrics.MetricsWriter:
        """The metrics file, up to the first round that this process will do."""
        kept = self.first_round or None
        writer = metrics.MetricsWriter(
            self.directory.metrics, run_metadata.header(self.config, self.world, self.hosted, self.description), kept
        )
        for round_index in filter(self.topology.is_redrawn, range(self.first_round)):
            writer.add_graph(round_index, self.topology.graph(round_index).edges)
        return writer

    def _round(self, round_index: int) -> None:
        clock = PhaseTimer(self.hosted.device, round_index, self.timeline)
        now = Round(
            round_index,
            self.topology.graph(round_index),
            self.hosted.federation.seed_set.of_round(round_index),
            self.private_samples,
        )

        if self.method.publishes_first:
            self._publish(now, clock)

        for learner in self._each(round_index, "local phase", self.learners):
            with clock.charge(learner, "local"):
                self.method.local_phase(learner, now)
            if self.exchange is not None:
                self.exchange.progress()
            self._idle()

        if not self.method.publishes_first:
            self._publish(now, clock)
        theirs = self._wait(now, clock)

        for learner in self._each(round_index, "mutual phase", self.learners):
            with clock.charge(learner, "mutual"):
                self._mutual_phase(learner, now, theirs)
            self._idle()

        scores: dict[int, dict[str, Any]] = {}
        if self._evaluates(round_index):
            for participant in self._each(round_index, "evaluation"):
                with clock.charge(participant, "evaluate"):
                    own = self.hosted.plan.own_domain(participant.index)
                    scores[participant.index] = evaluation.evaluate(participant, self.hosted.federation.tests, own)
                self._idle()

        self.world.at = f"round {round_index}, recording"
        self.recorder.record(round_index, self._rows(now.graph, clock, scores))

    def _mutual_phase(self, learner: Participant, now: Round, theirs: Mapping[int, Tensor]) -> None:
        """Of a participant, or of a cohort: one by one where its members' numbers of neighbours differ."""
        taught = learner.taught(theirs) if isinstance(learner, BatchedParticipants) else theirs[learner.index]
        if taught is not None:
            self.method.mutual_phase(learner, now, taught)
            return
        for member in learner.members:
            self.method.mutual_phase(member, now, theirs[member.index])

    def _publish(self, now: Round, clock: PhaseTimer) -> None:
        """Every participant's array, and the messages on their way."""
        if self.exchange is None or not self.method.exchanges_in(now.index):
            return
        published = {}
        for participant in self._each(now.index, "publish"):
            with clock.charge(participant, "publish"):
                array = self.method.publish(participant, now)
                # Neighbours on this rank get it without a copy, while the participant learns on.
                is_live = participant.parameters.share_memory_with(array)
                published[participant.index] = array.clone() if is_live else array
        with clock.charge_all(self.participants, "publish"):
            self.exchange.start(now.index, now.graph, published)

    def _wait(self, now: Round, clock: PhaseTimer) -> Mapping[int, Tensor]:
        """What the neighbours have published, by participant; nothing in a round without exchange."""
        if self.exchange is None or not self.method.exchanges_in(now.index):
            array = self.hosted.array
            rows, columns = (array.rows, array.columns) if array is not None else (0, 0)
            return {participant.index: torch.empty(0, rows, columns) for participant in self.participants}
        self.world.at = f"round {now.index}, waiting for neighbours"
        with clock.charge_all(self.participants, "wait"):
            return self.exchange.finish(idle=self._idle)

    def _each(
        self, round_index: int, phase: str, learners: Sequence[Participant] | None = None
    ) -> Iterator[Participant]:
        """The participants hosted here, or `learners`; keeps `world.at` up to date for the message if one fails."""
        for participant in self.participants if learners is None else learners:
            who = " or ".join(str(member.index) for member in participant.members)
            self.world.at = f"round {round_index}, participant {who}, {phase}"
            yield participant

    def _evaluates(self, round_index: int) -> bool:
        return (round_index + 1) % self.config.evaluation.every == 0 or round_index == self.config.rounds - 1

    def _rows(self, graph: Graph, clock: PhaseTimer, scores: dict[int, dict[str, Any]]) -> NDArray[np.float64]:
        """One row per hosted participant."""
        unknown = [float("nan")] * self.hosted.plan.domains
        ledger = self.exchange.close_round() if self.exchange is not None else Ledger()
        rows = []
        for participant in self.participants:
            index = participant.index
            values: dict[str, Any] = {
                "seconds_publish": 0.0,
                "seconds_wait": 0.0,
                **participant.noted_means(),
                **{f"seconds_{phase}": seconds for phase, seconds in clock.seconds[index].items()},
                "bytes_sent": ledger.sent.get(index, 0),
                "bytes_received": ledger.received.get(index, 0),
                "degree": len(graph.neighbours[index]),
                **scores.get(index, {}),
            }
            by_domain = (values.get("accuracy_D", unknown), values.get("loss_D", unknown))
            rows.append(metrics.pack_row(values, *by_domain, values.get("calibration_3K")))
        return np.stack(rows)

    def _write(self, round_index: int, table: NDArray[np.float64]) -> None:
        if self.writer is not None:
            with self._during("write", round_index):
                if self.topology.is_redrawn(round_index):
                    self.writer.add_graph(round_index, self.topology.graph(round_index).edges)
                digest = self.writer.append(round_index, table)
            self.checkpoints.rows_are_written(round_index + 1, digest)
            self.lifecycle.progress(round_index + 1)
            self._listener(round_index, table)

    def _keep_what_is_held(self, exchange: Exchange) -> None:
        """What neighbours hold becomes a part of every participant's state; after a checkpoint, it is as it was then.

        **Collective.**
        """
        before = next(filter(self.method.exchanges_in, reversed(range(self.first_round))), None)
        if before is not None:
            held = {participant.index: participant.kept[HELD].cpu() for participant in self.participants}
            exchange.hand_over(before, self.topology.graph(before), held)
        for participant in self.participants:
            participant.kept[HELD] = exchange.held(participant.index)
