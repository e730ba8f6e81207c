"""Kinds of domain shift, by which domains are made of data without domains of their own: names, units and bounds.

`data/shifts.py` has the formula of each.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedh2l_mpi.errors import did_you_mean, shown


class ShiftKind(NamedTuple):
    """A kind of shift.

    Attributes
    ----------
    samples : tuple of str
        Kinds of samples that it fits.
    unit : str
        Unit of its amount, as the names of domains have it.
    above, below : float
        Open bounds of the amount of any domain.
    meaning : str
        Its amount in words.
    """

    samples: tuple[str, ...]
    unit: str
    above: float
    below: float
    meaning: str


IMAGES, NUMBERS, SERIES = ("image",), ("vector", "series"), ("series",)
# Bounds that are included are written a little further out.
_INCLUDED = 1.0 + 1e-9
SHIFTS: dict[str, ShiftKind] = {
    "rotation": ShiftKind(IMAGES, "deg", -180.0, 180.0, "counter-clockwise angle [degrees]"),
    "colour": ShiftKind(IMAGES, "", -_INCLUDED, _INCLUDED, "gain of the first channel, and loss of the last [share]"),
    "blur": ShiftKind(IMAGES, "px", -1e-9, 32.0, "standard deviation of the Gaussian blur [pixels]"),
    "invert": ShiftKind(IMAGES, "", -1e-9, _INCLUDED, "share of the negative image"),
    "noise": ShiftKind(
        IMAGES + NUMBERS,
        "sd",
        -1e-9,
        100.0,
        "standard deviation of the Gaussian noise [full scale of images; standard deviations of the data]",
    ),
    "scale": ShiftKind(NUMBERS, "", -1.0, 1e6, "relative change of every value [share]"),
    "offset": ShiftKind(NUMBERS, "sd", -1e6, 1e6, "shift of every value [standard deviations of the data]"),
    "time_warp": ShiftKind(SERIES, "", -1.0, 1.0, "change of speed at the start, and its opposite at the end [share]"),
}


class Shift(NamedTuple):
    """One entry of `data.partition.shift`: domain d is shifted by d times `step`."""

    kind: str
    step: float

    def amount(self, domain: int) -> float:
        """Amount of the shift of a domain, in the kind's unit."""
        return domain * self.step


def read(entry: object) -> Shift:
    """Return the shift of an entry of `data.partition.shift`, a map with `kind` and `step`.

    Raises
    ------
    ValueError
        If it is none. The message follows the entry's place and a colon.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"got {shown(entry)}, must be a map such as {{kind: noise, step: 0.1}}")
    given: dict[Any, Any] = dict(entry)
    kind, step = given.pop("kind", None), given.pop("step", None)
    if given:
        key = next(iter(given))
        raise ValueError(f"unknown key {shown(key)}; known here: kind, step{did_you_mean(key, ('kind', 'step'))}")
    if not isinstance(kind, str) or kind not in SHIFTS:
        raise ValueError(f"got kind {shown(kind)}; known: {', '.join(SHIFTS)}{did_you_mean(kind, SHIFTS)}")
    if isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step):
        raise ValueError(f"got step {shown(step)} of {kind}, must be a number: {SHIFTS[kind].meaning} of each domain")
    return Shift(kind, float(step))


def out_of_bounds(shift: Shift, domains: int) -> str:
    """Return what is wrong with the shift of the last domain, empty if nothing is."""
    kind, amount = SHIFTS[shift.kind], shift.amount(domains - 1)
    if kind.above < amount < kind.below:
        return ""
    low, high = (f"{round(bound, 6) + 0.0:g}" for bound in (kind.above, kind.below))
    return (
        f"{domains} domains of {shift.kind} with step {shift.step:g} reach {amount:g}, must be between {low} and {high}"
    )
