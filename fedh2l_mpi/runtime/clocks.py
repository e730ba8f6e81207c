"""Measure the difference between the clocks of two ranks by messages there and back."""

import time
from array import array
from collections.abc import Callable, Sequence

from fedh2l_mpi.runtime.world import World

PINGS = 10


def clock_offsets(
    world: World, partners: Sequence[int], deadline_s: float, clock: Callable[[], float] = time.time
) -> list[tuple[float, float]]:
    """Measure, on rank 0, how far each partner's clock is ahead of its own. **Collective.**

    Rank 0 sends several pings and uses the fastest. It assumes that the answer took half of the round trip.

    Parameters
    ----------
    partners : sequence of int
        The ranks whose clocks are compared.
    deadline_s : float
        Longest wait for a message [s].
    clock : callable
        Clock to compare [s]: the time of day, or another one.

    Returns
    -------
    list of tuple
        For each partner, the offset and its uncertainty [s]; empty on other ranks.
    """
    comm = world.comm
    if comm is None:
        return []
    offsets = []
    their_time = array("d", [0.0])
    for partner in partners:
        answers = []
        for _ in range(PINGS):
            if world.rank == 0:
                begin, sent = time.perf_counter(), clock()
                requests = [comm.Irecv(their_time, partner, 1), comm.Isend(b"\0", partner, 1)]
                world.wait(requests, [partner, partner], deadline_s, "answer about its clock")
                took = time.perf_counter() - begin
                answers.append((took, their_time[0] - (sent + took / 2)))
            elif world.rank == partner:
                world.wait([comm.Irecv(bytearray(1), 0, 1)], [0], deadline_s, "question about the clock")
                world.wait([comm.Isend(array("d", [clock()]), 0, 1)], [0], deadline_s, "receipt of an answer")
        if answers:
            took, offset = min(answers)
            offsets.append((offset, took / 2))
    return offsets
