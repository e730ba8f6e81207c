"""Whole runs in this process, started and resumed as the command line does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle import run_config, start
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.simulation import Simulation

ALONE = World(None)


@contextmanager
def simulation(
    out: Path, *overrides: str, mode: run_config.Mode = "never", signals: Signals | None = None
) -> Iterator[Simulation]:
    """A run that begins, or goes on, as the command line would have it."""
    stored = run_config.stored_config(str(out), mode)
    config = loading.load(stored, overrides).resolved(1, launched=False)
    hold = start.reserve(ALONE, RunDirectory(out), config, mode)
    try:
        yield Simulation(config, ALONE, hold, signals)
    finally:
        hold.release()


def run(out: Path, *overrides: str, mode: run_config.Mode = "never", stop_after: int | None = None) -> StopRequest:
    """Run to the end, or until a file STOP that appears after so many rounds is seen."""

    def follow(round_index: int, table: object) -> None:
        if round_index + 1 == stop_after:
            (out / "STOP").touch()

    with simulation(out, *overrides, mode=mode) as made:
        return made.run(follow)
