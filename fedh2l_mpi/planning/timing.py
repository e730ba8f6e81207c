"""Time the phases of a round on this machine: each architecture trains on random data for a second or two."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedh2l_mpi import methods
from fedh2l_mpi.config import Config
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.evaluation import score
from fedh2l_mpi.methods import Method, Round
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning import requirements, sample_counts
from fedh2l_mpi.planning.sizes import SampleCounts
from fedh2l_mpi.topology import Graph

# Time limit for one architecture, in addition to two rounds of one step each.
BUDGET_S = 1.5
REPEATS = 3
# Of larger data, only a part of this size is used.
DATA_BYTES = 2**26
NEIGHBOURS = 64


@dataclass(frozen=True)
class PhaseSeconds:
    """Times of one participant [s]: the phases of a round, one evaluation, and one step on private data."""

    publish: float
    local: float
    mutual: float
    evaluate: float
    private_step: float

    def run_s(self, rounds: int, exchanges: int, evaluations: int) -> float:
        """Return the time of all rounds [s]."""
        return rounds * (self.local + self.mutual) + exchanges * self.publish + evaluations * self.evaluate

    def sharing(self, steps: int) -> "PhaseSeconds":
        """Return the phases of a run that shares parameters: all steps are on private data, and hide the messages.

        The time of averaging is not included.
        """
        return replace(self, publish=0.0, local=steps * self.private_step, mutual=0.0)


@dataclass(frozen=True)
class Calibration:
    """Measured times of a run's parts.

    Attributes
    ----------
    phases : dict of str to PhaseSeconds
        Times by architecture.
    seed_round_s : float
        Time to prepare a round's seed samples with their views, once on every rank [s].
    neighbours : int
        Number of neighbours' arrays in the timed mutual phase.
    notes : float
        Number of scalars that a participant records in a round. A row contains their means.
    """

    phases: dict[str, PhaseSeconds]
    seed_round_s: float
    neighbours: int
    notes: float


def calibrate(config: Config, source: Source, counts: SampleCounts, degree: float, held_bytes: int) -> Calibration:
    """Time every architecture of a resolved config on the CPU, with the number of threads of a rank.

    Parameters
    ----------
    degree : float
        Mean number of neighbours.
    held_bytes : int
        Memory of each neighbour's array [bytes].
    """
    torch.set_num_threads(config.devices.threads)
    seed = requirements.random_samples(source, _part(counts.seed, counts.input_bytes))
    samples = min(counts.seed_rows_per_round // config.seed_set.views_per_sample, len(seed))
    seed_set = SeedSet(seed, samples, source.classes, config.seed_set, config.seed)
    index = config.rounds - 1
    seed_set.of_round(index)
    seed_round_s = _seconds(lambda: seed_set.of_round(index)) * counts.seed_rows_per_round / seed_set.rows_per_round
    neighbours = max(0, min(math.ceil(degree), NEIGHBOURS, DATA_BYTES // max(1, held_bytes)))
    graph = Graph(neighbours + 1, [(0, other) for other in range(1, neighbours + 1)])
    private = int(counts.private_P.mean())
    now = Round(index, graph, seed_set.of_round(index), (private,) * (neighbours + 1), seed_set, config.rounds)
    phases, notes = {}, 0.0
    for name, model in requirements.build_models(config, source).items():
        participant = requirements.stand_in_participant(config, source, model, _part(private, counts.input_bytes))
        phases[name], notes = _phases(config, participant, now, source, counts)
    return Calibration(phases, seed_round_s, neighbours, notes)


def measured_speeds(config: Config) -> tuple[float, ...]:
    """Return every participant's optimiser steps per second on this machine, which depend on its architecture.

    Raises
    ------
    UserError
        If data or models do not fit the config.
    """
    source = open_source(config.data)
    counts, _ = sample_counts.count_or_assume(config, source)
    return speeds_of(config, calibrate(config, source, counts, degree=1.0, held_bytes=0))


def speeds_of(config: Config, calibration: Calibration) -> tuple[float, ...]:
    """Return every participant's steps on private data per second, from the times of its architecture."""
    steps_s = {name: phases.private_step for name, phases in calibration.phases.items()}
    # More digits would only be noise.
    return tuple(float(f"{1 / steps_s[config.architecture(index)]:.4g}") for index in range(config.size))


