"""Stopped runs, and what is logged about them."""

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs_in_process import run

from fedh2l_mpi.lifecycle.signals import REQUESTS, Signals, StopRequest
from fedh2l_mpi.run_directory import RunDirectory


@pytest.fixture
def told(caplog) -> pytest.LogCaptureFixture:
    """What is logged."""
    logging.getLogger("fedh2l_mpi").propagate = True
    return caplog


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped after 3 rounds, with checkpoints after 1, 2 and 3."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    run(out, "models=[mlp]", "rounds=5", "checkpoint.every=1", "checkpoint.keep=3", "evaluation.every=1", stop_after=3)
    assert [path.name for path in RunDirectory(out).committed()] == [f"round-{n:08d}" for n in (3, 2, 1)]
    return out


@pytest.fixture
def copy(tmp_path, stopped) -> RunDirectory:
    """A copy of it that may be damaged."""
    shutil.copytree(stopped, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def terminated() -> Iterator[Signals]:
    """Of a process that was asked to end while it started."""
    handlers = {number: signal.getsignal(number) for number in (*REQUESTS, signal.SIGCONT)}
    try:
        signals = Signals()
        os.kill(os.getpid(), signal.SIGTERM)
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert signals.asked == StopRequest.TERM
