"""Compare runs in one table, grouped by the differences in their configs, with differences paired by seed.

Shape letter: E evaluated rounds.
"""

import csv
import functools
import io
import math
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedh2l_mpi.analysis import grouping, statistics, tables
from fedh2l_mpi.analysis.finished_runs import FinishedRun, keep_newest, read_finished
from fedh2l_mpi.analysis.outcome import UNITS, Outcome, spread
from fedh2l_mpi.analysis.statistics import BySeed, Difference
from fedh2l_mpi.analysis.tables import HEADINGS, NOTHING, Table
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.runtime.terminal import is_terminal
from fedh2l_mpi.runtime.units import size

MEASURES = ("accuracy_own", "accuracy_all", "accuracy_worst", "bytes_sent")
FORMATS = ("terminal", "markdown", "csv", "latex")
# Columns of a table in a batch log.
WIDTH_OF_A_LOG = 120


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only.

    Attributes
    ----------
    label : str
        Name made of the settings that distinguish it from the other groups.
    settings : mapping
        These settings, by dotted key.
    outcomes : sequence of Outcome
        One outcome for each seed, in the order of seeds.
    """

    label: str
    settings: Mapping[str, Any]
    method: str
    outcomes: Sequence[Outcome]

    def by_seed(self, measure: str) -> BySeed:
        """Return the value of a measure for each seed."""
        return {outcome.seed: outcome.values[measure] for outcome in self.outcomes}


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, the measures to compare, and notes.

    Attributes
    ----------
    measures : sequence of str
        Fields of the metrics file.
    baseline : Group
        The group that the others are compared to.
    confidence : float
        Confidence of the intervals.
    notes : sequence of str
        One line for each run that was left out, and for other differences between the groups.
    """

    groups: Sequence[Group]
    measures: Sequence[str]
    baseline: Group
    confidence: float
    notes: Sequence[str]

    def less_baseline(self, group: Group, measure: str) -> Difference:
        """Return a group's difference to the baseline."""
        return statistics.difference(group.by_seed(measure), self.baseline.by_seed(measure), self.confidence)

    def best(self, measure: str) -> Group | None:
        """Return the group that is better than every other, or None if the runs do not show that of any."""
        higher = _higher_is_better(measure)
        if higher is None:
            return None
        number = statistics.best([group.by_seed(measure) for group in self.groups], higher, self.confidence)
        return None if number is None else self.groups[number]


