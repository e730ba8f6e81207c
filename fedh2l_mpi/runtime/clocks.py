"""How far the clocks of two ranks are apart, by messages there and back."""

import time
from array import array
from collections.abc import Callable, Sequence

from fedh2l_mpi.runtime.world import World

PINGS = 10


def clock_offsets(
    world: World, partners: Sequence[int], deadline_s: float, clock: Callable[[], float] = time.time
) -> list[tuple[float, float]]:
    """On rank 0, how far ahead of its own each partner's clock is, and how sure that is. **Collective.**

    Half the time of a ping and its answer is taken off; the fastest of several is believed.

    Parameters
    ----------
    clock : callable
        What is compared: the time of day, or another clock [s].

    Returns
    -------
    list of tuple
        Offset and its uncertainty [s]; empty on other ranks.
    """
    comm = world.comm
    if comm is None:
        return []
    offsets = []
    told = array("d", [0.0])
    for partner in partners:
        answers = []
        for _ in range(PINGS):
            if world.rank == 0:
                begin, sent = time.perf_counter(), clock()
                requests = [comm.Irecv(told, partner, 1), comm.Isend(b"\0", partner, 1)]
                world.wait(requests, [partner, partner], deadline_s, "answer about its clock")
                took = time.perf_counter() - begin
                answers.append((took, told[0] - (sent + took / 2)))
            elif world.rank == partner:
                world.wait([comm.Irecv(bytearray(1), 0, 1)], [0], deadline_s, "question about the clock")
                world.wait([comm.Isend(array("d", [clock()]), 0, 1)], [0], deadline_s, "receipt of an answer")
        if answers:
            took, offset = min(answers)
            offsets.append((offset, took / 2))
    return offsets
