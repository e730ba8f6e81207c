"""Report an error, and end the whole job if not all ranks share it."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from fedh2l_mpi.errors import EXIT_FAULT, EXIT_LATE, EXIT_USER, DivergedError, LateRankError, UserError
from fedh2l_mpi.runtime.terminal import say
from fedh2l_mpi.runtime.world import World


@contextlib.contextmanager
def end_job_on_error(world: World) -> Iterator[None]:
    """End the job if an error leaves the context that the other ranks may not have; let every other error pass.

    In a single process every error passes, so that a script or a notebook can catch it.
    """
    try:
        yield
    except BaseException as error:
        if world.comm is None or (isinstance(error, UserError) and error.agreed):
            raise
        if isinstance(error, UserError):
            report(str(error))
            world.abort(EXIT_USER)
        end_job(error, world)


def end_job(error: BaseException, world: World) -> NoReturn:
    """Report an error and end the job, because a rank that just left would leave the others waiting."""
    if isinstance(error, LateRankError | DivergedError):
        # These are expected errors: their text says all, and a traceback would hide it.
        report(f"{world}, {world.at}: {error}")
        world.abort(EXIT_LATE if isinstance(error, LateRankError) else EXIT_FAULT)
    # sys.exit() inside a run counts as an unexpected error, even with code 0.
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else EXIT_FAULT
    if type(error).__module__.startswith("mpi4py") and (dead := world.dead_ranks(patience_s=2.0)):
        # The rank on which MPI fails is not the one to blame.
        have = "have" if len(dead) > 1 else "has"
        report(f"{world}, {world.at}: MPI failed, because {' and '.join(dead)} {have} died: killed, or out of memory")
    else:
        report(f"{world}, {world.at}: failed with {type(error).__name__}: {error}\n{traceback.format_exc().rstrip()}")
    world.abort(code or EXIT_FAULT)


def report(message: str, speaks: bool = True) -> None:
    """Print an error on standard error, and write it into the rank's log if there is one."""
    if speaks:
        # A closed standard error must not prevent what follows: the log, and the end of the job.
        with contextlib.suppress(OSError, ValueError):
            say(f"fedh2l_mpi: error: {message}", file=sys.stderr, flush=True)
        log = logging.getLogger("fedh2l_mpi")
        if log.handlers:
            log.error(message, extra={"file_only": True})
