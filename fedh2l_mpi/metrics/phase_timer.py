"""Measure the seconds that each participant spends in each phase of a round."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from fedh2l_mpi.metrics.trace import EVERYONE, Trace


class Indexed(Protocol):
    """A participant, of which the timer needs the number only."""

    @property
    def index(self) -> int:
        """Its number, from 0."""


class HasMembers(Protocol):
    """One participant, or several that step together."""

    @property
    def members(self) -> Sequence[Indexed]:
        """The participants in it."""


class PhaseTimer:
    """Timer of one round on one rank. It also adds the phases to the trace, if there is one.

    Attributes
    ----------
    seconds : dict of int to dict of str to float
        By participant and by phase [s].
    """

    def __init__(self, device: torch.device, round_index: int, trace: Trace | None = None) -> None:
        self._device, self._round, self._trace = device, round_index, trace
        self.seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def charge(self, unit: HasMembers, phase: str) -> AbstractContextManager[None]:
        """Charge the time inside the context to one participant, or in equal parts to those that step together."""
        return self._charge(unit.members, phase, tuple(member.index for member in unit.members))

    def charge_all(self, participants: Sequence[Indexed], phase: str) -> AbstractContextManager[None]:
        """Charge the time inside the context to all participants of this rank, in equal parts."""
        return self._charge(participants, phase, EVERYONE)

    @contextmanager
    def _charge(self, participants: Sequence[Indexed], phase: str, traced: tuple[int, ...]) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        # A GPU works asynchronously, so wait for it here; otherwise the next phase would be charged.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        end = time.perf_counter()
        for participant in participants:
            self.seconds[participant.index][phase] += (end - begin) / len(participants)
        if self._trace is not None:
            self._trace.phase(phase, self._round, begin, end, traced)
