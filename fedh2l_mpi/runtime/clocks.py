"""Time of a process: how long it has waited, without the time in which it stood still, and how its clock differs.

Slurm's suspension, gang scheduling, a frozen container and Ctrl-Z stop all processes of a job, while every clock of the
machine runs on. The process that wakes up first must not blame the others for that time. Every wait with a limit
therefore counts its time with `Patience`.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedh2l_mpi.runtime.world import World

PINGS = 10
# A waiting process looks many times a second, so a longer gap between two looks is its own: it was stopped, or busy.
GAP_S = 1.0
# No single gap may use up a short limit.
GAP_SHARE = 0.25
PAUSE_S = 0.1


class Patience:
    """Limit of a wait, which counts only time in which the waiting process itself ran.

    It adds up the times between two looks. A gap counts at most GAP_S, and at most GAP_SHARE of the limit.

    Parameters
    ----------
    limit_s : float
        Longest wait [s].

    Attributes
    ----------
    waited_s : float
        Time waited so far, up to the last look [s].
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._gap_s = limit_s, min(GAP_S, GAP_SHARE * limit_s)
        self.waited_s = 0.0
        self._looked = time.monotonic()

    @property
    def left_s(self) -> float:
        """Time that is left [s]; reading it is a look."""
        now = time.monotonic()
        self.waited_s += min(now - self._looked, self._gap_s)
        self._looked = now
        return max(0.0, self._limit_s - self.waited_s)

    @property
    def is_over(self) -> bool:
        """True if no time is left; reading it is a look."""
        return self.left_s <= 0.0

    def slice_s(self, longest_s: float = PAUSE_S) -> float:
        """Return the longest time until the next look that counts in full and is left [s], at most `longest_s`."""
        return min(longest_s, self._gap_s, self.left_s)

    def pause(self, longest_s: float = PAUSE_S) -> None:
        """Sleep until the next look, at most `longest_s` [s]."""
        time.sleep(self.slice_s(longest_s))


def stay(seconds: float) -> None:
    """Sleep for a time in which this process runs. `time.sleep` would end as soon as a stopped process wakes up."""
    patience = Patience(seconds)
    while not patience.is_over:
        patience.pause()


class Timer:
    """Call of an action in a thread of its own, after a time in which this process runs. It starts at once.

    The thread never keeps a process from ending.

    Parameters
    ----------
    seconds : float
        Time before the call [s].
    action : callable
        Called unless `cancel` comes first.
    """

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        # Imported here, because the proxies of `--share-imports` need no threads.
        import threading

        self._patience, self._action = Patience(seconds), action
        self._cancelled = threading.Event()
        threading.Thread(target=self._run, name="timer", daemon=True).start()

    def cancel(self) -> None:
        """Make sure that the action is not called."""
        self._cancelled.set()

    def _run(self) -> None:
        while not self._patience.is_over:
            if self._cancelled.wait(self._patience.slice_s()):
                return
        self._action()


def clock_offsets(
    world: "World", partners: Sequence[int], deadline_s: float, clock: Callable[[], float] = time.time
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
