"""Write a comparison as text: as plain tables, Markdown, LaTeX or CSV."""

import functools
import io
import math
import shutil
import textwrap
from dataclasses import replace
from typing import Any

from fedh2l_mpi.analysis import grouping, statistics, tables
from fedh2l_mpi.analysis.compare import Comparison
from fedh2l_mpi.analysis.controls import Control
from fedh2l_mpi.analysis.csv_lines import CsvLines
from fedh2l_mpi.analysis.outcome import spread, units_of
from fedh2l_mpi.analysis.statistics import Difference
from fedh2l_mpi.analysis.tables import NOTHING, Numbers, Table
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.metrics import SIMULATED_SECONDS
from fedh2l_mpi.runtime.terminal import is_terminal, log_width

FORMATS = ("terminal", "markdown", "csv", "latex")
# CSV columns of each measure of which a gap is closed.
SHARE_COLUMNS = ("share", "share_low", "share_high", "gap")


def render(
    comparison: Comparison, format: str, numbers: Numbers | None = None, label: str = "", caption: str = ""
) -> str:
    """Return the comparison as text in one of FORMATS, without its notes.

    Parameters
    ----------
    numbers : Numbers or None
        How the tables write measures; CSV has all digits.
    label, caption : str
        Of the first table in LaTeX; the others' labels end in `-differences` and `-gap`.
    """
    written = numbers or Numbers()
    if format == "csv":
        return _csv(comparison)
    if format == "terminal":
        return _terminal(comparison, written)
    if format == "markdown":
        return "\n".join(map(tables.markdown, _tables(comparison, "Bold", written)))
    if format == "latex":
        found = _tables(comparison, "Bold", written)
        found[0] = replace(found[0], caption=caption or found[0].caption)
        ends = ["", *(["-differences"] if len(comparison.groups) > 1 else []), "-gap"]
        labels = [f"{label}{end}" if label else "" for end in ends]
        return "\n".join([tables.LATEX_NEEDS, *map(tables.latex, found, labels)])
    raise UserError(f"--format: got {format!r}. Known: {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}")


def _tables(comparison: Comparison, mark: str, written: Numbers) -> list[Table]:
    """Return the table of all groups, the table of differences to the baseline, and the table of shares of the gap."""
    rows = {group.label: group.outcomes for group in comparison.groups}
    values = tables.table(rows, comparison.measures, numbers=written)
    first = len(values.headings) - len(comparison.measures)
    best = [comparison.best(measure) for measure in comparison.measures]
    bold = {(comparison.groups.index(group), first + column) for column, group in enumerate(best) if group is not None}
    caption = [values.caption]
    settings = [group.settings for group in comparison.groups]
    usual = grouping.common_values(settings, list(settings[0]))
    if usual:
        caption.append(f"Unless a row says otherwise: {grouping.label(usual)}.")
    summed = {"byte": "Bytes", "s": "Seconds"}
    adding_up = {units_of(measure) for measure in comparison.measures if measure != SIMULATED_SECONDS.name}
    caption += [f"{what} are summed over the rounds." for units, what in summed.items() if units in adding_up]
    if SIMULATED_SECONDS.name in comparison.measures:
        caption.append("Simulated seconds are those at which the last participant ended the last round.")
    groups = len(comparison.groups)
    if groups > 1:
        each = tables.percent(statistics.corrected(comparison.confidence, groups))
        if groups > 2:
            each += f": {tables.percent(comparison.confidence)} by Bonferroni over {groups - 1} comparisons"
        caption.append(
            f"{mark}: better than every other group. The Student-t interval of its difference to each of them, paired "
            f"by seed, excludes 0 ({each}).{'' if bold else ' No group is.'}"
        )
        if "byte" in map(units_of, comparison.measures):
            caption.append("A group that sends nothing is not compared by its bytes.")
    found = [replace(values, caption="\n".join(caption), bold=bold)]
    if groups > 1:
        found.append(_table_of_differences(comparison, written))
    return found if comparison.gap is None else [*found, _table_of_shares(comparison, *comparison.gap, written)]


def _table_of_shares(comparison: Comparison, low: Control, high: Control, written: Numbers) -> Table:
    measures = comparison.gap_measures
    rows = [
        [
            group.label,
            *(
                tables.show_share(
                    comparison.share_of_gap(group, measure),
                    high.by_label[group.label] == group.label,
                    functools.partial(written.text, measure, sign="+"),
                )
                for measure in measures
            ),
        ]
        for group in comparison.groups
        if low.by_label[group.label] != group.label
    ]
    headings = ["", *map(written.heading, measures)]
    caption = tables.describe_share(low.name, high.name, "the accuracy", comparison.confidence)
    return Table(f"Share of the gap from {low.name} to {high.name}", headings, rows, caption)


