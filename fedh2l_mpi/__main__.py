"""`python -m fedh2l_mpi`: share imports if the user asked for it, then run the main program."""

import os
import sys

from fedh2l_mpi.runtime import shared_imports


def main() -> None:
    """Run the command line of this process and exit."""
    _open_closed_streams()
    # Sharing begins before the shared modules are imported. The main program parses the command line later.
    parent = shared_imports.begin(_is_run) if shared_imports.OPTION in sys.argv[1:] else None
    from fedh2l_mpi.cli import main as program

    program.main(parent)


def _open_closed_streams() -> None:
    """Connect a standard stream that was closed (`>&-`) to the null device.

    Otherwise the next opened file would get the stream's number, and the text that a library prints.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The lowest free number is this stream's. Children inherit it.
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, "r" if name == "stdin" else "w", encoding="utf-8"))


def _is_run() -> bool:
    from fedh2l_mpi.cli import main as program

    return program.is_run(sys.argv[1:])


if __name__ == "__main__":
    main()
