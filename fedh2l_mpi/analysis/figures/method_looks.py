"""Colour, marker and line of every method: the same in all figures that show methods, whatever else they show."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fedh2l_mpi.analysis.figures.style import BLUE, DOTS, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

# A line without gaps is for the method of the paper; gaps and markers distinguish the others in a grey print.
SOLID, DASHED, DASH_DOT, DASH_DOTS = "-", (0, (4, 1.6)), (0, (4, 1.6, 1, 1.6)), (0, (4, 1.4, 1, 1.4, 1, 1.4))
LINES: Sequence[Any] = (SOLID, DASHED, DASH_DOT, DOTS, DASH_DOTS)
# Colours of Tol's schemes, for more methods than Okabe and Ito have colours for.
WINE, OLIVE, INDIGO, TEAL, ROSE, BROWN = "#882255", "#999933", "#332288", "#44AA99", "#CC6677", "#8C564B"
FOREST, SAND, MAGENTA, MAROON = "#117733", "#DDCC77", "#AA4499", "#661100"
STEEL, SILVER, RUST, LEAF = "#6699CC", "#BBBBBB", "#E8601C", "#4EB265"


@dataclass(frozen=True)
class Look:
    """Look of a line: a colour as #rrggbb, a marker and a line style of matplotlib, and if markers are hollow.

    A marker is a letter, or a star with (points, 1, angle in degrees).
    """

    colour: str
    marker: str | tuple[int, int, int]
    line: Any = SOLID
    is_hollow: bool = False


BUILT_IN: Mapping[str, Look] = MappingProxyType(
    {
        "fedh2l": Look(BLUE, "o", SOLID),
        "independent": Look(GREY, "s", DOTS),
        "seed_supervised": Look(GREEN, "^", DASHED),
        "pooled": Look("#000000", "D", DASH_DOT),
        "dml": Look(PURPLE, "v", DASH_DOT),
        "fedmd": Look(VERMILION, "P", DASHED),
        "distributed_distillation": Look(ORANGE, "X", DASH_DOTS),
        "d_psgd": Look(WINE, "<", DOTS),
        "fedavg": Look(SKY, ">", DASH_DOTS),
        "fedprox": Look(OLIVE, "p", DASH_DOT),
        "fedavg_finetuned": Look(STEEL, (3, 1, 0), DASHED),
        "fd": Look(FOREST, "8", DOTS),
        "fedproto": Look(SAND, (8, 1, 0), DASH_DOTS),
        "proxyfl": Look(MAROON, (3, 1, 180), DASH_DOT),
        "fml": Look(SILVER, (7, 0, 0), DASHED),
        "ds_fl": Look(RUST, (4, 1, 0), DASH_DOT),
        "feddf": Look(MAGENTA, (4, 1, 45), DASHED),
        "kt_pfl": Look(LEAF, (6, 1, 0), DASH_DOTS),
    }
)
# An own method gets one of these by its name, so it keeps its look whatever it is compared to.
OWN = tuple(Look(*look) for look in itertools.product((INDIGO, TEAL, ROSE, BROWN), ("h", "*", "d", "H"), LINES[:3]))
# Shares of white (positive) or black (negative) in the colours of several lines of one method.
SHADES = (0.0, 0.4, -0.4, 0.55, -0.65)


def look_of(method: str) -> Look:
    """Return a method's look. A method of the user's has the one that a digest of its class's name chooses.

    Parameters
    ----------
    method : str
        As `method.name` of a config, such as `fedh2l` or `file.py:Class`.
    """
    name = method.rpartition(":")[2]
    if name in BUILT_IN:
        return BUILT_IN[name]
    return OWN[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(OWN)]


def looks_of(methods: Sequence[str]) -> list[Look]:
    """Return a look for each line of a figure, all different up to ten lines per method.

    A method keeps its colour and marker. If it has several lines, they differ in shade, line style and filling. If all
    lines have one method, colours distinguish the lines instead, because there is no other method to confuse them with.
    """
    if len(set(methods)) == 1:
        first = look_of(methods[0])
        others = [look for look in BUILT_IN.values() if look.colour != first.colour]
        variants = [_variant(look, number, 0.0) for number in range(len(LINES)) for look in (first, *others)]
        return [variants[number % len(variants)] for number in range(len(methods))]
    met: Counter[tuple[str, object]] = Counter()
    looks = []
    for look in map(look_of, methods):
        number = met[look.colour, look.marker]
        met[look.colour, look.marker] += 1
        looks.append(_variant(look, number, SHADES[number % len(SHADES)]))
    return looks


def _variant(look: Look, number: int, shade: float) -> Look:
    line = LINES[(LINES.index(look.line) + number) % len(LINES)]
    # Lines and shades are used up after as many lines; filling then distinguishes as many again.
    hollow = (number % len(LINES) + number // len(LINES)) % 2 == 1
    return replace(look, colour=_shaded(look.colour, shade), line=line, is_hollow=hollow)


def _shaded(colour: str, shade: float) -> str:
    """Mix a colour with white (shade > 0) or black (shade < 0)."""
    target, parts = 255 if shade > 0 else 0, (colour[1:3], colour[3:5], colour[5:7])
    mixed = [round(int(part, 16) * (1 - abs(shade)) + target * abs(shade)) for part in parts]
    return "#" + "".join(f"{part:02x}" for part in mixed) if shade else colour
