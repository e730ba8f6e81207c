"""Plot the results of `benchmarks.performance` as one figure.

python -m benchmarks.performance_plot benchmarks/results/performance.json OUT.png
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedh2l_mpi.analysis.figures import PAGE_MM, house_style, save
from fedh2l_mpi.analysis.figures.style import BLUE, GREY, MM_PER_INCH, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MM_PER_ROW, MM_AROUND, SCALING_MM = 4.6, 14.0, 55.0
Rows = Sequence[Mapping[str, Any]]


def draw(facts: Mapping[str, Any]) -> "Figure":
    """Plot every figure with a target and every ratio; plot cost and memory over the number of participants."""
    from matplotlib.figure import Figure

    ratios = [row for row in facts["rows"] if row["unit"] == "ratio"]
    shares = [row for row in facts["rows"] if row["unit"] == "%"]
    heights = [sum(_lines(rows) * MM_PER_ROW + MM_AROUND for rows in (ratios, shares)), SCALING_MM]
    with house_style():
        figure = Figure(figsize=(PAGE_MM / MM_PER_INCH, sum(heights) / MM_PER_INCH), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=heights)
        first, second = upper.subplots(2, 1, height_ratios=[_lines(ratios), _lines(shares)])
        _dots(first, ratios, "ratio; at 1, as much as what it is compared with")
        _dots(second, shares, "share of a round [%]")
        upper.legend(handles=_handles(), loc="outside upper center", ncols=4)
        left, right = lower.subplots(1, 2)
        many = facts["raw"]["many participants"].values()
        ring = sorted((one for one in many if one["graph"] == "ring"), key=lambda one: one["participants"])
        _against_participants(left, ring, "cpu_ms", "CPU of a participant\nand round [ms]")
        _against_participants(right, ring, "memory_mib", "memory of the run,\n2 ranks [MiB]")
        at, minutes = facts["machine"], facts["took_s"] / 60
        quick = " (quick: a smoke check)" if facts["quick"] else ""
        figure.suptitle(
            f"medians and ranges{quick}; {at['cores']} cores of {at['processor']}, {facts['date'][:10]}, "
            f"revision {facts['revision'][:12]}, {minutes:.0f} minutes"
        )
    return figure


def _sections(rows: Rows) -> list[tuple[str, Rows]]:
    names = dict.fromkeys(row["section"] for row in rows)
    return [(name, [row for row in rows if row["section"] == name]) for name in names]


def _lines(rows: Rows) -> int:
    """Return the lines of a panel: a heading for each section, and its rows."""
    return len(rows) + len(_sections(rows))


def _handles() -> list["Line2D"]:
    from matplotlib.lines import Line2D

    dots = {"target reached": BLUE, "target missed": VERMILION, "no target": GREY}
    return [
        Line2D([], [], color="black", marker="|", linestyle="", markersize=9, label="target: at most"),
        *(Line2D([], [], color=colour, marker="o", linestyle="", label=label) for label, colour in dots.items()),
    ]


def _dots(axes: "Axes", rows: Rows, label: str) -> None:
    """Draw a line for each row: median, range and target."""
    names, line = [], 0
    for section, members in _sections(rows):
        names.append((section, True))
        line += 1
        for row in members:
            middle, low, high = statistics.median(row["values"]), min(row["values"]), max(row["values"])
            colour = {None: GREY, True: BLUE, False: VERMILION}[row["reached"]]
            axes.errorbar(middle, line, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=2)
            if row["target"] is not None:
                axes.plot([row["target"]] * 2, [line - 0.42, line + 0.42], color="black", linewidth=1.2)
            told = f"{middle:.2f}" + ("" if row["target"] is None else f"  (at most {row['target']:g})")
            axes.annotate(
                told, (1, line), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                va="center", color=colour if row["target"] is not None else "black",
            )  # fmt: skip
            names.append((row["figure"], False))
            line += 1
    axes.set_yticks(range(len(names)), [name for name, _ in names])
    for tick, (_, is_heading) in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_fontweight("bold" if is_heading else "normal")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel(label)


def _against_participants(axes: "Axes", ring: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    """Draw medians and ranges over the number of participants, on two log axes."""
    count = np.array([one["participants"] for one in ring])
    middle = np.array([statistics.median(one[name]) for one in ring])
    low, high = (np.array([limit(one[name]) for one in ring]) for limit in (min, max))
    axes.errorbar(count, middle, yerr=[middle - low, high - middle], fmt="o-", color=BLUE, capsize=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(count, [f"{one:,}" for one in count])
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()
    # The axis spans at least a decade, because otherwise noise looks like a trend.
    bottom, top = 10 ** np.floor(np.log10(low.min())), 10 ** np.ceil(np.log10(high.max()))
    axes.set_ylim(bottom, top)
    for x, y in zip(count, middle, strict=True):
        axes.annotate(
            f"{y:,.1f}" if y < 100 else f"{y:,.0f}", (x, y), xytext=(0, 5), textcoords="offset points", ha="center"
        )
    axes.grid()
    axes.set_xlabel("participants, ring")
    axes.set_ylabel(label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="JSON file of benchmarks.performance")
    parser.add_argument("out", type=Path, help="picture to write: PNG, SVG or PDF")
    options = parser.parse_args()
    save(draw(json.loads(options.measured.read_text())), options.out)


if __name__ == "__main__":
    main()
