"""Read a command's options: a mistake raises UserError, and one rank of many prints."""

import argparse
import sys
from typing import Any, NoReturn

from fedh2l_mpi.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would exit; prints nothing unless it `speaks`."""

    speaks = True
    # Options whose value is the next word even if that begins with a dash.
    verbatim: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the words as argparse does, and the words after `verbatim` options as their values."""
        words, joined = iter(sys.argv[1:] if args is None else args), []
        for word in words:
            value = next(words, None) if word in self.verbatim else None
            joined.append(word if value is None else f"{word}={value}")
        return super().parse_known_args(joined, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        if self.speaks:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of exiting."""
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def new_parser(program: str, description: str, speaks: bool, epilog: str | None = None) -> Parser:
    """Return a parser whose description and epilog keep their lines."""
    made = Parser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.speaks = speaks
    return made


def positive(text: str) -> int:
    """Read a whole number from 1."""
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number >= 1")
    return number


def add_set(parser: Parser, whose: str) -> None:
    """Add the option `--set`, whose values are stored in `overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help=f"override a key of {whose} (repeatable)",
    )
