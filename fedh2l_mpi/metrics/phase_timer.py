"""Seconds of each participant in each phase of a round."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from fedh2l_mpi.metrics.trace import EVERYONE, Timeline
from fedh2l_mpi.participant import Participant


class Stopwatch:
    """Of one round; what it measures is in the timeline, too, where there is one."""

    def __init__(self, device: torch.device, round_index: int, timeline: Timeline | None = None) -> None:
        self._device, self._round, self._timeline = device, round_index, timeline
        self.seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def of(self, learner: Participant, phase: str) -> AbstractContextManager[None]:
        """Charge what runs inside to one participant, or to a cohort's members in equal parts."""
        return self._charged(learner.members, phase, tuple(member.index for member in learner.members))

    def shared(self, participants: Sequence[Participant], phase: str) -> AbstractContextManager[None]:
        """Charge what runs inside to all participants of this rank, in equal parts that add up to the whole."""
        return self._charged(participants, phase, EVERYONE)

    @contextmanager
    def _charged(self, participants: Sequence[Participant], phase: str, told: tuple[int, ...]) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        # What was begun on a GPU is to be charged to whoever began it.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        end = time.perf_counter()
        for participant in participants:
            self.seconds[participant.index][phase] += (end - begin) / len(participants)
        if self._timeline is not None:
            self._timeline.phase(phase, self._round, begin, end, told)
