"""Waits count the time in which the waiting process ran, and no other."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fedh2l_mpi.runtime import clocks

WAITS = """
import json, os, signal, subprocess, threading, time
from fedh2l_mpi.errors import LateRankError
from fedh2l_mpi.runtime import clocks, processes
from fedh2l_mpi.runtime.world import World

LIMIT_S = 0.8

class Never:
    @staticmethod
    def Testall(requests, statuses): return False
    def Get_status(self): return False

def late_message():
    try: World(None).wait([Never()], [1], LIMIT_S, "message")
    except LateRankError: return
    raise AssertionError

def slow_program():
    try: processes.run_program(["sleep", "60"], LIMIT_S)
    except subprocess.TimeoutExpired: return
    raise AssertionError

def timer():
    called = threading.Event()
    clocks.Timer(LIMIT_S, called.set)
    called.wait(60)

def timed(wait):
    begin = time.monotonic()
    wait()
    waited_s[wait.__name__] = time.monotonic() - begin

waited_s = {}
def stay(): clocks.stay(LIMIT_S)

threads = [threading.Thread(target=timed, args=[wait]) for wait in (late_message, slow_program, timer, stay)]
for thread in threads: thread.start()
os.kill(os.getpid(), signal.SIGSTOP)
for thread in threads: thread.join()
print(json.dumps(waited_s))
"""


def test_a_wait_counts_the_time_between_looks_but_little_of_a_gap(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = clocks.Patience(6.0)
    for step_s in (0.5, 900.0, 0.5, 3.0, 2.0):
        now[0] += step_s
        assert not patience.is_over
    # The three long gaps count one second each.
    assert patience.waited_s == pytest.approx(0.5 + 1 + 0.5 + 1 + 1)
    assert patience.left_s == pytest.approx(2.0)
    assert patience.slice_s(9.0) == pytest.approx(1.0)
    for _ in range(3):
        now[0] += 0.75
    assert not patience.is_over, "what is not looked at is one gap"
    now[0] += 1.25
    assert patience.is_over
    # A short limit is not used up by a single gap.
    short = clocks.Patience(0.4)
    for _ in range(3):
        now[0] += 50.0
        assert short.left_s > 0.05
    now[0] += 50.0
    assert short.is_over
    assert clocks.Patience(0.0).is_over


def test_a_stopped_process_goes_on_waiting_after_it_is_woken():
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    # It stops itself once its waits have begun.
    os.waitpid(process.pid, os.WUNTRACED)
    time.sleep(2.0)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=30)
    waited_s = json.loads(said)
    assert set(waited_s) == {"late_message", "slow_program", "timer", "stay"}
    # The stop counts a quarter of the limit at most.
    assert all(2.0 + 0.5 < seconds < 20 for seconds in waited_s.values()), waited_s
