"""A command of the program: its name, its help, its options and its work."""

import argparse
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.cli.options import Parser
from fedh2l_mpi.lifecycle.signals import Signals
from fedh2l_mpi.runtime import world as worlds
from fedh2l_mpi.runtime.world import World

SCRIPT = "fedh2l-mpi"
WIDTH = 79
EXIT_CODES = "Exit codes: 0 done, 2 a mistake in the request."


@dataclass(frozen=True)
class Context:
    """Surroundings of a command: the words it was given, its ranks, and the signals that may stop it."""

    words: tuple[str, ...]
    world: World
    signals: Signals | None


def _accept(options: argparse.Namespace) -> None:
    """Accept any options."""


def _alone(options: argparse.Namespace) -> bool:
    """Run in one process."""
    return False


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes
    ----------
    name : str
        The first word of the command line; empty for a run, which has none.
    arguments : str
        Positional arguments in the main help, such as `RUN...`.
    summary : str
        One line of the main help.
    meaning : str
        Introduction of the command's own help.
    examples : pair of (str, str)
        A purpose and a command line, in which `{program}` stands for the program.
    add_options : callable
        Adds the options to a parser.
    execute : callable
        Does the work and returns the exit code.
    check : callable
        Raises UserError if options do not fit together.
    exit_codes : str
        Meaning of the exit codes.
    together : callable
        Returns True if, with these options, all ranks run the command together.
    connect : callable
        Returns the world of all ranks.
    """

    name: str
    arguments: str
    summary: str
    meaning: str
    examples: tuple[tuple[str, str], tuple[str, str]]
    add_options: Callable[[Parser], None]
    execute: Callable[[argparse.Namespace, Context], int]
    check: Callable[[argparse.Namespace], None] = _accept
    exit_codes: str = EXIT_CODES
    together: Callable[[argparse.Namespace], bool] = _alone
    connect: Callable[[], World] = worlds.connect

    @property
    def epilog(self) -> str:
        """The end of the command's help: exit codes, then the examples."""
        lines = [textwrap.fill(self.exit_codes, WIDTH), "", "Examples:"]
        for purpose, line in self.examples:
            lines += [f"  # {purpose}", f"  {line.format(program=program())}"]
        return "\n".join(lines)


def program() -> str:
    """Return the program's name as the user typed it."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else "python -m fedh2l_mpi"
