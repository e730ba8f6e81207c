"""What the kernel is asked for."""

import errno
import os
import platform
import subprocess
import sys
import time

import pytest

from fedh2l_mpi.runtime import processes

ASK = """
import ctypes, os, platform, struct
from fedh2l_mpi.runtime.processes import take_long_turns
os.nice(3)
taken = take_long_turns(0.04)
error = ctypes.get_errno()
buffer = ctypes.create_string_buffer(56)
number = {"x86_64": 315, "aarch64": 275, "ppc64le": 356}[platform.machine()]
assert ctypes.CDLL(None).syscall(number, 0, buffer, 56, 0) == 0
_, policy, _, nice, _, runtime_ns = struct.unpack_from("=IIQiIQ", buffer)
print(taken, error, policy == os.SCHED_OTHER, nice, runtime_ns)
"""
linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64", "ppc64le"),
    reason="the system call is known by number on Linux, on some processors",
)


@linux
def test_a_process_ends_with_its_threads_handlers_and_texts_but_without_the_interpreters_clean_up():
    code = (
        "import atexit, logging, sys, threading, time\n"
        "from fedh2l_mpi.runtime import processes\n"
        "class Cleaned:\n"
        "    def __del__(self): print('cleaned', flush=True)\n"
        "kept = Cleaned()\n"
        "atexit.register(print, 'handled')\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('worked'))).start()\n"
        "if len(sys.argv) > 1: sys.modules['coverage'] = sys\n"
        "processes.end(7)\n"
    )
    quick = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (quick.returncode, quick.stdout, quick.stderr) == (7, "worked\nhandled\n", "")
    measured = subprocess.run([sys.executable, "-c", code, "measured"], capture_output=True, text=True, timeout=60)
    assert (measured.returncode, measured.stdout) == (7, "worked\nhandled\ncleaned\n")


# Handlers of C from before and after the call. They get the exit status 1, and so write to file 1, unbuffered.
HANDLERS = """
import ctypes, sys
from fedh2l_mpi.runtime import processes
library = ctypes.PyDLL(None)
def handler(text):
    assert library.on_exit(ctypes.cast(library.dprintf, ctypes.c_void_p), ctypes.c_char_p(text)) == 0
handler(b"earlier ")
print(processes.leave_out_destructors(), flush=True)
handler(b"later ")
library.printf(b"held ")
sys.exit(1) if len(sys.argv) > 1 else processes.end(1)
"""


@pytest.mark.parametrize("preloaded", ["", "libc.so.6"])
@pytest.mark.parametrize("ends_quickly", [True, False])
def test_handlers_of_libraries_loaded_before_are_left_out_unless_one_is_preloaded(preloaded, ends_quickly):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc has on_exit")
    command = [sys.executable, "-c", HANDLERS, *([] if ends_quickly else ["sys.exit"])]
    environ = {**os.environ, "LD_PRELOAD": preloaded}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    expected = f"{not preloaded}\nheld later {'earlier ' if preloaded else ''}"
    assert (ended.returncode, ended.stderr, ended.stdout) == (1, "", expected)


@linux
def test_long_turns_are_taken_and_leave_policy_and_niceness_as_they_are():
    taken, error, policy, nice, runtime_ns = subprocess.check_output([sys.executable, "-c", ASK], text=True).split()
    if int(error) == errno.EPERM:
        pytest.skip("the system call is not allowed here")
    assert (taken, int(error)) == ("True", 0)
    niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    assert (policy, int(nice)) == ("True", niceness)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release >= (6, 12):
        assert int(runtime_ns) == 40_000_000


@linux
def test_other_policies_stay_what_they_are():
    ask = "import os; from fedh2l_mpi.runtime.processes import take_long_turns\n"
    ask += "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); print(take_long_turns())\n"
    ask += "print(os.sched_getscheduler(0) == os.SCHED_IDLE)"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True).split() == ["False", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_the_start_of_a_process_is_told_by_the_clock():
    before_s = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started_s = processes.start_s(process.pid)
        process.kill()
    # The machine's boot is known to the second.
    assert before_s - 1.5 < started_s < time.time() + 1.5
    assert processes.start_s(process.pid) is None


def test_a_process_runs_until_it_is_killed_be_it_noticed_or_not():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert processes.is_running(process.pid)
        process.kill()
        # Not taken notice of: a zombie stays.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.is_running(process.pid)
    assert not processes.is_running(process.pid)
    assert not processes.is_running(2**40)
