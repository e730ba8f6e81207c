"""`python -m fedh2l_mpi`: hand over to the program; before that, share what it imports if that is asked for."""

import os
import sys

from fedh2l_mpi.runtime import shared_imports


def main() -> None:
    """Run the command line of this process and exit."""
    _open_closed_streams()
    # Looked for before anything is imported that could be shared; the program reads the command line in earnest.
    parent = shared_imports.begin(_is_run) if shared_imports.OPTION in sys.argv[1:] else None
    from fedh2l_mpi.cli import main as program

    program.main(parent)


def _open_closed_streams() -> None:
    """Have a standard stream that was closed (`>&-`) lead nowhere.

    The next file to be opened would get its number, and what a library prints with it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The lowest number that is free is this stream's. Children are to have it, too.
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, "r" if name == "stdin" else "w", encoding="utf-8"))


def _is_run() -> bool:
    from fedh2l_mpi.cli import main as program

    return program.is_run(sys.argv[1:])


if __name__ == "__main__":
    main()
