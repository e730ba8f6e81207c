"""Check the elements of a sweep, run them, and compare the finished runs in a table."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedh2l_mpi.analysis import figures, tables
from fedh2l_mpi.analysis.outcome import Outcome, read_outcome
from fedh2l_mpi.errors import EXIT_FAULT, EXIT_INTERRUPTED, UserError
from fedh2l_mpi.launch.sweep.progress import SweepProgress
from fedh2l_mpi.launch.sweep.run_files import DifferentConfigError, SweepRunFiles
from fedh2l_mpi.launch.sweep.runner import PATIENCE_S, Runner
from fedh2l_mpi.launch.sweep.sweep_file import Element, Mistakes, Sweep
from fedh2l_mpi.runtime import atomic_files

if TYPE_CHECKING:
    from fedh2l_mpi.data.sources import Source
    from fedh2l_mpi.planning.sizes import SampleCounts


def listing(sweep: Sweep, root: Path) -> str:
    """Return one line for each element: its number, state and label."""
    width = len(str(len(sweep.elements) - 1))
    states = [SweepRunFiles(root, element).state() for element in sweep.elements]
    longest = max(map(len, states))
    return "\n".join(
        f"{number:>{width}}  {state:<{longest}}  {element.label}"
        for number, (state, element) in enumerate(zip(states, sweep.elements, strict=True))
    )


def run(
    sweep: Sweep,
    root: Path,
    jobs: int = 1,
    ranks: int | None = None,
    index: int | None = None,
    quiet: bool = False,
    share_imports: bool = False,
) -> int:
    """Run every element that has not finished, write the table of all that have, and return the exit code.

    Parameters
    ----------
    index : int or None
        Number of the only element to run, without a table; None: all of them.

    Raises
    ------
    UserError
        If there is no such element, a directory contains a run of a different config, or nothing can be written.
    """
    elements = sweep.elements if index is None else (_element(sweep, index),)
    progress = SweepProgress(quiet)
    runner = Runner(elements, root, jobs, ranks, progress, waits=index is None, share_imports=share_imports)
    if runner.to_do:
        check_fit(runner.to_do, sweep.path, jobs)
    try:
        runner.run()
    except OSError as error:
        raise UserError(f"--out: {error.filename or root} cannot be written: {error.strerror}") from None
    finally:
        progress.close()
    if runner.interrupted:
        print(
            f"fedh2l_mpi: interrupted after {len(runner.outcomes)} of {len(elements)} runs had finished. "
            "The same command resumes the sweep.",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    if index is None and runner.outcomes:
        _conclude(sweep, root, runner.outcomes, quiet)
    if runner.failed:
        names = "".join(f"\n  {label}: {reason}" for label, reason in runner.failed.items())
        print(f"fedh2l_mpi: {len(runner.failed)} of {len(elements)} runs failed:{names}", file=sys.stderr)
    return EXIT_FAULT if runner.failed else 0


def prepare(sweep: Sweep, root: Path, index: int | None) -> Path:
    """Write the config of an element as `<run directory>.yaml`, without running it, and return the run directory.

    Raises
    ------
    UserError
        If there is no such element, another process runs it, or its directory contains a run of a different config.
    """
    if index is None:
        raise UserError("--prepare: this option needs --index, too.")
    files = SweepRunFiles(root, _element(sweep, index))
    try:
        root.mkdir(parents=True, exist_ok=True)
        files.prepare(PATIENCE_S)
    except OSError as error:
        raise UserError(f"--out: {root} cannot be written: {error.strerror}") from None
    return files.run.path


def tabulate(sweep: Sweep, root: Path, quiet: bool = False) -> None:
    """Write the table of all finished runs, without running anything.

    Raises
    ------
    UserError
        If no finished run can be read, or a directory contains a run of a different config.
    """
    outcomes: dict[str, Outcome] = {}
    for element in sweep.elements:
        try:
            run = SweepRunFiles(root, element).read_finished()
        except DifferentConfigError:
            raise
        except UserError as error:
            print(f"fedh2l_mpi: the table leaves out {element.label}: {error}", file=sys.stderr)
        else:
            if run is not None:
                outcomes[element.label] = read_outcome(run)
    if not outcomes:
        raise UserError(f"--table: none of the {len(sweep.elements)} runs in {root} has finished.")
    if len(outcomes) < len(sweep.elements) and not quiet:
        print(f"{len(outcomes)} of {len(sweep.elements)} runs have finished")
    _conclude(sweep, root, outcomes, quiet)


def _element(sweep: Sweep, index: int) -> Element:
    last = len(sweep.elements) - 1
    if not 0 <= index <= last:
        raise UserError(f"--index: got {index}, must be from 0 to {last}. See the numbers with --list.")
    return sweep.elements[index]


def check_fit(elements: Sequence[Element], path: Path, jobs: int) -> None:
    """Report all mistakes that the runs would report one by one: data, graphs, models, weights, methods, codecs.

    Each combination of models, method, codec and data is tried once, with one model of each architecture. This needs
    about 10 ms for small models on digits, and 2.5 s for a ResNet-18 on images of 224 x 224. A user's own class is
    rehearsed, as by a run.

    Raises
    ------
    UserError
        One line for each mistake, with the elements that have it.
    """
    import torch

    from fedh2l_mpi import methods
    from fedh2l_mpi.data import federated
    from fedh2l_mpi.data.registry import open_source
    from fedh2l_mpi.exchange.participation import build_participation
    from fedh2l_mpi.planning import requirements
    from fedh2l_mpi.planning.participant_limit import refuse_too_many
    from fedh2l_mpi.topology import Topology

    sources: dict[str, Source] = {}
    cuda = torch.cuda.device_count() > 0
    counts_by_data: dict[str, SampleCounts] = {}
    fitting: set[str] = set()
    mistakes = Mistakes()
    for element in elements:
        config = element.config
        with mistakes.noting(element.label):
            if jobs > 1 and cuda and config.devices.kind != "cpu" and not config.devices.share:
                raise UserError(
                    f"--jobs: got {jobs}, but independent runs would share a GPU. Use --jobs 1, one --index for each "
                    "GPU, devices.kind=cpu, or devices.share=true."
                )
            refuse_too_many(config)
            topology = Topology(config.topology, config.size, config.seed, config.rounds)
            build_participation(config.faults.participation, topology, config.size, config.seed)
            method = methods.build(config)
            # Elements that differ only in their partition open the same files.
            opened = repr(config.data.model_copy(update={"partition": None}))
            if opened not in sources:
                sources[opened] = open_source(config.data)
            source = sources[opened]
            # Elements that differ only in the method give the same samples to the same participants.
            data_key = repr((config.data, config.seed_set, config.evaluation, config.size, config.seed))
            if data_key not in counts_by_data:
                counts_by_data[data_key] = requirements.count_samples(federated.plan(config, source))
            names = sorted(requirements.architectures(config))
            # A built-in method's options do not change what it sends, so each method is tried once. Minibatches of one
            # sample do not fit every model.
            what = config.method if methods.is_own(config.method.name) else config.method.name
            single = 1 in (config.optimizer.batch_size, config.optimizer.seed_batch_size)
            combination = repr((names, config.weights, what, config.exchange, opened, single))
            if combination not in fitting:
                requirements.compute(config, source, method, counts_by_data[data_key])
                fitting.add(combination)
    mistakes.raise_all(path)


def _conclude(sweep: Sweep, root: Path, outcomes: Mapping[str, Outcome], quiet: bool) -> None:
    """Print the table, then write it and the learning curves into the sweep's directory."""
    finished = [element for element in sweep.elements if element.label in outcomes]
    by_row = {row: [outcomes[e.label] for e in finished if e.row == row] for row in sweep.rows}
    asked, title = sweep.table, sweep.table.title or sweep.path.stem
    table = tables.table(
        by_row,
        asked.columns,
        asked.reach,
        sweep.compare_to,
        title,
        costs=asked.costs,
        gap=sweep.gap,
        confidence=asked.confidence,
    )
    methods = {element.row: element.config.method.name for element in finished}
    curves = [figures.Curve(row, methods[row], runs) for row, runs in by_row.items() if runs]
    axes = list(dict.fromkeys(axis for element in sweep.elements for axis in element.settings))
    every = [(element.label, element.settings, outcomes[element.label]) for element in finished]
    written = {
        "table.md": lambda path: path.write_text(tables.markdown(table), encoding="utf-8"),
        "table.csv": lambda path: path.write_text(tables.long_form(every, asked.reach, axes), encoding="utf-8"),
        "curves.png": lambda path: figures.plot_overlay(curves, title, path),
    }
    if not quiet:
        print(f"\n{tables.plain(table)}\n")
    revisions = sorted({outcome.revision for outcome in outcomes.values()})
    if len(revisions) > 1:
        print(
            f"fedh2l_mpi: these runs come from {len(revisions)} revisions of the code ({', '.join(revisions)}), so "
            "their numbers may differ. Use another --out to run all of them again.",
            file=sys.stderr,
        )
    for name, write in written.items():
        try:
            _replace(root / name, write)
        except UserError as error:
            # The table is useful even if the figure cannot be drawn.
            print(f"fedh2l_mpi: {name} was not written: {error}", file=sys.stderr)
        else:
            if not quiet:
                print(f"{name.partition('.')[0]}: {root / name}")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it: another sweep may be writing the same file."""
    new = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(new)
        atomic_files.publish(new, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)
