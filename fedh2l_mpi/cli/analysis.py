"""The commands that look at runs on disk: their options, and what they call. No torch, no MPI, one process."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedh2l_mpi.cli.options import Parser, new_parser
from fedh2l_mpi.errors import EXIT_FAULT, UserError

if TYPE_CHECKING:
    from fedh2l_mpi.analysis.run import Run

RUN = "run directory or metrics file, also of a run that is running, was killed, or is damaged"
RUNS = "run directories, metrics files, folders that hold runs, or globs"
MANY_EPILOG = "exit codes: 0 done, 2 a mistake in what was asked"
VALIDATE_EPILOG = "exit codes: 0 sound, 1 not, 2 a mistake in what was asked"


@dataclass(frozen=True)
class OfflineCommand:
    """One of COMMANDS, with its options."""

    name: str
    options: argparse.Namespace


@dataclass(frozen=True)
class _Kind:
    meaning: str
    add_options: Callable[[Parser], None]
    execute: Callable[[argparse.Namespace], int]
    epilog: str = MANY_EPILOG


def parse(name: str, words: Sequence[str], speaks: bool) -> OfflineCommand:
    """The options of a command.

    Raises
    ------
    UserError
        If they are wrong.
    """
    kind = COMMANDS[name]
    made = new_parser(f"python -m fedh2l_mpi {name}", kind.meaning, speaks, kind.epilog)
    kind.add_options(made)
    return OfflineCommand(name, made.parse_args(words))


def execute(command: OfflineCommand) -> int:
    """Do what was asked, and the exit code."""
    return COMMANDS[command.name].execute(command.options)


def _report_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument(
        "--baseline", type=Path, metavar="RUN", help="a run that gains are told over, such as independent"
    )
    made.add_argument(
        "--format",
        choices=["terminal", "markdown", "csv", "json"],
        default="terminal",
        help="csv: a line per participant, numbers in full (default: terminal)",
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    made.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with plots and tables")


def _report(options: argparse.Namespace) -> int:
    from fedh2l_mpi.analysis import report
    from fedh2l_mpi.analysis import run as runs
    from fedh2l_mpi.analysis.summary import summarise

    with contextlib.ExitStack() as opened:
        baseline = opened.enter_context(_looked_at(options.baseline)) if options.baseline else None
        # All forms but CSV have a place for what is wrong.
        tells = options.format == "csv"
        paths = runs.find(options.runs)
        looked: list[Run] = []
        summaries = []
        for path, name in zip(paths, runs.unique_names(paths), strict=True):
            with contextlib.ExitStack() as alone:
                # A page asks its runs for more; else one file at a time is open, for a system allows only so many.
                run = (alone if options.html is None else opened).enter_context(_looked_at(path, tells))
                looked += [] if options.html is None else [run]
                summaries.append(replace(summarise(run, baseline), name=name))
        if options.html is not None:
            from fedh2l_mpi.analysis import html

            html.build(looked, summaries, options.html)
            prints_text = options.out is None and options.format != "terminal"
            print(f"page: {options.html}", file=sys.stderr if prints_text else sys.stdout)
            if options.out is None and not prints_text:
                return 0
    if options.format != "terminal":
        text = {"markdown": report.as_markdown, "csv": report.as_csv, "json": report.as_json}[options.format](summaries)
        _give(text, options.out, "report")
    elif options.out is not None:
        from rich.console import Console

        with _written(options.out) as file:
            Console(file=file, width=120, color_system=None).print(report.terminal(summaries))
        print(f"report: {options.out}")
    else:
        from fedh2l_mpi.runtime import terminal

        terminal.open_console().print(report.terminal(summaries))
    return 0


def _plot_options(made: Parser) -> None:
    made.add_argument("run", type=Path, metavar="RUN", help=RUN)
    made.add_argument(
        "--figure",
        dest="figures",
        action="append",
        metavar="NAME",
        help="overview (default), curves, domains, bytes, graph, phases, conflict, reliability, or all; repeatable",
    )
    made.add_argument("--format", choices=["png", "svg", "pdf"], help="kind of file (default: by --out, or png)")
    made.add_argument(
        "--width",
        type=_width,
        metavar="MM",
        help="width [mm], or column (85) or page (175): those of a paper (default: what suits the figure)",
    )
    made.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file, or folder for several figures (default: beside the metrics file)",
    )


def _plot(options: argparse.Namespace) -> int:
    from fedh2l_mpi.analysis import figures

    names = options.figures or ["overview"]
    named = options.out.suffix.removeprefix(".").lower() if options.out else ""
    if named in figures.ENDINGS and options.format not in (None, named):
        raise UserError(f"--format: got {options.format!r}, but --out ends in .{named}; give one of them")
    with _looked_at(options.run) as run:
        plotted = figures.plot(run, names, options.out, options.format or "png", options.width)
    for path in plotted.files:
        print(f"plot: {path}")
    for reason in plotted.skipped.values():
        print(f"left out: {reason}")
    return 0


def _compare_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument("--by", action="append", default=[], metavar="KEY", help="group by this config key (repeatable)")
    made.add_argument("--ignore", action="append", default=[], metavar="KEY", help="do not group by it (repeatable)")
    made.add_argument(
        "--measure",
        dest="measures",
        action="append",
        metavar="FIELD",
        help="a column: accuracy_own, accuracy_all, accuracy_worst, bytes_sent, calibration_error... (repeatable)",
    )
    made.add_argument(
        "--baseline", metavar="GROUP", help="group that others are compared to (default: independent, or the first)"
    )
    made.add_argument(
        "--confidence", type=float, default=0.95, metavar="LEVEL", help="of the intervals, between 0 and 1 (0.95)"
    )
    made.add_argument("--format", choices=["terminal", "markdown", "csv", "latex"], default="terminal")
    made.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the groups' curves: .png, .svg or .pdf")


def _compare(options: argparse.Namespace) -> int:
    from fedh2l_mpi.analysis import compare
    from fedh2l_mpi.analysis import run as runs

    given = {} if options.measures is None else {"measures": options.measures}
    compared = compare.compare(
        runs.find(options.runs),
        options.by,
        options.ignore,
        baseline=options.baseline,
        confidence=options.confidence,
        **given,
    )
    for note in compared.notes:
        print(f"note: {note}", file=sys.stderr)
    _give(compare.render(compared, options.format), options.out, "comparison")
    if options.plot is not None:
        for note in compare.plot(compared, options.plot):
            print(f"note: {note}", file=sys.stderr)
        # Not into the text on standard output, which may be CSV for another program.
        print(f"plot: {options.plot}", file=sys.stderr if options.out is None else sys.stdout)
    return 0


def _watch_options(made: Parser) -> None:
    made.add_argument("run", type=Path, metavar="RUN", help="run directory or metrics file; it may not be there yet")
    made.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="S", help="seconds between looks, more if they are slow (2)"
    )


def _watch(options: argparse.Namespace) -> int:
    from fedh2l_mpi.analysis import watch

    with contextlib.suppress(KeyboardInterrupt):
        watch.follow(options.run, options.interval)
    return 0


def _export_options(made: Parser) -> None:
    made.add_argument("run", type=Path, metavar="RUN", help=RUN)
    made.add_argument(
        "--to", required=True, choices=["csv", "parquet", "netcdf"], help="csv and parquet: a folder of tidy tables"
    )
    made.add_argument("--out", type=Path, metavar="PATH", help="folder or file to make (default: beside the file)")


def _export(options: argparse.Namespace) -> int:
    from fedh2l_mpi.analysis import export

    with _looked_at(options.run) as run:
        for path in export.export(run, options.to, options.out):
            print(f"export: {path}")
    return 0


def _validate_options(made: Parser) -> None:
    made.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    made.add_argument("--quiet", action="store_true", help="print errors only")


def _validate(options: argparse.Namespace) -> int:
    from fedh2l_mpi.analysis import run as runs
    from fedh2l_mpi.analysis import validation

    sound = True
    for path in runs.find(options.runs):
        findings = validation.validate(path)
        sound = sound and all(finding.level != "error" for finding in findings)
        print(validation.text(path, findings, options.quiet), end="")
    return 0 if sound else EXIT_FAULT


COMMANDS = {
    "report": _Kind(
        "What ran, how well every participant does, what it cost, what looks wrong.", _report_options, _report
    ),
    "plot": _Kind("Draw a run, at the width of a paper's column or page.", _plot_options, _plot),
    "compare": _Kind(
        "Group runs by what differs in their configs: mean and spread over seeds, paired differences with intervals.",
        _compare_options,
        _compare,
    ),
    "watch": _Kind("Follow a running run in its metrics file; does not disturb it.", _watch_options, _watch),
    "export": _Kind("A run as tables for R, pandas and others: long and tidy.", _export_options, _export),
    "validate": _Kind(
        "Check a metrics file: schema, units, gaps, ranges, consistency, digests, h5dump.",
        _validate_options,
        _validate,
        VALIDATE_EPILOG,
    ),
}


@contextlib.contextmanager
def _looked_at(path: Path, tells: bool = True) -> Iterator["Run"]:
    """A run, closed in the end; what is wrong with its file is printed, unless the command itself `tells`."""
    from fedh2l_mpi.analysis import run as runs

    run = runs.look_at(path)
    try:
        yield run
    finally:
        run.close()
        for problem in run.problems if tells else ():
            print(f"fedh2l_mpi: {run.file}: {problem}", file=sys.stderr)


def _give(text: str, out: Path | None, what: str) -> None:
    """Print a text, or write it to a file."""
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    with _written(out) as file:
        file.write(text)
    print(f"{what}: {out}")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    try:
        # A run directory's name need not be UTF-8.
        with path.open("w", encoding="utf-8", errors="replace") as file:
            yield file
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written: {error.strerror}") from None


def _width(text: str) -> float:
    from fedh2l_mpi.analysis.figures.style import COLUMN_MM, PAGE_MM

    try:
        return {"column": COLUMN_MM, "page": PAGE_MM}.get(text) or float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be column, page, or a width in mm") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be from 0.1 to 3600 s")
    return seconds
