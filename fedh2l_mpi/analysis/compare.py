"""Compare runs in one table, grouped by the differences in their configs, with differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedh2l_mpi.analysis import group_names, grouping, statistics, tables
from fedh2l_mpi.analysis.controls import Control, find_control, find_gap
from fedh2l_mpi.analysis.finished_runs import FinishedRun, keep_newest, read_finished
from fedh2l_mpi.analysis.outcome import Outcome, higher_is_better, units_of
from fedh2l_mpi.analysis.statistics import BySeed, Difference, Share
from fedh2l_mpi.errors import UserError, did_you_mean

MEASURES = ("accuracy_own", "accuracy_all", "accuracy_worst", "bytes_sent")


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
        return tables.by_seed(self.outcomes, measure)


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
    gap : (Control, Control) or None
        Lower and upper control.
    """

    groups: Sequence[Group]
    measures: Sequence[str]
    baseline: Group
    confidence: float
    notes: Sequence[str]
    gap: tuple[Control, Control] | None = None

    @property
    def gap_measures(self) -> Sequence[str]:
        """The measures of which groups close a gap: the accuracies."""
        return [measure for measure in self.measures if _is_accuracy(measure)] if self.gap else []

    def share_of_gap(self, group: Group, measure: str) -> Share:
        """Return the share of the gap between the group's controls that it closes; NaN if it lacks one of them."""
        assert self.gap is not None
        found = [self._labelled(control.by_label[group.label]) for control in self.gap]
        low, high = ({} if control is None else control.by_seed(measure) for control in found)
        return statistics.share_of_gap(group.by_seed(measure), low, high, self.confidence)

    def _labelled(self, label: str | None) -> Group | None:
        return next((group for group in self.groups if group.label == label), None)

    def less_baseline(self, group: Group, measure: str) -> Difference:
        """Return a group's difference to the baseline."""
        return statistics.difference(group.by_seed(measure), self.baseline.by_seed(measure), self.confidence)

    def best(self, measure: str) -> Group | None:
        """Return the group that is better than every other, or None if the runs do not show that of any.

        A group that sends nothing is not compared by its bytes, because it saves nothing of an exchange.
        """
        higher = higher_is_better(measure)
        if higher is None:
            return None
        groups = [group for group in self.groups if units_of(measure) != "byte" or any(group.by_seed(measure).values())]
        number = statistics.best([group.by_seed(measure) for group in groups], higher, self.confidence)
        return None if number is None else groups[number]