def _part(samples: int, sample_bytes: int) -> int:
    """Return the number of samples, limited to those that fit into DATA_BYTES."""
    return max(1, min(samples, DATA_BYTES // sample_bytes))


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _phases(
    config: Config, participant: Participant, now: Round, source: Source, counts: SampleCounts
) -> tuple[PhaseSeconds, float]:
    """Time the phases, with fewer steps if they are slow, and scale the times up. Also count the notes."""
    local, mutual = config.method.local_steps, config.method.mutual_steps
    once = _method(config, min(local, 1), min(mutual, 1))
    # Run once without timing, because libraries initialise themselves in the first round.
    _a_round(once, participant, now, source.classes)
    shortest = _a_round(once, participant, now, source.classes)
    share = min(1.0, BUDGET_S / max(1e-9, max(local, mutual, 1) * sum(shortest[1:])))
    e, m = math.ceil(share * local), math.ceil(share * mutual)
    method = _method(config, e, m)
    tries: list[tuple[float, float, float]] = []
    begin = time.perf_counter()
    while not tries or (len(tries) < REPEATS and time.perf_counter() - begin < BUDGET_S):
        participant.noted_means()
        tries.append(_a_round(method, participant, now, source.classes))
    notes = participant.notes * (local + mutual) / max(1, e + m)
    publish, first, second = (statistics.median(times) for times in zip(*tries, strict=True))
    by_local, by_mutual = _scales(method, (local, mutual), (e, m))
    by_seed = 1.0 if method.shares_parameters else counts.seed_rows_per_round / len(now.seed)
    tests = sum(counts.tests) + int(counts.held_out_P.mean())
    if config.evaluation.calibration == "seed_set":
        tests += counts.seed_rows_per_round
    scored = requirements.random_samples(
        source, min(_part(tests, counts.input_bytes), 8 * config.evaluation.batch_size)
    )
    evaluate = _seconds(lambda: score(participant, scored)) * tests / len(scored)
    few = max(1, e)
    # Scoring set the evaluation mode, so return to the training mode.
    participant.begin(now.index, phase=0)
    private_step = _seconds(lambda: method.private_steps(participant, few)) / few
    return PhaseSeconds(publish * by_seed, first * by_local, second * by_mutual, evaluate, private_step), notes


def _scales(method: Method, steps: tuple[int, int], timed: tuple[int, int]) -> tuple[float, float]:
    """Return the factors from the timed steps to E and M steps, for the local and the mutual phase."""
    (local, mutual), (e, m) = steps, timed
    together = (local + mutual) / max(1, e + m)
    if method.all_steps_in == "local":
        return together, 1.0
    if method.all_steps_in == "mutual":
        return 1.0, together
    return local / e if e else 1.0, mutual / m if m else 1.0


def _method(config: Config, local_steps: int, mutual_steps: int) -> Method:
    steps = {"local_steps": local_steps, "mutual_steps": mutual_steps}
    return methods.build(config.model_copy(update={"method": config.method.model_copy(update=steps)}))


def _a_round(method: Method, participant: Participant, now: Round, classes: int) -> tuple[float, float, float]:
    """Return the seconds of publish, local and mutual phase. Copies of the own array replace the neighbours'."""
    array = method.array(participant, len(now.seed), classes)
    theirs, publish = torch.empty(0, 0, 0), 0.0
    if array is not None and method.exchanges_in(now.index):
        own: list[Tensor] = []
        publish = _seconds(lambda: own.append(method.published(participant, now)))
        theirs = own[0].expand(len(now.graph.neighbours[0]), array.rows, array.columns).contiguous()
    local = _seconds(lambda: method.local_phase(participant, now))
    mutual = _seconds(lambda: method.mutual_phase(participant, now, theirs))
    return publish, local, mutual
