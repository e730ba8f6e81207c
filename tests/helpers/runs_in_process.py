"""Whole runs in this process, started and resumed as the command line does it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedh2l_mpi import api
from fedh2l_mpi.lifecycle import run_config, start
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.simulation import Simulation

ALONE = World(None)


@contextmanager
def simulation(
    out: Path,
    *overrides: str,
    source: Path | None = None,
    mode: run_config.Mode = "never",
    signals: Signals | None = None,
    listener: Callable[[int, object], None] = lambda index, table: None,
) -> Iterator[Simulation]:
    """A run that starts or resumes as the command line does it."""
    config = run_config.load(source, overrides, str(out), mode).resolved(1, launched=False)
    with start.reserve(ALONE, RunDirectory(out), config, mode) as reservation:
        yield api.assemble(config, ALONE, reservation, signals, listener=listener)


def run(
    out: Path,
    *overrides: str,
    source: Path | None = None,
    mode: run_config.Mode = "never",
    stop_after: int | None = None,
) -> StopRequest:
    """Run to the end, or until a file STOP that appears after so many rounds is seen."""

    def follow(round_index: int, table: object) -> None:
        if round_index + 1 == stop_after:
            (out / "STOP").touch()

    with simulation(out, *overrides, source=source, mode=mode, listener=follow) as made:
        return made.run()


def resumed_at(out: Path) -> int:
    """After how many rounds a run would go on; it does not."""
    with simulation(out, mode="auto") as made:
        made.recorder.close("stopped")
        return made.supervisor.first_round
