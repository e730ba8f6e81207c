"""Commands and options of `python -m fedh2l_mpi`, nothing else."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedh2l_mpi.cli import analysis, plan
from fedh2l_mpi.cli.options import add_set, new_parser, positive
from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.config.keys import describe_keys
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch import slurm
from fedh2l_mpi.lifecycle import run_config
from fedh2l_mpi.lifecycle.run_config import MODES, Mode
from fedh2l_mpi.lifecycle.signals import Ask, Signals
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.world import Launch, World, connect

if TYPE_CHECKING:
    from fedh2l_mpi.run_directory import RunDirectory

DESCRIPTION = """\
Simulate FedH2L: participants with unlike models and unlike data learn from each other's posteriors on a seed set.

Without CONFIG the built-in default runs: scikit-learn's digits, one rotation per participant, on a ring.
Under mpirun or srun the ranks share the participants; a single process hosts them all, with the same numbers.

Other first words are commands; each has a --help of its own:

  report RUN...          what ran, how well everyone does, what it cost; --html: one page with everything
  plot RUN               figures for a paper
  compare RUN...         groups of runs: mean, spread, paired differences with intervals
  watch RUN              follows a running run
  export RUN --to KIND   csv, parquet or netcdf
  validate RUN...        checks metrics files
  sweep SWEEP.yaml       runs many and compares them
  pack FOLDER OUT.h5     makes one file of photographs
  doctor [CONFIG]        says whether a run would work here, alone or under mpirun and srun
  plan CONFIG --ranks N  what a run would take, before asking for a cluster
  slurm CONFIG           prints a batch job for Slurm"""
EPILOG = """\
exit codes: 0 done or stopped in order, 2 a mistake in what was asked, 1 a fault, 86 a rank was late, 130 interrupted"""
DOCTOR_EPILOG = """\
exit codes: 0 a run would work, 1 it would not, 2 a mistake in what was asked"""
SWEEP_EPILOG = """\
exit codes: 0 done, 2 a mistake in what was asked, 1 some runs failed and the others are done, 130 interrupted"""


@dataclass(frozen=True)
class RunCommand:
    """Run the config, or only look at it."""

    config: str | None
    overrides: tuple[str, ...]
    out: str | None
    resume: Mode
    trace: Path | None
    check: bool
    keys: bool
    quiet: bool
    share_imports: bool


@dataclass(frozen=True)
class PackCommand:
    """Make one file of a folder of photographs."""

    root: Path
    out: Path
    layout: str
    side: int
    grey: bool
    workers: int | None
    strict: bool
    quiet: bool


@dataclass(frozen=True)
class SweepCommand:
    """Run every element of a sweep, or one of them, or only list them."""

    sweep: Path
    overrides: tuple[str, ...]
    out: Path
    list: bool
    table: bool
    index: int | None
    prepare: bool
    jobs: int
    ranks: int | None
    share_imports: bool
    quiet: bool


@dataclass(frozen=True)
class DoctorCommand:
    """Look whether a run would work here."""

    config: str | None
    overrides: tuple[str, ...]
    out: str | None


Command = (
    RunCommand
    | analysis.OfflineCommand
    | PackCommand
    | SweepCommand
    | DoctorCommand
    | plan.PlanCommand
    | slurm.SlurmCommand
)


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
        return _parse_pack(words[1:], speaks)
    if words[:1] == ["sweep"]:
        return _parse_sweep(words[1:], speaks)
    if words[:1] == ["doctor"]:
        return _parse_doctor(words[1:], speaks)
    if words[:1] == ["plan"]:
        return plan.parse(words[1:], speaks)
    if words[:1] == ["slurm"]:
        return slurm.parse(words[1:], speaks)
    if words and words[0].isalpha() and not Path(words[0]).exists():
        known = [*analysis.COMMANDS, "pack", "sweep", "doctor", "plan", "slurm"]
        hint = loading.did_you_mean(words[0], known) or f"; commands: {', '.join(known)}"
        raise UserError(f"{words[0]}: neither a command nor a config file{hint}")
    parser = new_parser("python -m fedh2l_mpi", DESCRIPTION, speaks, EPILOG)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file; every key has a default")
    add_set(parser, "the config")
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/<config>-<time>)")
    parser.add_argument(
        "--resume",
        choices=MODES,
        default="never",
        metavar="{" + ",".join(MODES) + "}",
        help="whether a run in DIR is gone on with from its newest checkpoint: never (default); auto: if there is one; "
        "require: or else it is a mistake. Without CONFIG, that run's own is used",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write the run's timeline for Perfetto or chrome://tracing: what every rank did, when. Messages end there "
        "when their rank sees that all are complete, its own sends, too: it looks after each participant's local phase "
        "and while it waits, so they may have arrived earlier. FILE must be new, or the timeline of the run that is "
        "gone on with. A killed run's is in DIR/trace, a file for each rank",
    )
    parser.add_argument(
        "--check", action="store_true", help="validate config, data and graph, tell memory and traffic; train nothing"
    )
    parser.add_argument("--keys", action="store_true", help="list every key of the config with default and meaning")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        shared_imports.OPTION,
        action="store_true",
        help="import torch and the rest once on every node, not once for every rank: a quicker start, less memory",
    )
    options = parser.parse_args(words)
    if options.resume != "never" and options.out is None:
        raise UserError(f"--resume {options.resume}: needs --out, the directory of the run to go on with")
    if options.trace is not None and (options.check or options.keys):
        raise UserError(f"--trace: there is nothing to write it of with {'--check' if options.check else '--keys'}")
    return RunCommand(**{**vars(options), "overrides": tuple(options.overrides)})


def _parse_pack(words: list[str], speaks: bool) -> PackCommand:
    meaning = (
        "Decode, resize and crop the photographs of ROOT/<domain>/<class>/ into one HDF5 file, for data.name: pack.\n"
        "Unreadable ones are skipped and listed. OUT appears only when it is complete."
    )
    parser = new_parser("python -m fedh2l_mpi pack", meaning, speaks)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of <domain>/<class>/*.{jpg,jpeg,png,bmp,webp}")
    parser.add_argument("out", type=Path, metavar="OUT", help="HDF5 file to make; must not exist")
    parser.add_argument("--layout", default="domains", metavar="NAME", help="domains, the only one there is (default)")
    parser.add_argument("--side", type=int, default=224, metavar="S", help="side of the square images [pixels] (224)")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: the CPUs at hand)")
    parser.add_argument("--strict", action="store_true", help="end at the first unreadable picture, with no file")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(words)
    return PackCommand(**vars(options))


def _parse_sweep(words: list[str], speaks: bool) -> SweepCommand:
    meaning = (
        "Run every combination that a sweep file names, each as a run of its own in DIR, and compare them in a table.\n"
        "The same command again runs what has not finished. Ready ones are in configs/sweeps/."
    )
    parser = new_parser("python -m fedh2l_mpi sweep", meaning, speaks, SWEEP_EPILOG)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="YAML file: base, set, axes, elements, table")
    add_set(parser, "every element's config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory of the sweep (default: runs/<sweep>)")
    parser.add_argument("--list", action="store_true", help="list the elements with their numbers and states")
    parser.add_argument("--table", action="store_true", help="make the table of what has finished; run nothing")
    parser.add_argument(
        "--index", type=int, metavar="K", help="run element K only (from 0), for job arrays; prints no table"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="with --index: write the element's config, print its run directory D; run nothing. A job then runs "
        "`D.yaml --out D --resume auto` on its own ranks",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="elements that run at a time (1)")
    parser.add_argument(
        "--ranks", type=positive, metavar="R", help="MPI ranks of each run (default: one process, without mpirun)"
    )
    parser.add_argument(
        shared_imports.OPTION,
        action="store_true",
        help="with --ranks: each run imports torch and the rest once on a node, not once for every rank",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors; the table is in DIR")
    options = parser.parse_args(words)
    if options.share_imports and options.ranks in (None, 1):
        raise UserError(
            f"{shared_imports.OPTION}: runs of one process have nobody to share with; give --ranks 2 or more"
        )
    if options.share_imports and options.prepare:
        raise UserError(f"{shared_imports.OPTION}: --prepare runs nothing; give it to the job's own run")
    options.out = options.out or Path("runs") / options.sweep.stem
    return SweepCommand(**{**vars(options), "overrides": tuple(options.overrides)})


def _parse_doctor(words: list[str], speaks: bool) -> DoctorCommand:
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


def is_run(command: Command) -> bool:
    """Whether the command runs a simulation."""
    return isinstance(command, RunCommand) and not (command.check or command.keys)


def needs_world(command: Command) -> bool:
    """Whether the command runs on all ranks together; the others are for one process, without MPI."""
    return is_run(command) or isinstance(command, DoctorCommand)


def world_of(command: Command) -> World:
    """The world that the command runs in. **Collective** where it runs on all ranks together.

    Raises
    ------
    UserError
        If the ranks cannot meet; `doctor` tells that on its page instead.
    """
    if isinstance(command, DoctorCommand):
        from fedh2l_mpi.launch.doctor import examine

        return examine.connected()
    return connect() if needs_world(command) else World(None)


def execute(command: Command, world: World, signals: Signals | None = None) -> int:
    """Do what was asked, and the exit code. **Collective** for `doctor` and for a run, which `signals` may stop."""
    if isinstance(command, DoctorCommand):
        from fedh2l_mpi.launch.doctor import examine

        return examine.examine(world, command.config, command.overrides, command.out)
    if isinstance(command, SweepCommand):
        return _sweep(command)
    if isinstance(command, analysis.OfflineCommand):
        return analysis.execute(command)
    if isinstance(command, slurm.SlurmCommand):
        return slurm.execute(command)
    if isinstance(command, plan.PlanCommand):
        return plan.execute(command)
    if isinstance(command, PackCommand):
        _pack(command)
    elif command.keys:
        _print_keys()
    elif command.check:
        launch = Launch.of(os.environ)
        config = _config(command).resolved(launch.size, launch.launched)
        from fedh2l_mpi.planning import check as preflight
        from fedh2l_mpi.runtime import terminal

        terminal.output().print(preflight.check(config), highlight=False, soft_wrap=True)
    else:
        _run(command, world, signals)
    return 0


def _sweep(command: SweepCommand) -> int:
    launch = Launch.of(os.environ)
    # A batch script's own shell is one process, whatever number of tasks the job has.
    if launch.size > 1 and launch.launcher != "sbatch":
        raise UserError(
            f"sweep: {launch.launcher} started {launch.size} processes, must be one, which starts the runs itself; "
            f"use --ranks {launch.size} for runs of {launch.size} ranks each"
        )
    from fedh2l_mpi.launch import sweep

    elements = sweep.load(command.sweep, command.overrides, command.ranks)
    if command.list:
        print(sweep.listing(elements, command.out))
        return 0
    if command.table:
        sweep.tabulate(elements, command.out, command.quiet)
        return 0
    if command.prepare:
        print(sweep.prepare(elements, command.out, command.index))
        return 0
    return sweep.run(
        elements, command.out, command.jobs, command.ranks, command.index, command.quiet, command.share_imports
    )


def _pack(command: PackCommand) -> None:
    from fedh2l_mpi.data import pack_writer

    with pack_writer.progress_bar(command.quiet) as progress:
        packed = pack_writer.pack(
            command.root,
            command.out,
            command.layout,
            command.side,
            command.grey,
            command.workers,
            command.strict,
            progress,
        )
    if not command.quiet:
        print(packed.report())


def _config(command: RunCommand) -> Config:
    return run_config.load(command.config, command.overrides, command.out, command.resume)


def _run(command: RunCommand, world: World, signals: Signals | None) -> None:
    mode = command.resume
    config = world.from_first(lambda: _config(command).resolved(world.size, world.launched))
    # Read by OpenMP when torch is imported; other counts than the config's would be used until it is told.
    os.environ["OMP_NUM_THREADS"] = str(config.devices.threads)
    from fedh2l_mpi import run_directory
    from fedh2l_mpi.lifecycle import start as claims
    from fedh2l_mpi.metrics import trace as timeline
    from fedh2l_mpi.runtime import terminal
    from fedh2l_mpi.simulation import Simulation

    name = Path(command.config).stem if command.config else "default"
    directory = world.from_first(lambda: run_directory.choose(command.out, name, mode != "never"))
    held = terminal.hold_log()
    claim = claims.take(world, directory, config, mode)
    speaks = world.rank == 0 and not command.quiet
    try:
        if claim.kind == "done":
            if speaks:
                with terminal.if_anybody_listens():
                    print(f"{directory.path}: the run is complete, {config.rounds} rounds; nothing is left to do")
            return
        if command.trace is not None:
            trace: Path = command.trace
            world.from_first(lambda: timeline.check(trace, directory, goes_on=claim.kind == "resume"))
        simulation = Simulation(config, world, claim, signals, command.trace)
        directory = simulation.directory
        terminal.setup_logging(str(directory.log(world.rank)), world.rank, world.size, speaks, held)
        plan = simulation.hosted.plan
        terminal.log_start(config, world, simulation.description, plan.label_histogram(), plan.domains)
        if command.share_imports and signals is not None:
            logging.getLogger("fedh2l_mpi").info(str(signals.origin))
        if simulation.method.caution and world.rank == 0:
            logging.getLogger("fedh2l_mpi").warning(simulation.method.caution)
        first = simulation.first_round
        if first:
            logging.getLogger("fedh2l_mpi").info(f"goes on after {first} of {config.rounds} rounds, from a checkpoint")
        progress = terminal.Progress(config, command.quiet, first) if world.rank == 0 else None
        try:
            asked = simulation.run(progress.round if progress else _ignore)
        finally:
            if progress is not None:
                progress.close()
    finally:
        claim.release()
    if speaks:
        _tell(directory, asked, command.trace)


def _tell(directory: "RunDirectory", asked: Ask, trace: Path | None) -> None:
    """What the run has come to."""
    from fedh2l_mpi.analysis import report, run
    from fedh2l_mpi.analysis.summary import summarise
    from fedh2l_mpi.runtime import terminal

    table = report.rich_table(report.result_table(summarise(run.look_at(directory.path))))
    lines = [f"metrics: {directory.metrics}"]
    if trace is not None:
        lines.append(f"timeline: {trace}")
    if asked.stops:
        # A signal may have come before the first round, when there is nothing yet that a checkpoint could be of.
        when, does = ("with a checkpoint", "goes on") if directory.committed() else ("before round 0", "begins it")
        lines.append(
            f"stopped ({asked.reason}), {when}; python -m fedh2l_mpi --resume auto --out {directory.path} {does}"
        )
    # All this is in the run directory, too.
    with terminal.if_anybody_listens():
        out = terminal.output()
        out.print(table)
        for line in lines:
            out.print(line, highlight=False, soft_wrap=True)


def _ignore(round_index: int, table: object) -> None:
    """Follows a run where nobody looks."""


def _print_keys() -> None:
    for key in describe_keys():
        default = json.dumps(key.default)
        print(f"{key.name}: {default}\n    {key.allowed}\n    {key.meaning}")