def _table_of_differences(comparison: Comparison, written: Numbers) -> Table:
    others = [group for group in comparison.groups if group is not comparison.baseline]
    by_group = [[comparison.less_baseline(group, measure) for measure in comparison.measures] for group in others]
    rows = [
        [
            group.label,
            str(differences[0].pairs),
            *(_cell(*each, written) for each in zip(differences, comparison.measures, strict=True)),
        ]
        for group, differences in zip(others, by_group, strict=True)
    ]
    pairs = [row[1] for row in rows]
    headings = ["", "pairs", *map(written.heading, comparison.measures)]
    many = "numbers of pairs differ"
    if len(set(pairs)) == 1:
        # If all rows have the same number of pairs, the caption gives it instead of a column.
        del headings[1]
        rows = [[row[0], *row[2:]] for row in rows]
        many = f"{pairs[0]} pair{'' if pairs[0] == '1' else 's'}"
    some_lack = any(difference.pairs == 1 for row in by_group for difference in row)
    too_few = f" [{NOTHING}]: fewer than 2 pairs." if some_lack else ""
    caption = (
        f"Mean of the differences seed by seed ({many}), with its Student-t interval of "
        f"{tables.percent(comparison.confidence)}, not corrected for several comparisons.{too_few}"
    )
    return Table(f"Differences to {comparison.baseline.label}", headings, rows, caption)


def _cell(difference: Difference, measure: str, written: Numbers) -> str:
    if math.isnan(difference.mean):
        return NOTHING
    # Bytes often differ by the same amount for all seeds, and an interval of width 0 would only take space.
    if units_of(measure) == "byte" and difference.low == difference.high:
        return written.text(measure, difference.mean, "+")
    return tables.show_interval(difference, functools.partial(written.text, measure, sign="+"))


def _terminal(comparison: Comparison, written: Numbers) -> str:
    """Return plain text; a table that is wider than the terminal is split, and its parts stand below each other."""
    width = shutil.get_terminal_size().columns if is_terminal() else log_width()
    parts = []
    for table in _tables(comparison, "*", written):
        lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in table.caption.split("\n")]
        parts += tables.folded(replace(table, caption="\n".join(lines)), width)
    return "\n\n".join(map(tables.plain, parts)) + "\n"


def _csv(comparison: Comparison) -> str:
    """Return one CSV line for each group, with all digits; unknown numbers are empty."""
    text = io.StringIO()
    lines = CsvLines(text)
    keys = list(comparison.groups[0].settings)
    columns = ("mean", "std", "n", "diff", "low", "high", "pairs", "best")
    shares = [f"{measure}_{name}" for measure in comparison.gap_measures for name in SHARE_COLUMNS]
    headings = [
        *("group", *keys, "seeds", "baseline", "confidence"),
        *(f"{measure}_{column}" for measure in comparison.measures for column in columns),
        *(["gap_low", "gap_high"] if comparison.gap else []),
        *shares,
    ]
    lines.write([headings])
    best = {measure: comparison.best(measure) for measure in comparison.measures}
    for group in comparison.groups:
        seeds = "+".join(str(outcome.seed) for outcome in group.outcomes)
        line: list[Any] = [group.label, *(grouping.text(group.settings[key], None) for key in keys)]
        line += [seeds, comparison.baseline.label, comparison.confidence]
        for measure in comparison.measures:
            values = list(group.by_seed(measure).values())
            difference = comparison.less_baseline(group, measure)
            of_baseline = (difference.mean, difference.low, difference.high)
            if group is comparison.baseline:
                of_baseline = (math.nan,) * 3
            line += [_number(value) for value in spread(values)]
            line += [len(values), *map(_number, of_baseline)]
            line += ["" if group is comparison.baseline else difference.pairs, int(best[measure] is group)]
        if comparison.gap is not None:
            line += [control.by_label[group.label] or "" for control in comparison.gap]
        for measure in comparison.gap_measures:
            share = comparison.share_of_gap(group, measure)
            line += map(_number, (share.share, share.low, share.high, share.gap.mean))
        lines.write([line])
    return text.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
