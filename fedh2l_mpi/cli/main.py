"""Main program of every process: execute the command line, and end the whole job if any rank fails."""

import faulthandler
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER, UserError
from fedh2l_mpi.lifecycle.failure import end_job, report
from fedh2l_mpi.lifecycle.signals import Signals
from fedh2l_mpi.runtime import libraries, processes
from fedh2l_mpi.runtime.clocks import stay
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.shared_imports import ParentProcess
from fedh2l_mpi.runtime.world import World

SILENT_RANKS_STAY_S = 5.0


def main(parent: ParentProcess | None = None) -> NoReturn:
    """Run the command line of this process and exit.

    Parameters
    ----------
    parent : ParentProcess or None
        The process that started this one; None: its parent.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A folder's name need not be text, and is printed all the same. Standard error replaces such bytes already.
        sys.stdout.reconfigure(errors="backslashreplace")
    # kill -USR2 prints the place where a rank hangs, because Python's own handlers do not run in a blocked MPI call.
    faulthandler.register(signal.SIGUSR2)
    # Before the ranks meet, all of them find the same mistake or print the same text, so only the first prints.
    launch = Launch.from_environment(os.environ)
    is_first = launch.rank == 0
    try:
        command = commands.parse(sys.argv[1:], speaks=is_first)
        if not commands.needs_world(command) and not is_first:
            sys.exit(0)
        # From here on, a signal that would end this process asks it to stop in order.
        signals = Signals(parent) if commands.is_run(command) else None
        if signals is not None:
            # MPI and torch start threads that inherit this setting, so it comes first.
            processes.take_long_turns()
        world = commands.world_of(command)
        if signals is not None:
            signals.install()
    except UserError as error:
        report(str(error), speaks=is_first)
        if not is_first:
            # A launcher ends the job when the first process fails. The rank that prints must be that process.
            stay(SILENT_RANKS_STAY_S)
        sys.exit(EXIT_USER)
    try:
        code = commands.execute(command, world, signals)
    except UserError as error:
        _leave(error, world)
    except BrokenPipeError:
        # The reader of the output has closed it (`... --keys | head`).
        processes.discard_output()
        world.abort(EXIT_FAULT) if world.comm is not None else sys.exit(EXIT_FAULT)
    except OSError as error:
        if commands.needs_world(command) or error.filename is None:
            end_job(error, world)
        # The path's name is too long, or its folder may not be entered.
        report(f"{error.filename!s}: {error.strerror}. Fix: name another path.")
        sys.exit(EXIT_USER)
    except KeyboardInterrupt as error:
        # A user who interrupts twice, or a launcher that signals every process, asks for the same end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        hint = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        report(f"{world}, {world.at}: interrupted{hint if is_first else ''}")
        world.abort(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if mistake := libraries.missing(error):
            # Usually the library is missing on every rank. Rank 0 then ends the job before the others print the same.
            stay(SILENT_RANKS_STAY_S if world.rank else 0.0)
            _leave(mistake, world)
        end_job(error, world)
    except BaseException as error:
        end_job(error, world)
    # All is done, so an interrupt ends this process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if signals is not None:
        signals.ignore()
    world.leave(code)


def is_run(arguments: Sequence[str]) -> bool:
    """Return True if these arguments ask for a run and have no mistake."""
    try:
        return commands.is_run(commands.parse(arguments, speaks=False))
    except (UserError, SystemExit):
        return False


def _leave(error: UserError, world: World) -> NoReturn:
    """Print a mistake and exit; end the job unless all ranks have found the same mistake."""
    report(str(error), speaks=world.rank == 0 or not error.agreed)
    if world.comm is not None and not error.agreed:
        world.abort(EXIT_USER)
    world.leave(EXIT_USER)
