"""`python -m fedh2l_mpi slurm`: a batch job for the user's case, once it has been checked as far as a run would."""

import argparse
import re
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.slurm import script
from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.devices import check_devices_apart, choose_device

# Slurm may send the signal so much earlier than asked.
SIGNAL_EARLY_S = 60
# A job that looks at a run starts no ranks, and does not go on.
ONLY_OF_RUNS = (
    *("nodes", "gpus_per_node", "ranks_per_node", "mpi", "overrides", "max_restarts", "lead", "scratch"),
    *("share_imports", "sweep", "at_a_time", "elsewhere"),
)
NAME = re.compile(r"[\w.,@+=:-]+", re.ASCII)


@dataclass(frozen=True)
class SlurmCommand:
    """The options, the words that they were read from, and every option's default."""

    options: argparse.Namespace
    words: tuple[str, ...]
    defaults: argparse.Namespace


def request(command: SlurmCommand) -> script.Request:
    """What the options ask for, checked."""
    options = command.options
    _check_words(options)
    work: script.Run | script.Sweep | script.Analysis
    if options.analyse:
        _refuse_what_is_for_runs(command)
        work, threads = script.Analysis(options.run), 1
        resources = _resources(options, "analyse", threads, ranks_per_node=1)
    else:
        for name, value in (("CONFIG", options.config), ("--mpi", options.mpi)):
            if value is None:
                raise UserError(f"slurm: {name} must be given (--help lists the options)")
        ranks_per_node = options.ranks_per_node or options.gpus_per_node
        if not ranks_per_node:
            raise UserError("--ranks-per-node: must be given where --gpus-per-node is 0")
        if options.at_a_time is not None and not options.sweep:
            raise UserError("--at-a-time: for the elements of a sweep; give --sweep, too, or leave it out")
        if options.share_imports and ranks_per_node == 1:
            raise UserError(f"{shared_imports.OPTION}: a rank alone on its node has nobody to share with; leave it out")
        if options.share_imports and options.mpi == "pmi2" and options.nodes > 1:
            raise UserError(
                f"{shared_imports.OPTION}: --mpi pmi2 lets ranks share on one node only; use --mpi mpirun, or --nodes 1"
            )
        name = Path(options.config).stem
        work, threads = _sweep(options, ranks_per_node) if options.sweep else _run(options, ranks_per_node)
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
    )


def _refuse_what_is_for_runs(command: SlurmCommand) -> None:
    options = command.options
    if options.config is not None:
        raise UserError(f"slurm: got CONFIG {options.config!r}, but --analyse takes none (did you mean --run?)")
    given = [name for name in ONLY_OF_RUNS if getattr(options, name) != getattr(command.defaults, name)]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" if name != "overrides" else "--set" for name in given)
        raise UserError(f"{words}: for a run or a sweep, not for --analyse; leave out")


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
    )


def _run(options: argparse.Namespace, ranks_per_node: int) -> tuple[script.Run, int]:
    config = loading.load(options.config, options.overrides)
    config, idle = _placed(config, options, ranks_per_node)
    _tell_of_idle({idle}, options.gpus_per_node)
    pack = None
    if options.scratch:
        if config.data.name != "pack" or config.data.root is None:
            raise UserError(
                f"--scratch: copies a pack; got data.name {config.data.name!r}, data.root {config.data.root!r}"
            )
        pack = config.data.root
    if not options.elsewhere:
        from fedh2l_mpi.planning import check

        check.check(config)
    return script.Run(options.config, tuple(options.overrides), options.run, pack), config.devices.threads


def _sweep(options: argparse.Namespace, ranks_per_node: int) -> tuple[script.Sweep, int]:
    from fedh2l_mpi.launch import sweep
    from fedh2l_mpi.launch.sweep.sweep import check_fit

    if options.scratch:
        raise UserError("--scratch: for a run, not for a sweep")
    path = Path(options.config)
    loaded = sweep.load(path, options.overrides, options.nodes * ranks_per_node)
    idle = {_placed(element.config, options, ranks_per_node)[1] for element in loaded.elements}
    _tell_of_idle(idle, options.gpus_per_node)
    if not options.elsewhere:
        check_fit(loaded.elements, path, jobs=1)
    out = options.run or f"runs/{path.stem}"
    work = script.Sweep(options.config, out, len(loaded.elements), options.at_a_time, tuple(options.overrides))
    return work, max(element.config.devices.threads for element in loaded.elements)


def _placed(config: Config, options: argparse.Namespace, ranks_per_node: int) -> tuple[Config, int]:
    """The config as the job's ranks would resolve it, once they and the GPUs fit it; and how many GPUs would be idle.

    Raises
    ------
    UserError
        If there are more ranks than participants, or ranks of a node would have to share a GPU unasked.
    """
    ranks = options.nodes * ranks_per_node
    if config.participants is not None and ranks > config.participants:
        raise UserError(
            f"--nodes, --ranks-per-node: {options.nodes} x {ranks_per_node} are {ranks} ranks, but participants is "
            f"{config.participants}; use that many ranks or fewer"
        )
    gpus = options.gpus_per_node
    devices = [choose_device(config.devices, rank, ranks_per_node, gpus) for rank in range(ranks_per_node)]
    check_devices_apart([device if device != "cpu" else "" for device in devices], config.devices.share)
    return config.resolved(ranks, launched=True), gpus - len(set(devices) - {"cpu"})


def _tell_of_idle(idle: Collection[int], gpus: int) -> None:
    for number in sorted(idle):
        if number:
            print(
                f"fedh2l_mpi: {number} of {gpus} GPUs of each node would be idle (devices, --ranks-per-node)",
                file=sys.stderr,
            )


def _check_words(options: argparse.Namespace) -> None:
    """Refuse what would not be one line, or not one word, of a job."""
    for option in ("job_name", "partition", "account"):
        value = getattr(options, option)
        if value is not None and not NAME.fullmatch(value):
            raise UserError(f"--{option.replace('_', '-')}: got {value!r}, must be of letters, digits and .,@+=:-")
    for name, value in (("CONFIG", options.config), ("--run", options.run), ("--env", options.env)):
        if value is not None and not value.isprintable():
            raise UserError(f"{name}: got {value!r}, must be one line of printable characters")
    for item in options.overrides:
        if not item.isprintable():
            raise UserError(f"--set {item!r}: must be one line of printable characters")


def _check_time(options: argparse.Namespace) -> None:
    least = options.lead + SIGNAL_EARLY_S
    if options.time <= least:
        raise UserError(
            f"--time: got {script.slurm_time(options.time)}, must be more than {script.slurm_time(least)}: the run "
            f"stops {options.lead:g} s before the limit (--lead), and Slurm may signal it {SIGNAL_EARLY_S} s earlier"
        )


def _made_by(command: SlurmCommand) -> str:
    """The command line that prints the job, wherever it was written to."""
    words, kept = iter(command.words), []
    for word in words:
        if word == "--out":
            next(words)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", "-m", "fedh2l_mpi", "slurm", *kept])