def compare(
    paths: Sequence[Path],
    by: Sequence[str] = (),
    ignore: Sequence[str] = (),
    measures: Sequence[str] = MEASURES,
    baseline: str | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Group finished runs by the settings in which they differ, except seeds, locations and speeds.

    Parameters
    ----------
    paths : sequence of Path
        Run directories or metrics files.
    by : sequence of str
        Keys or sections of the config to group by instead.
    ignore : sequence of str
        Keys or sections of the config that never make groups.
    measures : sequence of str
        Fields of the metrics file.
    baseline : str or None
        Label of the group to compare to; None: the group of method `independent`, if there is one only, else the first.

    Raises
    ------
    UserError
        If a key, measure or group is unknown, or no run is left.
    """
    if not 0.0 < confidence < 1.0:
        raise UserError(f"--confidence: got {confidence:g}, must be between 0 and 1, such as 0.95.")
    for name in measures:
        if name not in UNITS:
            raise UserError(f"--measure: got {name!r}. Known: {', '.join(UNITS)}{did_you_mean(name, list(UNITS))}")
    found, notes = read_finished(paths)
    if not found:
        lines = notes or ["no run was named"]
        raise UserError("compare: there is no finished run to compare.\n  " + "\n  ".join(lines))
    keys = _keys(found, by, ignore)
    found, twice = keep_newest(found, keys)
    groups = _groups(found, keys)
    notes = [*notes, *twice, *_what_else_differs(found, keys, ignore), *_unknown(groups, measures)]
    return Comparison(groups, list(dict.fromkeys(measures)), _baseline(groups, baseline), confidence, notes)


def render(comparison: Comparison, format: str) -> str:
    """Return the comparison as text in one of FORMATS, without its notes."""
    if format == "csv":
        return _csv(comparison)
    if format == "terminal":
        return _terminal(comparison)
    if format == "markdown":
        return "\n".join(map(tables.markdown, _tables(comparison, "Bold")))
    if format == "latex":
        return "\n".join([tables.LATEX_NEEDS, *map(tables.latex, _tables(comparison, "Bold"))])
    raise UserError(f"--format: got {format!r}. Known: {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}")


def plot(comparison: Comparison, out: Path, title: str = "") -> list[str]:
    """Draw the learning curves of all groups into one figure; return a note for each group that is not drawn.

    Raises
    ------
    UserError
        If no group can be drawn, matplotlib is missing, or `out` cannot be written.
    """
    from fedh2l_mpi.analysis.figures import plot_overlay

    runs_by_label = {group.label: _at_common_rounds(group.outcomes) for group in comparison.groups}
    lacking = [label for label, runs in runs_by_label.items() if not runs]
    if len(lacking) == len(runs_by_label):
        raise UserError(
            "--plot: there is nothing to draw, because no group has a round in which all of its runs were evaluated. "
            "Group also by the key that makes their rounds differ."
        )
    plot_overlay(runs_by_label, title, out)
    return [f"not drawn: {label} has no round in which all of its runs were evaluated" for label in lacking]


def _keys(found: Sequence[FinishedRun], by: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """Return the keys to group by."""
    settings = [run.settings for run in found]
    ignored = set(grouping.expand_keys(ignore, "--ignore", settings))
    if by:
        asked = grouping.expand_keys(by, "--by", settings)
        if grouping.SEED in asked:
            raise UserError("--by: got 'seed', but a group's numbers are means over its seeds. Choose another key.")
        for name in by:
            if ignored.issuperset(grouping.expand_keys([name], "--by", settings)):
                raise UserError(f"--by: got {name!r}, but --ignore has it, too. Give it to one of them only.")
        candidates = [key for key in grouping.differing(settings) if key in asked and key not in ignored]
        # A key that the user named stays; of a section that the user named, only distinguishing keys stay.
        return grouping.distinguishing(settings, candidates, [key for key in candidates if key in by])
    candidates = [key for key in grouping.differing([run.counts for run in found]) if key not in ignored]
    return grouping.distinguishing(settings, candidates)


def _groups(found: Sequence[FinishedRun], keys: Sequence[str]) -> list[Group]:
    members: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in found:
        members.setdefault(grouping.group_key(run.settings, keys), []).append(run)
    runs = list(members.values())
    settings = [{key: group[0].settings.get(key) for key in keys} for group in runs]
    methods = [str(group[0].settings.get(grouping.METHOD, "all runs")) for group in runs]
    groups = [
        Group(label, place, method, sorted((run.outcome for run in group), key=lambda run: run.seed))
        for label, place, method, group in zip(
            grouping.labels(settings, keys, methods), settings, methods, runs, strict=True
        )
    ]
    return [groups[number] for number in grouping.in_order(settings, keys)]


def _what_else_differs(found: Sequence[FinishedRun], keys: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """Return notes on all other differences, which may also explain the groups' results."""
    ignored = set(grouping.expand_keys(ignore, "--ignore", [run.settings for run in found]))
    members: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in found:
        left = {key: value for key, value in run.counts.items() if key not in ignored}
        members.setdefault(grouping.group_key(run.settings, keys), []).append(left)
    within, between = grouping.other_differences(list(members.values()), keys)
    notes = []
    if within:
        notes.append(f"runs of one group differ in {', '.join(within)}")
    if between:
        notes.append(f"the groups also differ in {', '.join(between)}")
    for what, values in {
        "revisions of the code": sorted({_short(run.outcome.revision) for run in found}),
        "schemas of the file": sorted({str(run.schema) for run in found}),
    }.items():
        if len(values) > 1:
            notes.append(f"the runs come from {len(values)} {what} ({', '.join(values)}), so their numbers may differ")
    return notes


def _short(revision: str) -> str:
    """Abbreviate a git revision."""
    commit, dash, dirty = revision.partition("-")
    return f"{commit[:7]}{dash}{dirty}" or "unknown"


def _unknown(groups: Sequence[Group], measures: Sequence[str]) -> list[str]:
    """Return a note for each measure that some run of a group lacks."""
    notes = []
    for measure in measures:
        lacking = [group.label for group in groups if any(map(math.isnan, group.by_seed(measure).values()))]
        if lacking:
            notes.append(f"{measure} is unknown for some runs of {'; '.join(lacking)}")
    return notes


def _baseline(groups: Sequence[Group], asked: str | None) -> Group:
    if asked is None:
        alone = [group for group in groups if group.method == "independent"]
        return alone[0] if len(alone) == 1 else groups[0]
    for group in groups:
        if group.label == asked:
            return group
    known = [group.label for group in groups]
    raise UserError(f"--baseline: got {asked!r}. Groups: {'; '.join(known)}{did_you_mean(asked, known)}")


def _higher_is_better(measure: str) -> bool | None:
    """Return True or False, or None if neither higher nor lower is better."""
    if measure.startswith("accuracy_"):
        return True
    return False if UNITS[measure] in ("byte", "s", "nats") or measure == "calibration_error" else None


def _at_common_rounds(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the runs at the rounds in which all were evaluated; ignored keys may make these rounds differ."""
    common = functools.reduce(np.intersect1d, [run.rounds_E for run in outcomes])
    found = []
    for run in outcomes if len(common) else ():
        rows = np.isin(run.rounds_E, common)
        found.append(
            replace(
                run,
                rounds_E=run.rounds_E[rows],
                accuracy_E=run.accuracy_E[rows],
                bytes_E=run.bytes_E[rows],
            )
        )
    return found


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.4g}%"


def _tables(comparison: Comparison, mark: str) -> list[Table]:
    """Return the table of all groups, and the table of differences to the baseline."""
    rows = {group.label: group.outcomes for group in comparison.groups}
    values = tables.table(rows, comparison.measures)
    first = len(values.headings) - len(comparison.measures)
    best = [comparison.best(measure) for measure in comparison.measures]
    bold = {(comparison.groups.index(group), first + column) for column, group in enumerate(best) if group is not None}
    caption = [values.caption]
    settings = [group.settings for group in comparison.groups]
    usual = grouping.common_values(settings, list(settings[0]))
    if usual:
        caption.append(f"Unless a row says otherwise: {grouping.label(usual)}.")
    summed = {"byte": "Bytes", "s": "Seconds"}
    caption += [
        f"{what} are summed over the rounds."
        for units, what in summed.items()
        if units in map(UNITS.get, comparison.measures)
    ]
    groups = len(comparison.groups)
    if groups > 1:
        each = _percent(statistics.corrected(comparison.confidence, groups))
        if groups > 2:
            each += f": {_percent(comparison.confidence)} by Bonferroni over {groups - 1} comparisons"
        caption.append(
            f"{mark}: better than every other group. The Student-t interval of its difference to each of them, paired "
            f"by seed, excludes 0 ({each}).{'' if bold else ' No group is.'}"
        )
    found = [replace(values, caption="\n".join(caption), bold=bold)]
    return found if groups == 1 else [*found, _table_of_differences(comparison)]


def _table_of_differences(comparison: Comparison) -> Table:
    others = [group for group in comparison.groups if group is not comparison.baseline]
    by_group = [[comparison.less_baseline(group, measure) for measure in comparison.measures] for group in others]
    rows = [
        [group.label, str(differences[0].pairs), *map(_cell, differences, comparison.measures)]
        for group, differences in zip(others, by_group, strict=True)
    ]
    pairs = [row[1] for row in rows]
    headings = ["", "pairs", *(HEADINGS.get(measure, measure) for measure in comparison.measures)]
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
        f"{_percent(comparison.confidence)}, not corrected for several comparisons.{too_few}"
    )
    return Table(f"Differences to {comparison.baseline.label}", headings, rows, caption)


def _cell(difference: Difference, measure: str) -> str:
    if math.isnan(difference.mean):
        return NOTHING
    units = UNITS[measure]
    show: Callable[[float], str] = _signed_size if units == "byte" else "{:+.1f}".format
    if units not in ("byte", "s"):
        show = "{:+.3f}".format
    if math.isnan(difference.low):
        return f"{show(difference.mean)} [{NOTHING}]"
    # Bytes often differ by the same amount for all seeds, and an interval of width 0 would only take space.
    if units == "byte" and difference.low == difference.high:
        return show(difference.mean)
    return f"{show(difference.mean)} [{show(difference.low)}, {show(difference.high)}]"


def _signed_size(count: float) -> str:
    return ("-" if count < 0 else "+" if count > 0 else "") + size(abs(count))


def _terminal(comparison: Comparison) -> str:
    """Return plain text; a table that is wider than the terminal is split, and its parts stand below each other."""
    width = shutil.get_terminal_size().columns if is_terminal() else WIDTH_OF_A_LOG
    parts = []
    for table in _tables(comparison, "*"):
        lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in table.caption.split("\n")]
        parts += tables.folded(replace(table, caption="\n".join(lines)), width)
    return "\n\n".join(map(tables.plain, parts)) + "\n"


def _csv(comparison: Comparison) -> str:
    """Return one CSV line for each group, with all digits; unknown numbers are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(comparison.groups[0].settings)
    columns = ("mean", "std", "n", "diff", "low", "high", "pairs", "best")
    writer.writerow(
        [
            *("group", *keys, "seeds", "baseline", "confidence"),
            *(f"{measure}_{column}" for measure in comparison.measures for column in columns),
        ]
    )
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
        writer.writerow(line)
    return text.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
