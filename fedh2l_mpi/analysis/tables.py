"""Make one table of many runs: mean and spread over seeds, differences paired by seed, cost until an accuracy.

Shape letters: R rounds, P participants, E evaluated rounds.
"""

import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis import statistics
from fedh2l_mpi.analysis.controls import Control, Gap
from fedh2l_mpi.analysis.csv_lines import CsvLines
from fedh2l_mpi.analysis.outcome import UNITS, Outcome, spread, units_of, until
from fedh2l_mpi.analysis.statistics import BySeed, Difference, Share
from fedh2l_mpi.runtime.units import duration, size

HEADINGS = {
    "accuracy_own": "own\ndomain",
    "accuracy_all": "all\ndomains",
    "accuracy_worst": "worst\ndomain",
    "bytes_sent": "sent",
    "bytes_received": "received",
    "calibration_error": "calibration\nerror",
}
NOTHING = "-"
# Confidence of intervals for which the user names no other.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Numbers:
    """Form in which measures are written.

    Attributes
    ----------
    percent : bool
        True: accuracies are in per cent.
    digits : int or None
        Decimals of what is neither bytes nor seconds; None: three, or one of per cent.
    """

    percent: bool = False
    digits: int | None = None

    def text(self, measure: str, value: float, sign: str = "") -> str:
        """Write a value; with sign "+", a difference."""
        units = units_of(measure)
        if units == "byte":
            return f"{'-' if value < 0 else '+' if sign and value > 0 else ''}{size(abs(value))}"
        if units == "s":
            return f"{value:{sign}.1f}"
        scale, digits = (100, 1) if self._is_percent(measure) else (1, 3)
        return f"{scale * value:{sign}.{digits if self.digits is None else self.digits}f}"

    def heading(self, measure: str) -> str:
        """Return the heading of a measure's column."""
        return HEADINGS.get(measure, measure) + (" [%]" if self._is_percent(measure) else "")

    def _is_percent(self, measure: str) -> bool:
        return self.percent and measure.startswith("accuracy_")


@dataclass(frozen=True)
class Cost:
    """Cost until an accuracy is reached: its name in CSV, its value by each evaluated round, its text and meaning."""

    column: str
    by_round: Callable[[Outcome], NDArray[Any]]
    show: Callable[[float], str]
    meaning: str


def _simulated(run: Outcome) -> NDArray[Any]:
    return np.full(len(run.rounds_E), np.nan) if run.simulated_s_E is None else run.simulated_s_E


COSTS = {
    "sent": Cost("bytes", lambda run: run.bytes_E, size, "bytes sent by a participant"),
    "rounds": Cost("rounds", lambda run: run.rounds_E, "{:.3g}".format, "rounds done"),
    "seconds": Cost(
        "training_seconds",
        lambda run: run.training_s_E,
        "{:.1f}".format,
        "time in which a participant published and trained, without waiting and evaluation",
    ),
    "simulated": Cost("simulated_seconds", _simulated, duration, "simulated time of the network"),
}


