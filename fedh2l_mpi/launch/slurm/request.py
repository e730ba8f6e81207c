"""Turn the options of `python -m fedh2l_mpi slurm` into a checked request for a batch job."""

import argparse
import re
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.config import Config
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.slurm import script
from fedh2l_mpi.launch.slurm.container import absolute_paths, check_image
from fedh2l_mpi.launch.slurm.sbatch_options import head_line
from fedh2l_mpi.lifecycle import run_config
from fedh2l_mpi.lifecycle.run_config import Mode
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.devices import check_devices_apart, choose_device

# Slurm may send the signal up to this much earlier than requested.
SIGNAL_EARLY_S = 60
# Options of runs and sweeps: an analysis job starts no ranks and is never resumed.
ONLY_OF_RUNS = (
    *("nodes", "gpus_per_node", "ranks_per_node", "mpi", "overrides", "max_restarts", "lead", "scratch"),
    *("share_imports", "sweep", "at_a_time", "elsewhere"),
)
NAME = re.compile(r"[\w.,@+=:-]+", re.ASCII)


@dataclass(frozen=True)
class SlurmCommand:
    """Options, the command line's words that they were read from, and the default of every option."""

    options: argparse.Namespace
    words: tuple[str, ...]
    defaults: argparse.Namespace


def request(command: SlurmCommand) -> script.Request:
    """Check the options and return the job that they request.

    Raises
    ------
    UserError
        If options are missing or contradict each other, or a run with them would fail at its start.
    """
    options = command.options
    _check_texts(options)
    if options.container is not None:
        check_image(options.container, options.elsewhere)
    work: script.Run | script.Sweep | script.Analysis
    paths: tuple[str, ...]
    if options.analyse:
        _refuse_options_of_runs(command)
        work, threads, paths = script.Analysis(options.run), 1, ()
        resources = _resources(options, "analyse", threads, ranks_per_node=1)
    else:
        for name, value in (("CONFIG", options.config), ("--mpi", options.mpi)):
            if value is None:
                raise UserError(f"slurm: {name} is missing. See --help for the options.")
        ranks_per_node = options.ranks_per_node or options.gpus_per_node
        if not ranks_per_node:
            raise UserError("--ranks-per-node: this option is required if --gpus-per-node is 0.")
        if options.at_a_time is not None and not options.sweep:
            raise UserError("--at-a-time: this option limits the elements of a sweep. Add --sweep, or leave it out.")
        if options.share_imports and ranks_per_node == 1:
            raise UserError(f"{shared_imports.OPTION}: one rank per node has no other to share with. Leave it out.")
        if options.share_imports and options.container is not None:
            raise UserError(f"{shared_imports.OPTION}: each rank has a container of its own. Leave it out.")
        if options.share_imports and options.mpi == "pmi2" and options.nodes > 1:
            raise UserError(
                f"{shared_imports.OPTION}: with --mpi pmi2, ranks can share on one node only, but --nodes is "
                f"{options.nodes}. Use --mpi mpirun, or --nodes 1."
            )
        name = Path(options.config).stem
        work, threads, paths = _sweep(options, ranks_per_node) if options.sweep else _run(options, ranks_per_node)
        resources = _resources(options, re.sub(rf"[^{NAME.pattern[1:-2]}]", "_", name), threads, ranks_per_node)
        _check_time(options)
    return script.Request(
        resources,
        work,
        options.mpi or "",
        round(options.lead),
        options.max_restarts,
        options.env,
        _made_by(command),
        options.share_imports,
        script.Container(options.container, paths) if options.container is not None else None,
    )


def _refuse_options_of_runs(command: SlurmCommand) -> None:
    options = command.options
    if options.config is not None:
        raise UserError(f"slurm: got CONFIG {options.config!r}, but --analyse needs no config (did you mean --run?)")
    given = [name for name in ONLY_OF_RUNS if getattr(options, name) != getattr(command.defaults, name)]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" if name != "overrides" else "--set" for name in given)
        raise UserError(f"{words}: an analysis job (--analyse) does not use this. Leave it out.")


def _resources(options: argparse.Namespace, name: str, threads: int, ranks_per_node: int) -> script.Resources:
    return script.Resources(
        options.job_name or name,
        options.time,
        options.nodes,
        ranks_per_node,
        options.cpus_per_task or threads,
        options.gpus_per_node,
        options.partition,
        options.account,
        tuple(head_line(text) for text in options.sbatch),
    )


