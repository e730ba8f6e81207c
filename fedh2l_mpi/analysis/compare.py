"""Runs from anywhere in one table: grouped by what differs in their configs, differences paired by seed.

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
from fedh2l_mpi.analysis.finished_runs import Finished, finished, newest
from fedh2l_mpi.analysis.outcome import UNITS, Outcome, spread
from fedh2l_mpi.analysis.statistics import BySeed, Difference
from fedh2l_mpi.analysis.tables import HEADINGS, NOTHING, Table
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.runtime.terminal import is_terminal
from fedh2l_mpi.runtime.units import size

MEASURES = ("accuracy_own", "accuracy_all", "accuracy_worst", "bytes_sent")
FORMATS = ("terminal", "markdown", "csv", "latex")
# As in a batch log's other tables.
WIDTH_OF_A_LOG = 120


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds.

    Attributes
    ----------
    label : str
        Its name, from the settings that tell it from the other groups.
    settings : mapping
        These settings, by dotted key.
    outcomes : sequence of Outcome
        In the order of their seeds, each seed once.
    """

    label: str
    settings: Mapping[str, Any]
    method: str
    outcomes: Sequence[Outcome]

    def by_seed(self, measure: str) -> BySeed:
        """What each seed came to."""
        return {outcome.seed: outcome.values[measure] for outcome in self.outcomes}


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and what there is to be said about them.

    Attributes
    ----------
    measures : sequence of str
        Fields of the metrics file.
    baseline : Group
        One of the groups, to which the others are compared.
    confidence : float
        Of the intervals.
    notes : sequence of str
        What was left out and why, and what else makes the groups differ, a line each.
    """

    groups: Sequence[Group]
    measures: Sequence[str]
    baseline: Group
    confidence: float
    notes: Sequence[str]

    def less_baseline(self, group: Group, measure: str) -> Difference:
        """A group's difference to the baseline."""
        return statistics.difference(group.by_seed(measure), self.baseline.by_seed(measure), self.confidence)

    def best(self, measure: str) -> Group | None:
        """The group that is better than every other, if the runs support that of any."""
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
    """Groups of finished runs, by the settings in which they differ; seeds, places and speeds make no groups.

    Parameters
    ----------
    paths : sequence of Path
        Run directories or metrics files.
    by : sequence of str
        Keys or sections of the config to group by instead.
    ignore : sequence of str
        Keys or sections of the config to group by in no case.
    measures : sequence of str
        Fields of the metrics file.
    baseline : str or None
        Label of the group to compare to; None: that of `independent`, if it is the only one, or else the first.

    Raises
    ------
    UserError
        If a key, measure or group is not known, or no run is left.
    """
    if not 0.0 < confidence < 1.0:
        raise UserError(f"--confidence: got {confidence:g}, must be between 0 and 1, such as 0.95")
    for name in measures:
        if name not in UNITS:
            raise UserError(f"--measure: got {name!r}; known: {', '.join(UNITS)}{did_you_mean(name, list(UNITS))}")
    found, notes = finished(paths)
    if not found:
        lines = notes or ["no run was named"]
        raise UserError("compare: no finished run to compare\n  " + "\n  ".join(lines))
    keys = _keys(found, by, ignore)
    found, twice = newest(found, keys)
    groups = _groups(found, keys)
    notes = [*notes, *twice, *_what_else_differs(found, keys, ignore), *_unknown(groups, measures)]
    return Comparison(groups, list(dict.fromkeys(measures)), _baseline(groups, baseline), confidence, notes)


def render(comparison: Comparison, format: str) -> str:
    """The comparison as text in one of FORMATS; the notes are not in it."""
    if format == "csv":
        return _csv(comparison)
    if format == "terminal":
        return _terminal(comparison)
    if format == "markdown":
        return "\n".join(map(tables.markdown, _tables(comparison, "Bold")))
    if format == "latex":
        return "\n".join([tables.LATEX_NEEDS, *map(tables.latex, _tables(comparison, "Bold"))])
    raise UserError(f"--format: got {format!r}; known: {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}")


