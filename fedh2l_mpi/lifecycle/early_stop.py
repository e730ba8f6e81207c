"""End a run early, when the mean accuracy on held-out private data has not risen for several evaluations.

The ranks exchange every participant's accuracy after an evaluation, so all of them come to the same end, in the round
of that evaluation, whatever their number is. What came before a resumed run's first round is read from its rows.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi import metrics
from fedh2l_mpi.config import EarlyStopConfig
from fedh2l_mpi.runtime.world import World

log = logging.getLogger("fedh2l_mpi")
# A participant without such samples has no accuracy; this stands for it in the exchange.
NO_ACCURACY = -1.0


class Progress:
    """Best evaluation so far, and the number of evaluations since then.

    Attributes
    ----------
    round, best_round : int
        Finished rounds at the last evaluation, and at the first with the highest mean accuracy; 0: there was none.
    best : float
        The highest mean over participants.
    waited : int
        Evaluations since the best one.
    """

    def __init__(self) -> None:
        self.round, self.best_round, self.waited, self.best = 0, 0, 0, -math.inf

    def note(self, done: int, accuracy_P: NDArray[np.float64]) -> None:
        """Note an evaluation after `done` rounds; participants without samples have NaN."""
        mean = float(np.nanmean(accuracy_P))
        self.round = done
        if mean > self.best:
            self.best_round, self.best, self.waited = done, mean, 0
        else:
            self.waited += 1

    def stops(self, rule: EarlyStopConfig) -> bool:
        """Return True if the rule ends the run after the last evaluation."""
        return rule.patience is not None and self.waited >= rule.patience

    def __str__(self) -> str:
        return f"early stop in round {self.round}, best round {self.best_round}"


def read(path: Path, rule: EarlyStopConfig, rounds: int) -> Progress:
    """Return the progress after the first rounds of a metrics file.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    progress = Progress()
    if rounds:
        accuracy_RP = metrics.look(path)[rule.measure][:rounds]
        for index in np.flatnonzero(~np.isnan(accuracy_RP).all(axis=1)):
            progress.note(int(index) + 1, accuracy_RP[index])
    return progress


def read_end(path: Path, rule: EarlyStopConfig, rounds: int) -> str:
    """Return how the rule ended a run of this many rounds; empty if it did not, or may go on by this rule."""
    if rule.patience is None or not rounds:
        return ""
    progress = read(path, rule, rounds)
    return str(progress) if progress.stops(rule) and progress.round == rounds else ""


class EarlyStop:
    """One rank's part in the rule `run.early_stop`.

    Parameters
    ----------
    participants : int
        P, participants of the run.
    before : Progress
        Progress of the rounds that were finished before.
    deadline_s : float
        Longest wait for another rank [s].
    """

    # Wait longer than for a message, because a rank that misses a message can name the late rank; this cannot.
    PATIENCE_S = 2.0

    def __init__(
        self, world: World, participants: int, rule: EarlyStopConfig, before: Progress, deadline_s: float
    ) -> None:
        self._world, self._participants, self._deadline_s = world, participants, deadline_s
        self._rule, self.progress = rule, before

    @property
    def stops(self) -> bool:
        """True if the run ends after the last evaluation."""
        return self.progress.stops(self._rule)

    def note(self, done: int, scores: Mapping[int, Mapping[str, Any]], idle: Callable[[], None] | None = None) -> None:
        """Note the evaluation after `done` rounds. **Collective.** It waits for the other ranks' evaluations.

        Parameters
        ----------
        scores : mapping
            From each participant that is hosted here to what `evaluation.evaluate` returned.
        idle : callable
            Background work, called while this rank waits.
        """
        ours_P = np.full(self._participants, -math.inf)
        for participant, values in scores.items():
            accuracy = float(values[self._rule.measure])
            ours_P[participant] = NO_ACCURACY if math.isnan(accuracy) else accuracy
        # Each participant has one host, so the maximum over ranks is its value, and its bits.
        theirs_P = ours_P
        if self._world.comm is not None:
            theirs_P = np.empty_like(ours_P)
            request = self._world.begin_max(ours_P, theirs_P)
            what = "agreement on an early stop"
            self._world.wait([request], [-1], self._deadline_s + self.PATIENCE_S, what, idle)
        self.progress.note(done, np.where(theirs_P == NO_ACCURACY, math.nan, theirs_P))

    def __str__(self) -> str:
        return str(self.progress)

    def log(self) -> None:
        """Log the end on rank 0, with the way to go on."""
        if self._world.rank == 0:
            log.info(
                f"{self}: the mean of {self._rule.measure} was {self.progress.best:.4f} then, and not higher in "
                f"{self.progress.waited} evaluations"
            )
