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


@pytest.mark.parametrize(("number", "before"), [*((number, "") for number in REQUESTS), (signal.SIGHUP, "ignored")])
def test_a_signal_is_noted_unless_it_is_ignored_and_a_late_one_kills_nobody(number, before):
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, str(int(number)), before], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
