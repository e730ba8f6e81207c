"""`doctor`: check whether a run would work on this machine."""

from dataclasses import dataclass

from fedh2l_mpi.cli.options import add_set, new_parser
from fedh2l_mpi.runtime.world import World

DOCTOR_EPILOG = """\
exit codes: 0 a run would work, 1 it would not, 2 a mistake in what was asked"""


@dataclass(frozen=True)
class DoctorCommand:
    """Look whether a run would work here."""

    config: str | None
    overrides: tuple[str, ...]
    out: str | None


def parse(words: list[str], speaks: bool) -> DoctorCommand:
    meaning = (
        "One page that says whether a run would work here, each failure with its fix: versions, launcher, cores,\n"
        "GPUs, the file system, and between ranks timed messages and clocks. Start it as the run will be started."
    )
    parser = new_parser("python -m fedh2l_mpi doctor", meaning, speaks, DOCTOR_EPILOG)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="whose devices, data and messages to try")
    add_set(parser, "the config")
    parser.add_argument("--out", metavar="DIR", help="where runs will be (default: runs, or here); left as it was")
    options = parser.parse_args(words)
    return DoctorCommand(options.config, tuple(options.overrides), options.out)


def execute(command: DoctorCommand, world: World) -> int:
    """Print the page, and the exit code. **Collective.**"""
    from fedh2l_mpi.launch.doctor import examine

    return examine.examine(world, command.config, command.overrides, command.out)