def compare(
    paths: Sequence[Path],
    by: Sequence[str] = (),
    ignore: Sequence[str] = (),
    measures: Sequence[str] = MEASURES,
    baseline: str | None = None,
    confidence: float = tables.CONFIDENCE,
    gap: tuple[str, str] | None = None,
    *,
    order: Sequence[str] = (),
    names: Sequence[str] = (),
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
    gap : (str, str) or None
        Lower and upper control, by label or by a value that distinguishes groups.
    order : sequence of str
        Groups that come first, in this order, by label or by a value that distinguishes groups.
    names : sequence of str
        Other names for labels or parts of them, each `OLD=NEW`.

    Raises
    ------
    UserError
        If a key, measure or group is unknown, or no run is left.
    """
    if not 0.0 < confidence < 1.0:
        raise UserError(f"--confidence: got {confidence:g}, must be between 0 and 1, such as 0.95.")
    if gap is not None and not any(map(_is_accuracy, measures)):
        raise UserError("--gap: a gap is one of accuracies. Give --measure accuracy_all, or another accuracy.")
    found, notes = read_finished(paths, list(dict.fromkeys(measures)))
    if not found:
        lines = notes or ["no run was named"]
        raise UserError("compare: there is no finished run to compare.\n  " + "\n  ".join(lines))
    known = list(dict.fromkeys(name for run in found for name in run.outcome.values))
    for name in measures:
        if name not in known:
            raise UserError(f"--measure: got {name!r}. Known: {', '.join(known)}{did_you_mean(name, known)}")
    keys = _keys(found, by, ignore)
    found, twice = keep_newest(found, keys)
    groups = _groups(found, keys)
    labels = [group.label for group in groups]
    groups = [groups[i] for i in group_names.ordered(order, labels, [group.settings for group in groups])]
    notes = [*notes, *twice, *_what_else_differs(found, keys, ignore), *_unknown(groups, measures)]
    controls = None if gap is None else _controls(groups, gap)
    notes += [] if controls is None else _without_control(controls)
    unique = list(dict.fromkeys(measures))
    compared = Comparison(groups, unique, _baseline(groups, baseline), confidence, notes, controls)
    return _renamed(compared, names) if names else compared


def plot(
    comparison: Comparison,
    out: Path,
    measures: Sequence[str] = ("accuracy_all",),
    width_mm: float | None = None,
    percent: bool = False,
    title: str = "",
) -> Sequence[str]:
    """Draw the curves of all groups into one figure; return a note for each group that a panel does not show.

    Parameters
    ----------
    measures : sequence of str
        Measures of the comparison, a panel each; `accuracy_all` is always known.
    width_mm : float or None
        None: a page's width.

    Raises
    ------
    UserError
        If no group can be drawn, matplotlib is missing, or `out` cannot be written.
    """
    from fedh2l_mpi.analysis.figures import PAGE_MM, Curve, plot_overlay

    curves = [Curve(group.label, group.method, group.outcomes) for group in comparison.groups]
    return plot_overlay(curves, title, out, measures, PAGE_MM if width_mm is None else width_mm, percent)


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
    """Return notes on all other differences, which may also explain the groups' results.

    What the recipe derives from the method is no difference of its own.
    """
    settings = [run.settings for run in found]
    ignored = {*grouping.expand_keys(ignore, "--ignore", settings), *grouping.following_the_method(settings)}
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


def _renamed(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """Return the comparison with other names of its groups and controls."""
    labels = [group.label for group in comparison.groups]
    new = dict(zip(labels, group_names.renamed(names, labels), strict=True))
    groups = [replace(group, label=new[group.label]) for group in comparison.groups]
    gap = comparison.gap and (_renamed_control(comparison.gap[0], new), _renamed_control(comparison.gap[1], new))
    baseline = groups[labels.index(comparison.baseline.label)]
    return replace(comparison, groups=groups, baseline=baseline, gap=gap)


def _renamed_control(control: Control, new: Mapping[str, str]) -> Control:
    by_label = {new[label]: other and new[other] for label, other in control.by_label.items()}
    return Control(new.get(control.name, control.name), by_label)


def _baseline(groups: Sequence[Group], asked: str | None) -> Group:
    if asked is None:
        alone = [group for group in groups if group.method == "independent"]
        return alone[0] if len(alone) == 1 else groups[0]
    for group in groups:
        if group.label == asked:
            return group
    known = [group.label for group in groups]
    raise UserError(f"--baseline: got {asked!r}. Groups: {'; '.join(known)}{did_you_mean(asked, known)}")


def _controls(groups: Sequence[Group], gap: tuple[str, str]) -> tuple[Control, Control]:
    settings = {
        group.label: {key: grouping.text(value, None) for key, value in group.settings.items()} for group in groups
    }
    low, high = (find_control("--gap", name, settings) for name in gap)
    find_gap("--gap", low, high)
    return low, high


def _without_control(controls: Sequence[Control]) -> list[str]:
    """Return a note for each control that some group lacks."""
    lacking = {
        control.name: [label for label, other in control.by_label.items() if other is None] for control in controls
    }
    return [f"no group of {name} belongs to {'; '.join(labels)}" for name, labels in lacking.items() if labels]


def _is_accuracy(measure: str) -> bool:
    return measure.startswith("accuracy_")