@dataclass(frozen=True)
class Table:
    """Headings, of one or two lines, and cells as text; the first column is the row's name.

    Attributes
    ----------
    bold : collection of (row, column)
        Cells in bold; plain text marks them with a star.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    bold: Collection[tuple[int, int]] = ()


def table(
    runs_by_row: Mapping[str, Sequence[Outcome]],
    columns: Sequence[str],
    reach: Sequence[float] = (),
    compare_to: Control | None = None,
    title: str = "",
    *,
    costs: Sequence[str] = ("sent",),
    gap: Gap | None = None,
    confidence: float | None = None,
    numbers: Numbers | None = None,
) -> Table:
    """Make a table with one line for each row; the runs of a row differ in their seeds only.

    Parameters
    ----------
    columns : sequence of str
        Fields of the metrics file.
    reach : sequence of float
        All-domain accuracies; each adds a column for each cost until it was reached.
    compare_to : Control or None
        Rows that the others are compared to, seed by seed.
    costs : sequence of str
        Names in COSTS.
    gap : Gap or None
        Two controls; adds a column with the share of the gap between them that each row closes.
    confidence : float or None
        Confidence of the intervals; None: CONFIDENCE, and differences have a standard deviation instead.
    numbers : Numbers or None
        How the columns are written; None: accuracies are fractions with three decimals.
    """
    written = numbers or Numbers()
    counts = {len(runs) for runs in runs_by_row.values()}
    makers: list[tuple[str, Callable[[str, Sequence[Outcome]], str]]] = []
    if len(counts) > 1:
        makers.append(("seeds", lambda row, runs: str(len(runs))))
    makers += [(written.heading(name), _maker_of_field(name, written)) for name in columns]
    makers += [(f"{name}\nuntil {level:g}", _maker_of_reach(COSTS[name], level)) for level in reach for name in costs]
    if compare_to is not None:
        makers.append((f"minus\n{compare_to.name}", _maker_of_difference(runs_by_row, compare_to, confidence)))
    if gap is not None:
        makers.append(("share of\nthe gap", _maker_of_share(runs_by_row, gap, confidence or CONFIDENCE)))
    rows = [[row, *(maker(row, runs) for _, maker in makers)] for row, runs in runs_by_row.items()]
    many = "the seeds" if len(counts) > 1 else f"{max(counts)} seeds" if max(counts) > 1 else "one seed"
    notes = [f"Means over participants after the last round; mean ± sample standard deviation over {many}."]
    if reach:
        counted = "; ".join(f"{name}: {COSTS[name].meaning}" for name in costs)
        notes.append(
            f"Until: what was spent until an evaluation first reached this all-domain accuracy ({counted}); "
            "(1 of 2): one of two seeds reached it."
        )
    if compare_to is not None:
        around = "" if confidence is None else f", mean with its Student-t interval of {percent(confidence)}"
        notes.append(
            f"Minus {compare_to.name}: difference in all-domain accuracy, seed by seed{around}; "
            "(1 of 2): higher in one of two seeds."
        )
    if gap is not None:
        said = describe_share(gap.low.name, gap.high.name, gap.measure, confidence or CONFIDENCE)
        notes.append(f"Share of the gap: {said[0].lower()}{said[1:]}")
    return Table(title, ["", *(heading for heading, _ in makers)], rows, "\n".join(notes))


def percent(confidence: float) -> str:
    """Write a confidence."""
    return f"{100 * confidence:.4g}%"


def describe_share(low: str, high: str, measure: str, confidence: float) -> str:
    """Say what a column of shares means."""
    return (
        f"The part of the gap in {measure} from {low} to {high} that is closed. It is a ratio of "
        f"means over the seeds, with Fieller's interval of {percent(confidence)}. In the row of {high}, the gap itself "
        f"with its Student-t interval. {NOTHING}: the gap's interval is not above 0, so a share would mean nothing."
    )


def _maker_of_field(name: str, written: Numbers) -> Callable[[str, Sequence[Outcome]], str]:
    return lambda row, runs: mean_and_spread([run.values.get(name, math.nan) for run in runs], name, written)


def _maker_of_reach(cost: Cost, accuracy: float) -> Callable[[str, Sequence[Outcome]], str]:
    return lambda row, runs: _reached([until(run, cost.by_round(run), accuracy) for run in runs], cost.show)


def _maker_of_difference(
    runs_by_row: Mapping[str, Sequence[Outcome]], control: Control, confidence: float | None
) -> Callable[[str, Sequence[Outcome]], str]:
    def make(row: str, runs: Sequence[Outcome]) -> str:
        other = control.by_label[row]
        return NOTHING if other in (None, row) else _difference(runs, runs_by_row[other], confidence)

    return make


def _maker_of_share(
    runs_by_row: Mapping[str, Sequence[Outcome]], gap: Gap, confidence: float
) -> Callable[[str, Sequence[Outcome]], str]:
    def make(row: str, runs: Sequence[Outcome]) -> str:
        low, high = gap.low.by_label[row], gap.high.by_label[row]
        if low is None or high is None or row == low:
            return NOTHING
        ours, lower, upper = (by_seed(runs_by_row[label], gap.measure) for label in (row, low, high))
        return show_share(statistics.share_of_gap(ours, lower, upper, confidence), row == high)

    return make


def by_seed(runs: Sequence[Outcome], measure: str) -> BySeed:
    """Return the value of a measure for each seed."""
    return {run.seed: run.values.get(measure, math.nan) for run in runs}


def show_share(share: Share, is_upper: bool, show: Callable[[float], str] = "{:+.3f}".format) -> str:
    """Write a share with its interval, or the gap itself in the row of the upper control."""
    if is_upper:
        return NOTHING if math.isnan(share.gap.mean) else f"gap {show_interval(share.gap, show)}"
    if math.isnan(share.share):
        return NOTHING
    if math.isnan(share.low):
        return f"{share.share:.2f} [{NOTHING}]"
    return f"{share.share:.2f} [{share.low:.2f}, {share.high:.2f}]"


def show_interval(difference: Difference, show: Callable[[float], str]) -> str:
    """Write a difference with its interval; [-]: there are too few pairs for an interval."""
    if math.isnan(difference.low):
        return f"{show(difference.mean)} [{NOTHING}]"
    return f"{show(difference.mean)} [{show(difference.low)}, {show(difference.high)}]"


def mean_and_spread(values: Sequence[float], measure: str, written: Numbers) -> str:
    """Write the mean of a measure over seeds, and its standard deviation."""
    mean, deviation = spread(values)
    if math.isnan(mean):
        return NOTHING
    # Bytes are often equal for all seeds, and a deviation of 0 would only take space.
    if math.isnan(deviation) or (units_of(measure) == "byte" and deviation == 0.0):
        return written.text(measure, mean)
    return f"{written.text(measure, mean)} ± {written.text(measure, deviation)}"


def _reached(values: Sequence[float], show: Callable[[float], str]) -> str:
    reached = [value for value in values if not math.isnan(value)]
    if not reached:
        return "never" if values else NOTHING
    return show(float(np.mean(reached))) + (f" ({len(reached)} of {len(values)})" if len(reached) < len(values) else "")


def _difference(ours: Sequence[Outcome], theirs: Sequence[Outcome], confidence: float | None) -> str:
    mine, other = by_seed(ours, "accuracy_all"), by_seed(theirs, "accuracy_all")
    differences = [mine[seed] - other[seed] for seed in mine if seed in other]
    if not differences:
        return NOTHING
    higher = f"({sum(value > 0 for value in differences)} of {len(differences)})"
    if confidence is not None:
        return f"{show_interval(statistics.difference(mine, other, confidence), '{:+.3f}'.format)} {higher}"
    mean, deviation = spread(differences)
    around = f" ± {deviation:.3f}" if not math.isnan(deviation) else ""
    return f"{mean:+.3f}{around} {higher}"


def plain(table: Table) -> str:
    """Return the table in columns of plain text; a narrow terminal wraps its lines."""
    headings = [heading.split("\n") for heading in table.headings]
    deep = max(map(len, headings))
    lines = list(zip(*([""] * (deep - len(parts)) + parts for parts in headings), strict=True))
    # If one cell has a star, all cells of its column get a blank, so that the digits stay aligned.
    starred = {column for _, column in table.bold}
    for i, row in enumerate(table.rows):
        stars = ["*" if (i, j) in table.bold else " " if j in starred else "" for j in range(len(row))]
        lines.append(tuple(cell + star for cell, star in zip(row, stars, strict=True)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for name, *cells in lines:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        texts.append("  ".join([name.ljust(widths[0]), *aligned]))
    rule = "-" * max(map(len, texts))
    return "\n".join(filter(None, [table.title, *texts[:deep], rule, *texts[deep:], rule, table.caption]))


def markdown(table: Table) -> str:
    """Return the table as GitHub's Markdown."""
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)], *_marked(table, "**{}**".format)]
    text = "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)
    heading = f"**{table.title}**\n\n" if table.title else ""
    return f"{heading}{text}\n\n{table.caption}\n"


