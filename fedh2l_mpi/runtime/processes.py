"""Read facts about processes of this machine, from Linux or with the commands of macOS, and change this process."""

import atexit
import ctypes
import os
import platform
import resource
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedh2l_mpi.runtime.clocks import Patience

if TYPE_CHECKING:
    from subprocess import CompletedProcess

# Seconds between looks at a program that this process waits for.
LOOK_S = 0.25
# Longest wait for a command of the system that only prints a fact.
COMMAND_S = 10.0
# Longer than filling the caches takes, and shorter than a round.
TURN_S = 0.05
# Variables that load a library into every program: the dynamic loader's, and CUDA's for profilers.
WORK_AT_EXIT = ("LD_PRELOAD", "LD_AUDIT", "CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH")
# The system call's number, because C libraries before glibc 2.41 have no function for it.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "ppc64le": 355}
# struct sched_attr: size, policy, flags, nice, priority, runtime [ns], deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")


def end(code: int) -> NoReturn:
    """Exit like `sys.exit`, but without the interpreter's clean-up of its objects, which costs time and memory.

    The clean-up takes half a CPU second with torch, and writes to every page of memory, also to those that ranks share.
    What comes before it comes here, too: the end of threads, the handlers of `atexit`, and the streams' last text. A
    debugger, a profiler or a measurement of coverage has work to do at the very end, so then nothing is left out.
    """
    watched = sys.gettrace() or sys.getprofile() or sys.flags.inspect or {"coverage", "pydevd"} & set(sys.modules)
    if watched or os.name != "posix":
        sys.exit(code)
    # The interpreter's own steps, in their order.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # The interpreter says in its own words that a stream is closed or full.
        sys.exit(code)
    # C's `exit` instead of `os._exit`, because MPICH leaves the job in a handler of C's; otherwise its launcher takes
    # the process for a crashed one. PyDLL keeps the interpreter's lock, so no other thread runs Python meanwhile.
    library = ctypes.PyDLL(None)
    # `leave_out_destructors` ends the process before C itself writes what its streams still hold.
    library.fflush(None)
    library.exit(code)
    os._exit(code)


def leave_out_destructors(environ: Mapping[str, str] = os.environ) -> bool:
    """Let the exit of this process leave out the handlers of C that the libraries loaded so far have registered.

    PyTorch's destroy its table of operators, object by object. In a forked process, this copies every page of them.
    Handlers that are registered later, such as MPI's, still run.

    Returns
    -------
    bool
        False where the C library has no `on_exit` (only glibc has it), or where a library that the user preloads or
        injects, such as a profiler, may write its results at the end. Then nothing is changed.

    Source: on_exit(3). Handlers run in the reverse order of their registration, and `_exit` runs no further ones.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "on_exit") or any(environ.get(name) for name in WORK_AT_EXIT):
        return False
    return library.on_exit(ctypes.cast(library._exit, ctypes.c_void_p), None) == 0


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on. Item 0 is the state, 1 the parent, 19 the start in ticks.

    Raises
    ------
    OSError
        If there is no such process.

    Source: proc(5). The search starts at the last `)`, because the name in field 2 may contain any character.
    """
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].decode().split()


def is_running(pid: int) -> bool:
    """Return True if a process of this machine runs. A zombie does not count as running."""
    try:
        return stat_fields(pid)[0] not in ("Z", "X")
    except (OSError, IndexError):
        pass
    try:
        # /proc may hide other users' processes (hidepid), or be missing, so ask the kernel.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # It runs, but belongs to another user.
    return True


def start_ticks(pid: int) -> int | None:
    """Return the start of a process, in ticks since the boot of the machine; None if it is not visible."""
    try:
        return int(stat_fields(pid)[19])
    except (OSError, IndexError):
        return None


