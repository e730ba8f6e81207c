"""Runs in the folder of a sweep: their order in the sweep's file, and what lies next to them."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

TABLE = "table.csv"
# Files of a sweep: those of all its runs, and the endings of those of each run.
OF_ALL, OF_EACH = (TABLE, "table.md", "curves.png"), (".yaml", ".log")
# More lines than a sweep's table has.
LONGEST_TABLE = 20_000


def in_order(files: Sequence[Path]) -> list[Path]:
    """Return metrics files, with those of each sweep in the order of its table at the places that they had together."""
    ordered = list(files)
    for folder in dict.fromkeys(file.parent.parent for file in files):
        place = {label: number for number, label in enumerate(_labels(folder / TABLE))}
        if place:
            spots = [i for i, file in enumerate(ordered) if file.parent.parent == folder]
            numbers = [place.get(ordered[i].parent.name, len(place)) for i in spots]
            inside = [ordered[spots[k]] for k in sorted(range(len(spots)), key=numbers.__getitem__)]
            for i, file in zip(spots, inside, strict=True):
                ordered[i] = file
    return ordered


def is_next_to_runs(path: Path) -> bool:
    """Return True if a path is a file that a sweep writes next to its runs."""
    return path.is_file() and (path.name in OF_ALL or (path.suffix in OF_EACH and path.with_suffix("").is_dir()))


def _labels(table: Path) -> list[str]:
    """Return the names of a sweep's run directories in the order of its file, or none if it has no table."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = csv.reader(itertools.islice(file, LONGEST_TABLE))
        try:
            is_table = next(lines, [])[:1] == ["label"]
            return [line[0] for line in lines if line] if is_table else []
        except csv.Error:
            return []
