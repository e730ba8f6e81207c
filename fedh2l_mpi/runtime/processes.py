"""What Linux tells of a process of this machine, and what it is asked for."""

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

# Long beside what filling the caches takes, short beside a round.
TURN_S = 0.05
# The system call's number, which C libraries have had no name for before glibc 2.41.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "ppc64le": 355}
# struct sched_attr: size, policy, flags, nice, priority, runtime [ns], deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent, ...; the 22nd, the start in ticks, is item 19.

    Raises
    ------
    OSError
        If there is no such process.

    Source: proc(5); the name, in field 2, may hold anything.
    """
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].decode().split()


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; a killed one that its parent has not yet noticed does not."""
    try:
        return stat_fields(pid)[0] not in ("Z", "X")
    except (OSError, IndexError):
        pass
    try:
        # /proc may hide other users' processes (hidepid), or not be there.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's: it lives
    return True


def start_ticks(pid: int) -> int | None:
    """When a process of this machine started, in ticks since the machine's boot; None if that cannot be seen."""
    try:
        return int(stat_fields(pid)[19])
    except (OSError, IndexError):
        return None


def start_s(pid: int) -> float | None:
    """When a process of this machine started [s since the epoch], by its clock of now; None if that cannot be seen."""
    ticks = start_ticks(pid)
    try:
        with open("/proc/stat") as stat:
            boot_s = next(int(line.split()[1]) for line in stat if line.startswith("btime "))
    except (OSError, StopIteration):
        return None
    return None if ticks is None else boot_s + ticks / os.sysconf("SC_CLK_TCK")


def discard_output() -> None:
    """What this process prints goes nowhere from now on: Python would try what is left again, and fail at the exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def take_long_turns(turn_s: float = TURN_S) -> bool:
    """Ask Linux to give this thread, and all that it will start, a processor for longer at a time; shares stay.

    Where more processes compute than there are cores, each of Linux's own turns of 1 to 3 ms begins with what another
    process left in the caches: a round of 16 ranks on two cores takes 0.7 of the seconds when turns are longer. A
    process that has asked for shorter ones, or mostly sleeps, still comes first.

    Returns
    -------
    bool
        Whether Linux took the request (before 6.12 it does, and ignores it); False on other systems, and where this
        process may not ask.

    Source: sched(7), sched_setattr(2); linux/kernel/sched/syscalls.c, "request custom slice".
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return False
    try:
        policy, nice = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    except OSError:
        return False
    # Real-time and idle policies are somebody's choice, and know no turns of this kind.
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, 0, nice, 0, round(turn_s * 1e9), 0, 0)
    return ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0) == 0


def processor() -> str:
    """Name of this machine's CPU; of its architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