def _run(options: argparse.Namespace, ranks_per_node: int) -> tuple[script.Run, int, tuple[str, ...]]:
    """Return the run, its threads per rank, and the absolute paths that its config names."""
    # The job resumes a run that is in its directory.
    mode: Mode = "never" if options.elsewhere else "auto"
    config = run_config.load(options.config, options.overrides, options.run, mode)
    config, note = _resolve(config, options, ranks_per_node)
    _tell({note})
    pack = None
    if options.scratch:
        if config.data.name != "pack" or config.data.root is None:
            raise UserError(
                f"--scratch: this option copies a pack, but data.name is {config.data.name!r} and data.root is "
                f"{config.data.root!r}. Use a pack, or leave it out."
            )
        pack = config.data.root
    if not options.elsewhere:
        from fedh2l_mpi.lifecycle import start
        from fedh2l_mpi.planning import check

        check.check(config)
        if run_config.stored_config(options.run, mode) is not None:
            start.refuse_other_config(RunDirectory(Path(options.run)), config)
    run = script.Run(options.config, tuple(options.overrides), options.run, pack)
    return run, config.devices.threads, absolute_paths(config.model_dump())


def _sweep(options: argparse.Namespace, ranks_per_node: int) -> tuple[script.Sweep, int, tuple[str, ...]]:
    """Return the sweep, the threads per rank, and the absolute paths that the configs of its elements name."""
    from fedh2l_mpi.launch import sweep
    from fedh2l_mpi.launch.sweep.sweep import check_fit

    if options.scratch:
        raise UserError("--scratch: this option works for a run only. Leave it out for a sweep.")
    path = Path(options.config)
    loaded = sweep.load(path, options.overrides, options.nodes * ranks_per_node)
    _tell({_resolve(element.config, options, ranks_per_node)[1] for element in loaded.elements})
    if not options.elsewhere:
        check_fit(loaded.elements, path, jobs=1)
    out = options.run or f"runs/{path.stem}"
    work = script.Sweep(options.config, out, len(loaded.elements), options.at_a_time, tuple(options.overrides))
    paths = {path for element in loaded.elements for path in absolute_paths(element.config.model_dump())}
    return work, max(element.config.devices.threads for element in loaded.elements), tuple(sorted(paths))


def _resolve(config: Config, options: argparse.Namespace, ranks_per_node: int) -> tuple[Config, str]:
    """Check ranks and GPUs; return the config as the job's ranks resolve it, and a note on idle or shared GPUs.

    Raises
    ------
    UserError
        If there are more ranks than participants, or ranks would share a GPU although `devices` does not allow it.
    """
    ranks = options.nodes * ranks_per_node
    if config.participants is not None and ranks > config.participants:
        raise UserError(
            f"--nodes, --ranks-per-node: {options.nodes} x {ranks_per_node} are {ranks} ranks, but there are "
            f"{config.participants} participants. Use at most that many ranks."
        )
    gpus = options.gpus_per_node
    devices = [choose_device(config.devices, rank, ranks_per_node, gpus) for rank in range(ranks_per_node)]
    check_devices_apart([device if device != "cpu" else "" for device in devices], config.devices.may_share)
    used, note = len(set(devices) - {"cpu"}), ""
    if used < gpus:
        note = f"{gpus - used} of {gpus} GPUs of each node would be idle. To use them, change --ranks-per-node or the "
        note += "config's devices."
    elif 0 < used < ranks_per_node and config.devices.share is None:
        note = f"the {ranks_per_node} ranks of each node would share its GPUs ({used}). For a GPU each, use "
        note += f"--gpus-per-node {ranks_per_node} or --ranks-per-node {used}."
    return config.resolved(ranks, launched=True), note


def _tell(notes: Collection[str]) -> None:
    for note in sorted(notes):
        if note:
            print(f"fedh2l_mpi: {note}", file=sys.stderr)


def _check_texts(options: argparse.Namespace) -> None:
    """Refuse values that would break a line or a word of the job's script."""
    for option in ("job_name", "partition", "account"):
        value = getattr(options, option)
        if value is not None and not NAME.fullmatch(value):
            raise UserError(f"--{option.replace('_', '-')}: got {value!r}. Allowed: letters, digits, and _.,@+=:-")
    for name, value in (("CONFIG", options.config), ("--run", options.run), ("--env", options.env)):
        if value is not None and not value.isprintable():
            raise UserError(f"{name}: got {value!r}, must be one line of printable characters.")
    for item in options.overrides:
        if not item.isprintable():
            raise UserError(f"--set: got {item!r}, must be one line of printable characters.")


def _check_time(options: argparse.Namespace) -> None:
    least = options.lead + SIGNAL_EARLY_S
    if options.time <= least:
        raise UserError(
            f"--time: got {script.slurm_time(options.time)}, must be more than {script.slurm_time(least)}. The run "
            f"stops {options.lead:g} s before the limit (--lead), and Slurm may signal it {SIGNAL_EARLY_S} s earlier."
        )


def _made_by(command: SlurmCommand) -> str:
    """Return the command line that prints the job: the user's own, without --out."""
    words, kept = iter(command.words), []
    for word in words:
        if word == "--out":
            next(words)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", "-m", "fedh2l_mpi", "slurm", *kept])