def _markdown_cell(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _marked(table: Table, mark: Callable[[str], str]) -> list[list[str]]:
    return [
        [mark(cell) if (i, j) in table.bold else cell for j, cell in enumerate(row)] for i, row in enumerate(table.rows)
    ]


LATEX_NEEDS = "% needs \\usepackage{booktabs} in the preamble"
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    "\n": " ",
}


def latex(table: Table, label: str = "") -> str:
    """Return the table as LaTeX for an article, with the rules of booktabs, and a label to refer to it."""
    escaped = [[_latex(cell) for cell in row] for row in table.rows]
    rows = _marked(Table("", (), escaped, "", table.bold), r"\textbf{{{}}}".format)
    body = [" & ".join(row) + r" \\" for row in rows]
    # LaTeX reads [ and * after \\ as its options, so an empty group comes first.
    body = ["{}" + line if line[:1] in ("[", "*") else line for line in body]
    caption = " ".join(filter(None, [table.title and f"{table.title}.", *table.caption.split("\n")]))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            r"\toprule",
            " & ".join(map(_latex, table.headings)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex(caption)}}}",
            *([rf"\label{{{label}}}"] if label else []),
            r"\end{table}",
            "",
        ]
    )


def _latex(cell: str) -> str:
    text = "".join(LATEX.get(character, character) for character in cell)
    # A number needs a minus sign, and LaTeX prints "-" as a hyphen.
    return re.sub(r"(^|[ \[])-(?=\d)", r"\1$-$", text)


