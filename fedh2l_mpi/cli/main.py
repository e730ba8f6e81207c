"""The program of every process: do what the command line asks; end the whole job if any rank fails."""

import contextlib
import faulthandler
import io
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_LATE,
    EXIT_USER,
    DivergedError,
    LateRankError,
    UserError,
)
from fedh2l_mpi.lifecycle.signals import Signals
from fedh2l_mpi.runtime import processes
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.shared_imports import ParentProcess
from fedh2l_mpi.runtime.world import World

SILENT_RANKS_STAY_S = 5.0


def main(parent: ParentProcess | None = None) -> NoReturn:
    """Run the command line of this process and exit.

    Parameters
    ----------
    parent : ParentProcess or None
        Who has started this process; None: its parent.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A folder's name need not be text, and is printed all the same; standard error is so anyway.
        sys.stdout.reconfigure(errors="backslashreplace")
    # kill -USR2 prints where a hanging rank is; Python's own handlers do not run inside a blocked MPI call.
    faulthandler.register(signal.SIGUSR2)
    # Before the ranks have met, each finds the same mistake or prints the same text: one of them speaks.
    launch = Launch.from_environment(os.environ)
    is_first = launch.rank == 0
    try:
        command = commands.parse(sys.argv[1:], speaks=is_first)
        if not commands.needs_world(command) and not is_first:
            sys.exit(0)
        # From here on, what would end this process asks it to stop in order.
        signals = Signals(parent) if commands.is_run(command) else None
        if signals is not None:
            # Before MPI and torch start threads, which do as the one that starts them.
            processes.take_long_turns()
        world = commands.world_of(command)
    except UserError as error:
        _say(str(error), speaks=is_first)
        if not is_first:
            # A launcher ends the job when its first process leaves with an error: let that be the one that has spoken.
            time.sleep(SILENT_RANKS_STAY_S)
        sys.exit(EXIT_USER)
    try:
        code = commands.execute(command, world, signals)
    except UserError as error:
        _say(str(error), speaks=world.rank == 0 or not error.agreed)
        if world.comm is not None and not error.agreed:
            world.abort(EXIT_USER)
        sys.exit(EXIT_USER)
    except (LateRankError, DivergedError) as error:
        _say(f"{world}, {world.at}: {error}")
        world.abort(EXIT_LATE if isinstance(error, LateRankError) else EXIT_FAULT)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`... --keys | head`).
        processes.discard_output()
        world.abort(EXIT_FAULT) if world.comm is not None else sys.exit(EXIT_FAULT)
    except OSError as error:
        if commands.needs_world(command) or error.filename is None:
            _end_after(error, world)
        # A path that cannot be looked at: of a name that is too long, in a folder that may not be entered.
        _say(f"{error.filename!s}: {error.strerror}; name another one")
        sys.exit(EXIT_USER)
    except KeyboardInterrupt:
        # Whoever interrupts twice, or a launcher that signals every process of ours, means the same.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say(f"{world}, {world.at}: interrupted")
        world.abort(EXIT_INTERRUPTED)
    except BaseException as error:
        _end_after(error, world)
    sys.exit(code)


def is_run(arguments: Sequence[str]) -> bool:
    """Whether these arguments, without a mistake, ask for a run."""
    try:
        return commands.is_run(commands.parse(arguments, speaks=False))
    except (UserError, SystemExit):
        return False


def _end_after(error: BaseException, world: World) -> None:
    """Tell of an error that nobody expected, and end the job: a rank that just left would leave the others waiting."""
    # sys.exit() from inside a run, too, is such an error, be it with code 0.
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else EXIT_FAULT
    if type(error).__module__.startswith("mpi4py") and (dead := world.dead_ranks(patience_s=2.0)):
        # The one that MPI fails on is not the one to blame.
        have = "have" if len(dead) > 1 else "has"
        _say(f"{world}, {world.at}: MPI failed, because {' and '.join(dead)} {have} died: killed, or out of memory")
    else:
        _say(f"{world}, {world.at}: failed with {type(error).__name__}: {error}\n{traceback.format_exc().rstrip()}")
    world.abort(code or EXIT_FAULT)


def _say(message: str, speaks: bool = True) -> None:
    """Print an error, and leave it in the rank's log where there is one."""
    if speaks:
        # Who cannot be told must not keep us from what follows: the log, and the end of the job.
        with contextlib.suppress(OSError, ValueError):
            print(f"fedh2l_mpi: error: {message}", file=sys.stderr, flush=True)
        log = logging.getLogger("fedh2l_mpi")
        if log.handlers:
            log.error(message, extra={"file_only": True})