def plot(comparison: Comparison, out: Path, title: str = "") -> list[str]:
    """Write the groups' learning curves, one over the other, and give a note on each group that is not drawn.

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
            "--plot: nothing to draw: in no group were all runs evaluated in the same round; group also by what makes "
            "their rounds differ"
        )
    plot_overlay(runs_by_label, title, out)
    return [f"the runs of {label} were never all evaluated in the same round: not drawn" for label in lacking]


def _keys(found: Sequence[Finished], by: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """The keys to group by."""
    settings = [run.settings for run in found]
    ignored = set(grouping.named(ignore, "--ignore", settings))
    if by:
        asked = grouping.named(by, "--by", settings)
        if grouping.SEED in asked:
            raise UserError("--by seed: a group's numbers are means over its seeds; choose another key")
        for name in by:
            if ignored.issuperset(grouping.named([name], "--by", settings)):
                raise UserError(f"--by {name!r}: --ignore has it, too; give it to one of them")
        candidates = [key for key in grouping.differing(settings) if key in asked and key not in ignored]
        # A key that was asked for stays; of a section, those that say something new.
        return grouping.telling(settings, candidates, [key for key in candidates if key in by])
    candidates = [key for key in grouping.differing([run.counts for run in found]) if key not in ignored]
    return grouping.telling(settings, candidates)


def _groups(found: Sequence[Finished], keys: Sequence[str]) -> list[Group]:
    members: dict[tuple[str, ...], list[Finished]] = {}
    for run in found:
        members.setdefault(grouping.place(run.settings, keys), []).append(run)
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


def _what_else_differs(found: Sequence[Finished], keys: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """Notes on what differs beside the keys that make the groups, and may be what makes the difference."""
    ignored = set(grouping.named(ignore, "--ignore", [run.settings for run in found]))
    members: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in found:
        left = {key: value for key, value in run.counts.items() if key not in ignored}
        members.setdefault(grouping.place(run.settings, keys), []).append(left)
    within, between = grouping.hidden(list(members.values()), keys)
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
            notes.append(
                f"the runs are of {len(values)} {what} ({', '.join(values)}), between which numbers may have moved"
            )
    return notes


def _short(revision: str) -> str:
    """A git revision as git abbreviates it."""
    commit, dash, dirty = revision.partition("-")
    return f"{commit[:7]}{dash}{dirty}" or "unknown"


def _unknown(groups: Sequence[Group], measures: Sequence[str]) -> list[str]:
    """A note for each measure that is not known of all runs of a group."""
    notes = []
    for measure in measures:
        lacking = [group.label for group in groups if any(map(math.isnan, group.by_seed(measure).values()))]
        if lacking:
            notes.append(f"{measure} is not known of all runs of {'; '.join(lacking)}")
    return notes


def _baseline(groups: Sequence[Group], asked: str | None) -> Group:
    if asked is None:
        alone = [group for group in groups if group.method == "independent"]
        return alone[0] if len(alone) == 1 else groups[0]
    for group in groups:
        if group.label == asked:
            return group
    known = [group.label for group in groups]
    raise UserError(f"--baseline: got {asked!r}; groups: {'; '.join(known)}{did_you_mean(asked, known)}")


def _higher_is_better(measure: str) -> bool | None:
    """None: neither is better."""
    if measure.startswith("accuracy_"):
        return True
    return False if UNITS[measure] in ("byte", "s", "nats") or measure == "calibration_error" else None


def _at_common_rounds(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The runs at the rounds in which all of them were evaluated, which may differ where keys are ignored."""
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
    """Of all groups their values, and of all but the baseline their differences to it."""
    rows = {group.label: group.outcomes for group in comparison.groups}
    values = tables.table(rows, comparison.measures)
    first = len(values.headings) - len(comparison.measures)
    best = [comparison.best(measure) for measure in comparison.measures]
    bold = {(comparison.groups.index(group), first + column) for column, group in enumerate(best) if group is not None}
    caption = [values.caption]
    settings = [group.settings for group in comparison.groups]
    usual = grouping.usual(settings, list(settings[0]))
    if usual:
        caption.append(f"Where a row says nothing else: {grouping.label(usual)}.")
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
            f"{mark}: better than every other group: the Student-t interval of its difference to each, paired by seed, "
            f"excludes 0 ({each}){'' if bold else '; none is'}."
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
        # Said once, not in every line.
        del headings[1]
        rows = [[row[0], *row[2:]] for row in rows]
        many = f"{pairs[0]} pair{'' if pairs[0] == '1' else 's'}"
    some_lack = any(difference.pairs == 1 for row in by_group for difference in row)
    too_few = f" [{NOTHING}]: fewer than 2 pairs." if some_lack else ""
    caption = (
        f"Mean of the differences seed by seed ({many}), and its Student-t interval of "
        f"{_percent(comparison.confidence)}, each taken alone.{too_few}"
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
    # Bytes often differ by the same for every seed.
    if units == "byte" and difference.low == difference.high:
        return show(difference.mean)
    return f"{show(difference.mean)} [{show(difference.low)}, {show(difference.high)}]"


def _signed_size(count: float) -> str:
    return ("-" if count < 0 else "+" if count > 0 else "") + size(abs(count))


def _terminal(comparison: Comparison) -> str:
    """Plain text; a table that is wider than the terminal goes on below, instead of being wrapped."""
    width = shutil.get_terminal_size().columns if is_terminal() else WIDTH_OF_A_LOG
    parts = []
    for table in _tables(comparison, "*"):
        lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in table.caption.split("\n")]
        parts += tables.folded(replace(table, caption="\n".join(lines)), width)
    return "\n\n".join(map(tables.plain, parts)) + "\n"


def _csv(comparison: Comparison) -> str:
    """A line for each group, all numbers in full; empty: not known, or too few runs for it."""
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