def folded(table: Table, width: int) -> list[Table]:
    """Split the table into several that are at most this wide as plain text; one column alone may be wider.

    Each part has the rows' names and as many columns as fit.
    """
    parts: list[list[int]] = []
    for column in range(1, len(table.headings)):
        if parts and _width(_columns(table, [*parts[-1], column])) <= width:
            parts[-1].append(column)
        else:
            parts.append([column])
    found = [_columns(table, part) for part in parts]
    return [
        replace(part, title=table.title if i == 0 else "", caption=table.caption if i == len(found) - 1 else "")
        for i, part in enumerate(found)
    ]


def _columns(table: Table, columns: Sequence[int]) -> Table:
    chosen = [0, *columns]
    return Table(
        "",
        [table.headings[j] for j in chosen],
        [[row[j] for j in chosen] for row in table.rows],
        "",
        {(i, chosen.index(j)) for i, j in table.bold if j in chosen},
    )


def _width(table: Table) -> int:
    return max(map(len, plain(table).split("\n")))


def long_form(
    runs: Sequence[tuple[str, Mapping[str, str], Outcome]], reach: Sequence[float] = (), axes: Sequence[str] = ()
) -> str:
    """Return one CSV line for each run, with all digits, from which any other table can be made.

    Parameters
    ----------
    runs : sequence of (label, value on every axis, outcome)
    """
    text = io.StringIO()
    lines = CsvLines(text)
    reached = [f"{cost.column}_until_{accuracy:g}" for accuracy in reach for cost in COSTS.values()]
    names = list(dict.fromkeys([*UNITS, *(name for _, _, run in runs for name in run.values)]))
    lines.write([["label", *axes, "seed", "rounds", *names, *reached, "seconds", "revision"]])
    for label, settings, run in runs:
        on_axes: list[Any] = [settings.get(axis, "") for axis in axes]
        spent = [until(run, cost.by_round(run), accuracy) for accuracy in reach for cost in COSTS.values()]
        values = [_blank(value) for value in (*(run.values.get(name, math.nan) for name in names), *spent)]
        lines.write([[label, *on_axes, run.seed, run.rounds_E[-1], *values, f"{run.seconds:.3f}", run.revision]])
    return text.getvalue()


def _blank(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
