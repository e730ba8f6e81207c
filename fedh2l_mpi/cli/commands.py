"""Commands of `python -m fedh2l_mpi`: which one the first word names, and what it does."""

from collections.abc import Sequence
from pathlib import Path

from fedh2l_mpi.cli import analysis, doctor, pack, plan, run, slurm, sweep
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.launch.slurm.request import SlurmCommand
from fedh2l_mpi.lifecycle.signals import Signals
from fedh2l_mpi.runtime.world import World, connect

Command = (
    run.RunCommand
    | analysis.OfflineCommand
    | pack.PackCommand
    | sweep.SweepCommand
    | doctor.DoctorCommand
    | plan.PlanCommand
    | SlurmCommand
)
NAMES = (*analysis.COMMANDS, "pack", "sweep", "doctor", "plan", "slurm")


def parse(arguments: Sequence[str], speaks: bool = True) -> Command:
    """The command line as a Command; `--help` prints if `speaks`, and exits.

    Raises
    ------
    UserError
        If the options are wrong.
    """
    words = list(arguments)
    if words[:1] and words[0] in analysis.COMMANDS:
        return analysis.parse(words[0], words[1:], speaks)
    if words[:1] == ["pack"]:
        return pack.parse(words[1:], speaks)
    if words[:1] == ["sweep"]:
        return sweep.parse(words[1:], speaks)
    if words[:1] == ["doctor"]:
        return doctor.parse(words[1:], speaks)
    if words[:1] == ["plan"]:
        return plan.parse(words[1:], speaks)
    if words[:1] == ["slurm"]:
        return slurm.parse(words[1:], speaks)
    if words and words[0].isalpha() and not Path(words[0]).exists():
        hint = did_you_mean(words[0], NAMES) or f"; commands: {', '.join(NAMES)}"
        raise UserError(f"{words[0]}: neither a command nor a config file{hint}")
    return run.parse(words, speaks)


def is_run(command: Command) -> bool:
    """Whether the command runs a simulation."""
    return isinstance(command, run.RunCommand) and not (command.check or command.keys)


def needs_world(command: Command) -> bool:
    """Whether the command runs on all ranks together; the others are for one process, without MPI."""
    return is_run(command) or isinstance(command, doctor.DoctorCommand)


def world_of(command: Command) -> World:
    """The world that the command runs in. **Collective** where it runs on all ranks together.

    Raises
    ------
    UserError
        If the ranks cannot meet; `doctor` tells that on its page instead.
    """
    if isinstance(command, doctor.DoctorCommand):
        from fedh2l_mpi.launch.doctor import examine

        return examine.connect_ranks()
    return connect() if needs_world(command) else World(None)


def execute(command: Command, world: World, signals: Signals | None = None) -> int:
    """Do what was asked, and the exit code. **Collective** for `doctor` and for a run, which `signals` may stop."""
    if isinstance(command, run.RunCommand):
        return run.execute(command, world, signals)
    if isinstance(command, doctor.DoctorCommand):
        return doctor.execute(command, world)
    if isinstance(command, sweep.SweepCommand):
        return sweep.execute(command)
    if isinstance(command, analysis.OfflineCommand):
        return analysis.execute(command)
    if isinstance(command, SlurmCommand):
        return slurm.execute(command)
    if isinstance(command, plan.PlanCommand):
        return plan.execute(command)
    return pack.execute(command)
