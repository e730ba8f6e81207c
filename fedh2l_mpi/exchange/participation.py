"""Schedules of participation: the participants of each round, and their graph.

Shape letter: P participants.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config.faults import AvailabilityFile, Bernoulli, FixedShare, Markov, ParticipationConfig
from fedh2l_mpi.config.text_files import fields_of, read_text
from fedh2l_mpi.errors import UserError, shown
from fedh2l_mpi.rng import Purpose, generator
from fedh2l_mpi.runtime import paths
from fedh2l_mpi.topology import Graph, Topology

Present = NDArray[np.bool_]
KEY = "faults.participation"
HEADER = ["participant", "from", "to"]
MOST_BYTES = 2**28
# The first and the last round of a time; None: it has no end.
Interval = tuple[int, int | None]


class Participation:
    """Participants of each round of a run, equal on every rank.

    Parameters
    ----------
    present : callable
        Returns who takes part in a round, bool (P,).
    content : bytes
        Content of the file from which the schedule follows; empty: it follows from the config and the seed.
    """

    def __init__(self, topology: Topology, present: Callable[[int], Present], content: bytes = b"") -> None:
        self._topology, self._content = topology, content
        # A round asks for its graph and its participants a few times.
        self.present = lru_cache(maxsize=2)(present)
        self._restricted = lru_cache(maxsize=2)(self._restrict)

    def digest(self) -> bytes:
        """Return the SHA-256 of the file, if there is one."""
        return hashlib.sha256(self._content).digest()

    def takes_part(self, round_index: int, participant: int) -> bool:
        """Return True if a participant takes part in a round."""
        return bool(self.present(round_index)[participant])

    def graph(self, round_index: int) -> Graph:
        """Return the round's graph with those edges alone whose two ends take part."""
        return self._restricted(round_index)

    def _restrict(self, round_index: int) -> Graph:
        graph, present_P = self._topology.graph(round_index), self.present(round_index)
        if present_P.all():
            return graph
        there = present_P.tolist()
        return Graph(len(there), [(a, b) for a, b in graph.edges if there[a] and there[b]])


def build_participation(
    config: ParticipationConfig, topology: Topology, participants: int, seed: int
) -> Participation | None:
    """Return who takes part in each round; None if everybody always does.

    Raises
    ------
    UserError
        If the availability file does not fit.
    """
    if isinstance(config, AvailabilityFile):
        named = _read_intervals(config.path, participants)
        content = repr(sorted(named.items())).encode()
        return Participation(topology, lambda index: within(named, participants, index), content)
    if isinstance(config, Markov):
        return Participation(topology, MarkovChain(config.mean_present, config.mean_absent, participants, seed))
    if isinstance(config, Bernoulli):
        chance = config.probability
        return Participation(topology, lambda index: bernoulli(chance, participants, seed, index))
    if isinstance(config, FixedShare):
        share = config.share
        return Participation(topology, lambda index: fixed_share(share, participants, seed, index))
    return None


def bernoulli(probability: float, participants: int, seed: int, round_index: int) -> Present:
    """Return who takes part in a round, bool (P,): each with this probability, independently of all else."""
    return _uniform(participants, seed, round_index) < probability


def fixed_share(share: float, participants: int, seed: int, round_index: int) -> Present:
    """Return who takes part in a round, bool (P,): max(1, C P) of them, rounded, drawn without replacement.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017,
    algorithm 1, where C is the share.
    """
    count = max(1, int(share * participants + 0.5))
    present_P = np.zeros(participants, dtype=np.bool_)
    present_P[np.argsort(_uniform(participants, seed, round_index), kind="stable")[:count]] = True
    return present_P


class MarkovChain:
    """Each participant's chain of two states: it leaves with probability 1 / U, and returns with 1 / D.

    U and D are the mean numbers of rounds of presence and absence. Round 0 is drawn from the stationary distribution,
    so that each participant takes part in a round with probability U / (U + D).

    Source: Gilbert, "Capacity of a burst-noise channel", 1960, for the chain.
    """

    def __init__(self, mean_present: float, mean_absent: float, participants: int, seed: int) -> None:
        self._leaves, self._returns = 1 / mean_present, 1 / mean_absent
        self._at_first = mean_present / (mean_present + mean_absent)
        self._participants, self._seed = participants, seed
        self._last: tuple[int, Present] | None = None

    def __call__(self, round_index: int) -> Present:
        """Return who takes part in a round, bool (P,)."""
        if self._last is None or self._last[0] > round_index:
            self._last = 0, _uniform(self._participants, self._seed, 0) < self._at_first
        index, present_P = self._last
        while index < round_index:
            index += 1
            uniform_P = _uniform(self._participants, self._seed, index)
            present_P = np.where(present_P, uniform_P >= self._leaves, uniform_P < self._returns)
        self._last = index, present_P
        return present_P


def within(named: dict[int, list[Interval]], participants: int, round_index: int) -> Present:
    """Return who takes part in a round, bool (P,): those with an interval around it, and those who are not named."""
    present_P = np.ones(participants, dtype=np.bool_)
    for participant, intervals in named.items():
        present_P[participant] = any(
            first <= round_index and (last is None or round_index <= last) for first, last in intervals
        )
    return present_P


def _uniform(participants: int, seed: int, round_index: int) -> NDArray[np.float64]:
    return generator(seed, Purpose.PARTICIPATION, round_index).random(participants)


def _read_intervals(path: str, participants: int) -> dict[int, list[Interval]]:
    """Return the times of each participant that a CSV file names."""
    file = paths.expand_home(f"{KEY}.path", path)
    try:
        lines = read_text(file, MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY}.path: cannot read {file}: {getattr(error, 'strerror', None) or error}.") from None
    rows = [(f"{KEY}.path: {file}, line {number}", fields_of(line)) for number, line in enumerate(lines, 1)]
    rows = [(where, words) for where, words in rows if words]
    if not rows:
        raise UserError(f"{KEY}.path: {file} is empty. Fix: begin it with the line {','.join(HEADER)}.")
    where, header = rows[0]
    if header != HEADER:
        raise UserError(f"{where}: got the columns {shown(', '.join(header))}, must be {', '.join(HEADER)}.")
    named: dict[int, list[Interval]] = {}
    for where, words in rows[1:]:
        participant, interval = _interval(words, participants, where)
        named.setdefault(participant, []).append(interval)
    return named


def _interval(words: Sequence[str], participants: int, where: str) -> tuple[int, Interval]:
    """Return the participant and the interval of a line."""
    if len(words) != len(HEADER):
        raise UserError(f"{where}: got {len(words)} fields, must be {len(HEADER)}: {', '.join(HEADER)}.")
    try:
        participant, first = int(words[0]), int(words[1])
        last = int(words[2]) if words[2] else None
    except ValueError:
        text = shown(",".join(words))
        raise UserError(f"{where}: got {text}, must be three numbers; `to` may be empty.") from None
    if not 0 <= participant < participants:
        raise UserError(f"{where}: got participant {participant}. Participants are 0 to {participants - 1}.")
    if first < 0 or (last is not None and last < first):
        raise UserError(f"{where}: got the rounds {first} to {last}. They count from 0, and `to` is not before `from`.")
    return participant, (first, last)
