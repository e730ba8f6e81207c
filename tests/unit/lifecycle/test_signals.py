"""Signals that ask a run to stop: noted from the start, without effect when all is done."""

import signal
import subprocess
import sys

import pytest

from fedh2l_mpi.lifecycle.signals import REQUESTS

ENDING = """
import os, signal, subprocess, sys
from fedh2l_mpi.lifecycle.signals import REQUESTS, Signals, StopRequest
number = signal.Signals(int(sys.argv[1]))
if sys.argv[2] == "ignored": signal.signal(number, signal.SIG_IGN)
signals = Signals()
os.kill(os.getpid(), number)
asked = StopRequest.NOTHING if sys.argv[2] == "ignored" else REQUESTS[number]
assert signals.asked == asked, signals.asked

signals.ignore()
# The same signal again and again, until this process has ended.
storm = f"echo; while kill -{number.value} {os.getpid()} 2>/dev/null; do :; done"
subprocess.Popen(["sh", "-c", storm], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.readline()
"""


INTERRUPTING = """
import os, signal, sys
from fedh2l_mpi.lifecycle import signals as module
def interrupt(): os.kill(os.getpid(), signal.SIGINT)
if sys.argv[1] == "ignored": signal.signal(signal.SIGINT, signal.SIG_IGN)
signals = module.Signals()
with signals.interruptible(speaks=True):
    # One Ctrl-C, of which the launcher and the terminal both send the signal.
    interrupt(), interrupt()
    print(signals.asked.reason)
    module.SAME_INTERRUPT_S = 0.0
    try: interrupt()
    except KeyboardInterrupt: print("at once")
try: interrupt()
except KeyboardInterrupt: print("as before")
"""


@pytest.mark.parametrize(("before", "said"), [("", "interrupted at once as before"), ("ignored", "NOTHING")])
def test_the_first_interrupt_of_the_rounds_is_a_request_and_the_second_ends_them(before, said):
    ended = subprocess.run([sys.executable, "-c", INTERRUPTING, before], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split()) == (0, said.split()), ended.stderr
    assert ended.stderr.count("stopping after this round") == (before == "")


@pytest.mark.parametrize(("number", "before"), [*((number, "") for number in REQUESTS), (signal.SIGHUP, "ignored")])
def test_a_signal_is_noted_unless_it_is_ignored_and_a_late_one_kills_nobody(number, before):
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, str(int(number)), before], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
