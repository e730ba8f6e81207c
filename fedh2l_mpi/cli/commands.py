"""The list of commands: read a command line, and execute the command that it names."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.cli import analysis, compare, doctor, init, leakage, pack, plan, run, slurm, sweep
from fedh2l_mpi.cli.command import Command, Context, program
from fedh2l_mpi.cli.options import Parser, new_parser
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.lifecycle.signals import Signals
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.world import World

# In the order of the main help.
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        init.COMMAND,
        *analysis.COMMANDS[:2],
        compare.COMMAND,
        *analysis.COMMANDS[2:],
        leakage.COMMAND,
        sweep.COMMAND,
        pack.COMMAND,
        doctor.COMMAND,
        plan.COMMAND,
        slurm.COMMAND,
    )
}


@dataclass(frozen=True)
class Request:
    """A command with the options that were asked for, and the words they were read from."""

    command: Command
    options: argparse.Namespace
    words: tuple[str, ...]


def parse(arguments: Sequence[str], speaks: bool = True) -> Request:
    """Read a command line; `--help` prints if `speaks`, and exits.

    Raises
    ------
    UserError
        If there is no such command, or its options are wrong.
    """
    words = tuple(arguments)
    command = COMMANDS.get(words[0]) if words else None
    if command is not None:
        words = words[1:]
    elif words and words[0].isalpha() and not Path(words[0]).exists():
        hint = did_you_mean(words[0], [*COMMANDS]) or f". Commands: {', '.join(COMMANDS)}"
        raise UserError(f"{words[0]}: neither a command nor a config file{hint}")
    else:
        command, words = run.COMMAND, tuple(shared_imports.with_value(words))
    options = parser(command, speaks).parse_args(list(words))
    command.check(options)
    return Request(command, options, words)


def parser(command: Command, speaks: bool = True) -> Parser:
    """Return a parser of the command's options."""
    meaning = command.meaning
    if command is run.COMMAND:
        heads = {f"{each.name} {each.arguments}": each.summary for each in COMMANDS.values()}
        width = max(map(len, heads))
        lines = [f"  {head:{width}}  {summary}" for head, summary in heads.items()]
        meaning = "\n".join([meaning, "", "Commands, each with a --help of its own:", "", *lines])
    made = new_parser(f"{program()} {command.name}".rstrip(), meaning, speaks, command.epilog)
    command.add_options(made)
    return made


def is_run(request: Request) -> bool:
    """Return True if the request runs a simulation."""
    return request.command is run.COMMAND and needs_world(request)


def needs_world(request: Request) -> bool:
    """Return True if all ranks execute the request together. One process executes any other request, without MPI."""
    return request.command.together(request.options)


def world_of(request: Request) -> World:
    """Return the world that executes the request. **Collective** if all ranks execute it together.

    Raises
    ------
    UserError
        If the ranks cannot meet; `doctor` reports that on its page instead.
    """
    return request.command.connect() if needs_world(request) else World(None)


def execute(request: Request, world: World, signals: Signals | None = None) -> int:
    """Do the work and return the exit code. **Collective** for `doctor` and for a run, which `signals` may stop."""
    return request.command.execute(request.options, Context(request.words, world, signals))