def start_mark(pid: int) -> str | None:
    """Return a text that no other process with this number has: its start, and the id of the machine's boot.

    The start is in ticks, which do not depend on the clock, as that may be set. On macOS it is in seconds of the clock.
    None if the process is not visible.
    """
    if sys.platform == "darwin":
        return _start_mark_of_ps(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    ticks = start_ticks(pid)
    return None if ticks is None else f"{ticks} {boot}"


def _start_mark_of_ps(pid: int) -> str | None:
    """Return the start and the boot as the commands ps and sysctl of macOS print them."""
    # `ps` writes the start as `Sat Nov 28 03:11:56 2026`, in the environment's language and time zone.
    start = _said("ps", "-o", "lstart=", "-p", str(pid))
    boot = _said("sysctl", "-n", "kern.bootsessionuuid")
    return f"{'-'.join(start.split())} {boot}" if start and boot else None


def _said(*command: str) -> str:
    """Return the one line that a command prints; empty if there is no such command, or it fails."""
    # Imported here, because a proxy of `--share-imports` starts no programs.
    import subprocess

    try:
        ended = run_program(command, COMMAND_S, text=True, env={**os.environ, "LC_ALL": "C", "TZ": "UTC"})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return str(ended.stdout).strip() if ended.returncode == 0 else ""


def start_s(pid: int) -> float | None:
    """Return the start of a process [s since the epoch], by the current clock; None if it is not visible."""
    ticks = start_ticks(pid)
    try:
        with open("/proc/stat") as stat:
            boot_s = next(int(line.split()[1]) for line in stat if line.startswith("btime "))
    except (OSError, StopIteration):
        return None
    return None if ticks is None else boot_s + ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    """Return the memory of this process: what it has now on Linux, elsewhere the most that it has had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return most_resident_bytes()


def most_resident_bytes() -> int:
    """Return the most memory that this process has had.

    Source: getrusage(2), where `ru_maxrss` is in KiB on Linux, and in bytes on macOS.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_program(command: Sequence[str], patience_s: float, **options: Any) -> "CompletedProcess[Any]":
    """Run a program and return its captured output, as `subprocess.run` does, but with a limit for this process's time.

    A job that is stopped and woken up has not used its patience meanwhile, and the program was stopped, too.

    Parameters
    ----------
    patience_s : float
        Longest wait for the program's end [s].
    options
        Further options of `subprocess.Popen`, such as `text`.

    Raises
    ------
    OSError
        If the program cannot be started.
    subprocess.TimeoutExpired
        If the program does not end within the limit. It is killed.
    """
    # Imported here, because a proxy of `--share-imports` starts no programs.
    import subprocess

    patience = Patience(patience_s)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=patience.slice_s(LOOK_S))
                    return subprocess.CompletedProcess(command, process.wait(), out, err)
                except subprocess.TimeoutExpired:
                    if patience.is_over:
                        raise subprocess.TimeoutExpired(command, patience_s) from None
        except BaseException:
            process.kill()
            raise


def discard_output() -> None:
    """Redirect standard output to nowhere; otherwise Python writes the rest again at exit, and fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def take_long_turns(turn_s: float = TURN_S) -> bool:
    """Ask Linux for longer time slices for this thread and the threads that it will start.

    Linux's own slices of 1 to 3 ms are short if there are more processes than cores, because each slice begins with
    refilling the caches. Longer slices reduce a round of 16 ranks on two cores to 0.7 of the time. The share of the
    processor does not change. A process that asked for shorter slices, or mostly sleeps, still runs first.

    Returns
    -------
    bool
        True if Linux accepted the request (before 6.12 it accepts and ignores it). False on other systems, or if this
        process has no permission.

    Source: sched(7), sched_setattr(2); linux/kernel/sched/syscalls.c, "request custom slice".
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return False
    try:
        policy, nice = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    except OSError:
        return False
    # Real-time and idle policies were chosen by the user, and have no such slices.
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, 0, nice, 0, round(turn_s * 1e9), 0, 0)
    return ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0) == 0


def processor() -> str:
    """Return the name of this machine's CPU, or its architecture if the CPU has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (
            _said("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else ""
        ) or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
