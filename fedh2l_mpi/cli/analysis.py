"""Commands that read finished or running runs from disk: report, plot, watch, export, validate.

They need no torch, no MPI and one process.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedh2l_mpi.cli.command import Command, Context
from fedh2l_mpi.cli.options import Parser
from fedh2l_mpi.cli.output import RUNS, give, show, width
from fedh2l_mpi.errors import EXIT_FAULT, UserError
from fedh2l_mpi.runtime.terminal import say

if TYPE_CHECKING:
    from fedh2l_mpi.analysis.run import Run

RUN = "run directory or metrics file; the run may be finished, running, killed or damaged"


def _report_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument(
        "--baseline", type=Path, metavar="RUN", help="run to compute gains against, such as a run of independent"
    )
    made.add_argument(
        "--format",
        choices=["terminal", "markdown", "csv", "json"],
        default="terminal",
        help="format (default: terminal); csv has a line per participant, with all digits",
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page with plots and tables")


def _report(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.analysis import report
    from fedh2l_mpi.analysis import run as runs
    from fedh2l_mpi.analysis.summary import summarise

    with contextlib.ExitStack() as opened:
        baseline = opened.enter_context(_looked_at(options.baseline)) if options.baseline else None
        # CSV is the only format without a place for problems.
        prints_problems = options.format == "csv"
        paths = runs.find(options.runs)
        looked: list[Run] = []
        summaries = []
        for path, name in zip(paths, runs.unique_names(paths), strict=True):
            with contextlib.ExitStack() as alone:
                # A page reads its runs later, so their problems are printed later.
                run = (alone if options.html is None else opened).enter_context(_looked_at(path, prints_problems))
                looked += [] if options.html is None else [run]
                with run.metrics.opened():
                    summaries.append(replace(summarise(run, baseline), name=name))
        if options.html is not None:
            from fedh2l_mpi.analysis import html

            html.build(looked, summaries, options.html)
            prints_text = options.out is None and options.format != "terminal"
            say(f"page: {options.html}", file=sys.stderr if prints_text else sys.stdout)
            if options.out is None and not prints_text:
                return 0
    if options.format != "terminal":
        text = {"markdown": report.as_markdown, "csv": report.as_csv, "json": report.as_json}[options.format](summaries)
        give(text, options.out, "report")
    else:
        show(report.terminal(summaries), options.out, "report")
    return 0


def _plot_options(made: Parser) -> None:
    made.add_argument("run", type=Path, metavar="RUN", help=RUN)
    made.add_argument(
        "--figure",
        dest="figures",
        action="append",
        metavar="NAME",
        help="overview (default), curves, domains, bytes, graph, phases, conflict, reliability, partition, or all; "
        "repeatable",
    )
    made.add_argument(
        "--format", choices=["png", "svg", "pdf"], help="format of the file (default: the ending of --out, or png)"
    )
    made.add_argument(
        "--width",
        type=width,
        metavar="MM",
        help="width [mm], or column (85) or page (175) of a paper (default: the figure's own)",
    )
    made.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file, or folder for several figures (default: next to the metrics file)",
    )


def _plot(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.analysis import figures

    names = options.figures or ["overview"]
    named = options.out.suffix.removeprefix(".").lower() if options.out else ""
    if named in figures.ENDINGS and options.format not in (None, named):
        raise UserError(f"--format: got {options.format!r}, but --out ends in .{named}. Fix: give one of the two.")
    with _looked_at(options.run) as run, run.metrics.opened():
        plotted = figures.plot(run, names, options.out, options.format or "png", options.width)
    for path in plotted.files:
        say(f"plot: {path}")
    for reason in plotted.skipped.values():
        say(f"left out: {reason}")
    return 0


def _watch_options(made: Parser) -> None:
    made.add_argument("run", type=Path, metavar="RUN", help="run directory or metrics file, which may appear later")
    made.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="seconds between updates (2); longer if reading is slow",
    )


def _watch(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.analysis import watch

    with contextlib.suppress(KeyboardInterrupt):
        watch.follow(options.run, options.interval)
    return 0


def _export_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument(
        "--to",
        required=True,
        choices=["csv", "parquet", "netcdf", "tensorboard"],
        help="format; csv and parquet make a folder of tidy tables, tensorboard a log folder for each run",
    )
    made.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="folder or file to make (default for one run: next to its metrics file)",
    )


def _export(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.analysis import export
    from fedh2l_mpi.analysis import run as runs

    paths = runs.find(options.runs)
    with contextlib.ExitStack() as looked:
        named = {
            name: looked.enter_context(_looked_at(path))
            for path, name in zip(paths, runs.unique_names(paths), strict=True)
        }
        for path in export.export(named, options.to, options.out):
            say(f"export: {path}")
    return 0


def _validate_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument("--quiet", action="store_true", help="print errors only")


def _validate(options: argparse.Namespace, context: Context) -> int:
    from fedh2l_mpi.analysis import run as runs
    from fedh2l_mpi.analysis import validation

    sound = True
    for path in runs.find(options.runs):
        findings = validation.validate(path)
        sound = sound and all(finding.level != "error" for finding in findings)
        say(validation.text(path, findings, options.quiet), end="")
    return 0 if sound else EXIT_FAULT


@contextlib.contextmanager
def _looked_at(path: Path, prints_problems: bool = True) -> Iterator["Run"]:
    """Open a run, and close it in the end. Print the problems of its file if `prints_problems`."""
    from fedh2l_mpi.analysis import run as runs

    run = runs.load_run(path)
    try:
        yield run
    finally:
        run.close()
        for problem in run.problems if prints_problems else ():
            say(f"fedh2l_mpi: {run.file}: {problem}", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be from 0.1 to 3600 s")
    return seconds


COMMANDS = (
    Command(
        name="report",
        arguments="RUN...",
        summary="report accuracy, cost and problems",
        meaning="Report the config, the accuracy of every participant, the cost, and problems.",
        examples=(
            ("Report a run, with its gains over another", "{program} report runs/a --baseline runs/b"),
            ("Make one page with all runs in a folder", "{program} report runs --html report.html"),
        ),
        add_options=_report_options,
        execute=_report,
    ),
    Command(
        name="plot",
        arguments="RUN",
        summary="draw figures for a paper",
        meaning="Draw figures of a run, as wide as a column or page of a paper.",
        examples=(
            ("Draw the overview next to the metrics file", "{program} plot runs/a"),
            (
                "Draw the learning curves as wide as a column",
                "{program} plot runs/a --figure curves --width column --out curves.pdf",
            ),
        ),
        add_options=_plot_options,
        execute=_plot,
    ),
    Command(
        name="watch",
        arguments="RUN",
        summary="follow a running run",
        meaning="Follow a running run in its metrics file, without disturbing it.",
        examples=(
            ("Follow a run until it ends", "{program} watch runs/a"),
            ("Look once in 30 seconds", "{program} watch runs/a --interval 30"),
        ),
        add_options=_watch_options,
        execute=_watch,
    ),
    Command(
        name="export",
        arguments="RUN... --to FORMAT",
        summary="write csv, parquet, netcdf or tensorboard",
        meaning="Write runs as tidy tables for R and pandas, as netCDF, or for TensorBoard.",
        examples=(
            ("Write a folder of CSV tables", "{program} export runs/a --to csv"),
            ("Write all runs in a folder for TensorBoard", "{program} export runs --to tensorboard --out logs"),
        ),
        add_options=_export_options,
        execute=_export,
    ),
    Command(
        name="validate",
        arguments="RUN...",
        summary="check metrics files",
        meaning="Check metrics files: schema, units, gaps, ranges, consistency, digests, h5dump.",
        examples=(
            ("Check a run", "{program} validate runs/a"),
            ("Check all runs in a folder, and print errors only", "{program} validate runs --quiet"),
        ),
        add_options=_validate_options,
        execute=_validate,
        exit_codes="Exit codes: 0 sound, 1 not sound, 2 a mistake in the request.",
    ),
)
