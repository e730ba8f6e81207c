"""Tables of what a run gives away: for a terminal, as Markdown, as CSV."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedh2l_mpi.analysis.csv_lines import CsvLines
from fedh2l_mpi.privacy.leakage import MEAN, Finding

if TYPE_CHECKING:
    from rich.table import Table

ATTACKS = {"loss": "loss threshold", "lira": "LiRA", "labels": "label distribution"}
MEASURES = {"auc": "AUC", "tpr": "true positives at 1 % false ones", "distance": "distance of the labels"}
COLUMNS = ("participant", "attacker", "attack", "measure", "value", "95 % interval", "chance", "samples")


def rows(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """Return the texts of a table, one row for each finding."""
    return [
        (
            "mean" if one.participant == MEAN else str(one.participant),
            one.attacker,
            ATTACKS[one.attack],
            MEASURES[one.measure],
            f"{one.estimate.value:.3f}",
            "{:.3f} to {:.3f}".format(*one.estimate.interval),
            f"{one.chance:.3f}",
            str(one.samples),
        )
        for one in findings
    ]


def terminal(findings: Sequence[Finding]) -> "Table":
    """Return a table for rich to print."""
    from rich.table import Table

    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows(findings):
        table.add_row(*row)
    return table


def markdown(findings: Sequence[Finding]) -> str:
    """Return a table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows(findings)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv(findings: Sequence[Finding]) -> str:
    """Return CSV with all digits."""
    file = io.StringIO(newline="")
    lines = CsvLines(file)
    lines.write([("participant", "attacker", "attack", "measure", "value", "low", "high", "chance", "samples")])
    for one in findings:
        who = "mean" if one.participant == MEAN else one.participant
        numbers = (one.estimate.value, *one.estimate.interval, one.chance, one.samples)
        lines.write([(who, one.attacker, one.attack, one.measure, *numbers)])
    return file.getvalue()
