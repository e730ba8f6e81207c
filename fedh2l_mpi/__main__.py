"""`python -m fedh2l_mpi`: share the imports of a node's ranks where it pays, then run the main program."""

import os
import sys

from fedh2l_mpi.runtime import shared_imports


def main() -> None:
    """Run the command line of this process and exit."""
    _open_closed_streams()
    # Sharing begins before the shared modules are imported. The main program parses the command line later.
    mode = shared_imports.mode_of(sys.argv[1:], os.environ)
    parent = shared_imports.begin(_is_run, mode) if mode in (shared_imports.AUTO, shared_imports.ALWAYS) else None
    from fedh2l_mpi.cli import main as program

    try:
        program.main(parent)
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        from fedh2l_mpi.runtime import processes

        processes.end(ended.code)


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
