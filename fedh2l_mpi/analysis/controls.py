"""Find the group of runs that each group is compared to, by a name that may stand for several groups.

A name is a value that groups have on one axis, such as the method `seed_supervised` in runs with several sizes of the
seed set. The control of a group is the one of them that has the group's values on the other axes. A name may also be
the label of one group, which is then the control of all groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedh2l_mpi.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Control:
    """A name, and the label of the group that it stands for, by the label of the compared group; None: there is none.

    The control of a control is itself.
    """

    name: str
    by_label: Mapping[str, str | None]


@dataclass(frozen=True)
class Gap:
    """Lower and upper control of a measure; a group closes a share of the gap between them."""

    low: Control
    high: Control
    measure: str = "accuracy_all"


def find_control(where: str, name: str, settings_by_label: Mapping[str, Mapping[str, str]]) -> Control:
    """Return the control that a name stands for.

    Parameters
    ----------
    where : str
        Key or option that has the name, for the error.
    settings_by_label : mapping of str to mapping
        The value of every group on each axis, as text.

    Raises
    ------
    UserError
        If the name is neither a value of exactly one axis nor a label.
    """
    # Values come first, because a label leaves out what most groups share: it may be a value of several groups.
    axes = {axis for settings in settings_by_label.values() for axis, value in settings.items() if value == name}
    if len(axes) != 1:
        if name in settings_by_label:
            return Control(name, dict.fromkeys(settings_by_label, name))
        if axes:
            raise UserError(f"{where}: got {name!r}, which is a value of several axes: {', '.join(sorted(axes))}.")
        labels = "; ".join(settings_by_label)
        values = [value for settings in settings_by_label.values() for value in settings.values()]
        near = did_you_mean(name, dict.fromkeys([*settings_by_label, *values]))
        raise UserError(f"{where}: got {name!r}. Known: {labels}{near}")
    (axis,) = axes
    controls = {label: settings for label, settings in settings_by_label.items() if settings.get(axis) == name}
    # An axis on which the controls agree, such as an option that they lack, says nothing about which of them to take.
    others = {key for settings in controls.values() for key in settings} - {axis}
    shared = [key for key in others if len({settings.get(key) for settings in controls.values()}) > 1]
    by_value = {tuple(settings.get(key) for key in shared): label for label, settings in controls.items()}
    return Control(
        name,
        {
            label: by_value.get(tuple(settings.get(key) for key in shared))
            for label, settings in settings_by_label.items()
        },
    )


def find_gap(where: str, low: Control, high: Control, measure: str = "accuracy_all") -> Gap:
    """Return the gap between two controls.

    Raises
    ------
    UserError
        If both are one group for any compared group, so that a share of nothing would be shown.
    """
    both = [label for label, control in low.by_label.items() if control and control == high.by_label.get(label)]
    if both:
        raise UserError(
            f"{where}: low {low.name!r} and high {high.name!r} are both {low.by_label[both[0]]!r} for {both[0]!r}, so "
            "there is no gap between them. Fix: name two different controls."
        )
    return Gap(low, high, measure)
