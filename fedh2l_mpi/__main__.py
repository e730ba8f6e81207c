"""`python -m fedh2l_mpi`: hand over to the program; before that, share what it imports if that is asked for."""

import sys

from fedh2l_mpi import shared_imports


def main() -> None:
    """Run the command line of this process and exit."""
    # Looked for before anything is imported that could be shared; the program reads the command line in earnest.
    origin = shared_imports.begin(_is_run) if shared_imports.OPTION in sys.argv[1:] else None
    from fedh2l_mpi import program

    program.main(origin)


def _is_run() -> bool:
    from fedh2l_mpi import program

    return program.is_run(sys.argv[1:])


if __name__ == "__main__":
    main()
