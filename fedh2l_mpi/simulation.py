"""The round loop: publish, local phase, mutual phase, evaluate, record. It reads like the method.

This is the only file that knows the order of the phases.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi import evaluation
from fedh2l_mpi.build import RankSetup
from fedh2l_mpi.config import Config
from fedh2l_mpi.exchange import Exchange, NoExchange, Received
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.lifecycle.supervisor import Supervisor
from fedh2l_mpi.methods import Round
from fedh2l_mpi.metrics import PRESENT
from fedh2l_mpi.metrics.phase_timer import PhaseTimer
from fedh2l_mpi.metrics.run_recorder import RunRecorder
from fedh2l_mpi.participant import Participant, TrainingUnit
from fedh2l_mpi.runtime.world import World

# From a participant to its scores by name, as `evaluation.evaluate` returns them.
Scores = dict[int, dict[str, Any]]
Unit = TypeVar("Unit", Participant, TrainingUnit)


class Simulation:
    """One rank's part of a run. `fedh2l_mpi.api` puts it together.

    Parameters
    ----------
    config : Config
        A resolved config, the same on every rank.
    setup : RankSetup
        This rank's participants, their data, the method and the graph.
    exchange : Exchange or NoExchange
        The messages between neighbours.
    recorder : RunRecorder
        The metrics file.
    supervisor : Supervisor
        Status, checkpoints, requests to stop.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        setup: RankSetup,
        exchange: Exchange | NoExchange,
        recorder: RunRecorder,
        supervisor: Supervisor,
    ) -> None:
        self.config, self.world, self.setup = config, world, setup
        self.exchange, self.recorder, self.supervisor = exchange, recorder, supervisor
        self.method = setup.method
        self._finished = supervisor.first_round
        # The confusion matrix of each participant hosted here, of the newest evaluation.
        self._confusion: dict[int, NDArray[np.int32]] = {}
        self.participants, self.training_units = setup.participants, setup.training_units
        # A codec that loses digits gives each participant another mean, because its own parameters lose none.
        exact = setup.array is not None and setup.array.is_exact
        self._averages_once = self.method.averages_everyone and exact

    def run(self) -> StopRequest:
        """Run every round that is left, or stop earlier if anyone asks. **Collective.**

        for each round:
            present        those who take part (`faults.participation`); all others skip the next three phases
            publish        posteriors on the round's seed samples; the messages start
            local phase    E steps that need no message, while the messages travel
            mutual phase   M steps towards the neighbours' posteriors
            evaluate       every k rounds, on every domain's test set
            record         one row for each participant
            checkpoint if it is due, and stop if anyone asked or nothing gets better (`run.early_stop`)
        at the end, unless it was stopped: every participant's confusion matrix, and its predictions

        Returns
        -------
        StopRequest
            The request that stopped the run; NOTHING if the run is complete.
        """
        with self.supervisor:
            for index in self.supervisor.rounds_left():
                scores = self._round(index)
                self._finished = index + 1
                if self.supervisor.after_round(index, scores).stops:
                    break
            if not self.supervisor.outcome.stops:
                self._record_end()
        return self.supervisor.outcome

    def _round(self, index: int) -> Scores:
        """Run a round, and return the scores of the participants hosted here; none if it is not evaluated."""
        now = Round(
            index,
            self.setup.graph(index),
            self.setup.federation.seed_set.of_round(index),
            self.setup.private_samples,
            self.setup.federation.seed_set,
            self.config.rounds,
        )
        timer = PhaseTimer(self.setup.device, index, self.supervisor.trace)

        if self.method.publishes_first:
            self._publish(now, timer)
        self._local_phase(now, timer)
        if not self.method.publishes_first:
            self._publish(now, timer)
        theirs = self._receive(now, timer)
        self._mutual_phase(now, theirs, timer)
        scores = self._evaluate(now, timer)
        self._record(now, timer, scores)
        if isinstance(theirs, Received):
            self.recorder.keep_posteriors(now.index, theirs.arrays)
        return scores

    def _publish(self, now: Round, timer: PhaseTimer) -> None:
        """Start every participant's array on its way to the neighbours."""
        if not self._exchanges_in(now.index):
            return
        published = {}
        for participant in self._each(now, "publish", self._present(now, self.participants)):
            with timer.charge(participant, "publish"):
                published[participant.index] = self.method.published(participant, now)
        with timer.charge_all(self.participants, "publish"):
            self.exchange.start(now.index, now.graph, published)

    def _local_phase(self, now: Round, timer: PhaseTimer) -> None:
        for unit in self._each(now, "local phase", self._present(now, self.training_units)):
            with timer.charge(unit, "local"):
                self.method.local_phase(unit, now)
            self.exchange.progress()
            self.supervisor.poll()

    def _receive(self, now: Round, timer: PhaseTimer) -> Mapping[int, Tensor]:
        """Wait for what the neighbours have published, by participant."""
        if not self._exchanges_in(now.index):
            return self.exchange.nothing()
        with (
            self.world.doing(f"round {now.index}, waiting for neighbours"),
            timer.charge_all(self.participants, "wait"),
        ):
            return self.exchange.finish(idle=self.supervisor.poll)

    def _mutual_phase(self, now: Round, theirs: Mapping[int, Tensor], timer: PhaseTimer) -> None:
        if self._averages_once and isinstance(theirs, Received):
            self._adopt_mean(now, theirs, timer)
            return
        for unit in self._each(now, "mutual phase", self._present(now, self.training_units)):
            with timer.charge(unit, "mutual"):
                # A method that moves the arrays to the device one at a time takes the members of a batch so, too.
                received = None if self.method.takes_theirs_one_by_one else unit.received(theirs)
                if received is not None:
                    self.method.mutual_phase(unit, now, received)
                else:
                    for member in unit.members:
                        self.method.mutual_phase(member, now, theirs[member.index])
                for member in unit.members:
                    member.end_round()
            self.supervisor.poll()

    def _adopt_mean(self, now: Round, theirs: Received, timer: PhaseTimer) -> None:
        """Let all participants adopt the mean of everyone, which this rank computes once."""
        present = self._present(now, self.participants)
        if not present:
            return
        with timer.charge_all(self.participants, "mutual"):
            states = {index: array[0] for index, array in theirs.arrays.items()}
            mean = self.method.mean(states, now, self.setup.device)
        for participant in self._each(now, "mutual phase", present):
            with timer.charge(participant, "mutual"):
                self.method.adopt(participant, mean)
                participant.end_round()
            self.supervisor.poll()

    def _evaluate(self, now: Round, timer: PhaseTimer) -> Scores:
        """Return every participant's scores; none in a round that is not evaluated."""
        done = now.index + 1
        if done % self.config.evaluation.every and done != self.config.rounds:
            return {}
        calibrates = self.config.evaluation.calibration == "seed_set"
        # The rows of this round were trained on, so a temperature that fits them would be too low.
        unseen = now.seed_set.of_round(now.index + 1) if calibrates else None
        scores, tests = {}, self.setup.federation.tests
        for participant in self._each(now, "evaluation", self.participants):
            with timer.charge(participant, "evaluate"), self.method.evaluating(participant):
                own = self.setup.plan.own_domain(participant.index)
                fitted = None
                if unseen is not None:
                    fitted = evaluation.temperature_on(participant, unseen, self.method.seed_prior(now))
                scored = evaluation.evaluate(participant, tests, own, fitted, self.setup.metrics)
                self._confusion[participant.index] = scored.pop("confusion_CC")
                scores[participant.index] = scored
            self.supervisor.poll()
        return scores

    def _record(self, now: Round, timer: PhaseTimer, scores: Scores) -> None:
        ledger = self.exchange.close_round()
        with self.world.doing(f"round {now.index}, recording"):
            seconds, faults = timer.seconds, self._faults(now)
            self.recorder.record(now.index, now.graph, self.participants, seconds, ledger, scores, faults)

    def _record_end(self) -> None:
        """Record what is known only at the end: confusion matrices and, if the config asks for them, predictions."""
        tests, classes = self.setup.federation.tests, self.setup.plan.classes
        hosted = {participant.index: participant for participant in self.participants}

        def logits_of(index: int) -> NDArray[np.float32]:
            with self.method.evaluating(hosted[index]):
                parts = [evaluation.logits_of(hosted[index], test) for test in tests if len(test)]
            return np.concatenate([part.float().cpu().numpy() for part in parts])

        labels_N = np.concatenate([test.labels.cpu().numpy() for test in tests])

        def confusion_of(index: int) -> NDArray[np.int32]:
            if index not in self._confusion:
                # The run was resumed after its last round.
                self._confusion[index] = evaluation.confusion_of(logits_of(index), labels_N)
            return self._confusion[index]

        with self.world.doing("the end of the run, recording confusion matrices and predictions"):
            self.recorder.record_confusion(confusion_of, classes)
            if self.config.evaluation.predictions:
                domain_N = np.repeat(np.arange(len(tests)), [len(test) for test in tests])
                self.recorder.record_predictions(logits_of, labels_N, domain_N, classes, self._finished)

    def _present(self, now: Round, units: Sequence[Unit]) -> Sequence[Unit]:
        """Return those who take part in a round, of participants or batches of them.

        A batch is always there, because participants that may be absent are in no batch (`may_batch`).
        """
        participation = self.setup.participation
        if participation is None:
            return units
        return [unit for unit in units if participation.takes_part(now.index, unit.members[0].index)]

    def _faults(self, now: Round) -> dict[int, dict[str, float]]:
        """Return what the rows of the participants hosted here say of simulated faults."""
        participation = self.setup.participation
        if participation is None:
            return {}
        hosted = (participant.index for participant in self.participants)
        return {index: {PRESENT.name: float(participation.takes_part(now.index, index))} for index in hosted}

    def _exchanges_in(self, index: int) -> bool:
        return self.setup.array is not None and self.method.exchanges_in(index)

    def _each(self, now: Round, phase: str, units: Sequence[Participant] | Sequence[TrainingUnit]) -> Iterator[Any]:
        """Yield participants, or batches of them, and keep `world.at` up to date for the message if one fails.

        `Any`, because a method gets a batch in a participant's place only if it says that it takes batches.
        """
        for unit in units:
            numbers = " or ".join(str(member.index) for member in unit.members)
            with self.world.doing(f"round {now.index}, participant {numbers}, {phase}"):
                yield unit
