"""Write summaries for a terminal, or as Markdown, CSV or JSON."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis import summary as numbers
from fedh2l_mpi.analysis.csv_lines import CsvLines
from fedh2l_mpi.analysis.outcome import known_mean
from fedh2l_mpi.analysis.summary import PHASES, Summary
from fedh2l_mpi.analysis.tables import NOTHING, Table, markdown
from fedh2l_mpi.metrics import PRESENT
from fedh2l_mpi.runtime.terminal import rich_text
from fedh2l_mpi.runtime.units import size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

# With more participants than this, a table shows quantiles instead of one row each.
LISTED = 32
QUANTILES = {"lowest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "highest": 1.0}
DEFINITIONS = (
    "Accuracies are on test data in the last evaluated round: own domain, mean over all domains, worst domain."
)
LOCAL = "Local: on test samples of the participant's own data, which have its own distribution."
AS_PARAMETERS = "As params: traffic if participants exchanged models instead, one copy per edge and round."
GAIN = "Gain: all-domain accuracy minus that of the same participant in {}."


def result_table(summary: Summary) -> Table:
    """Return the table of the last evaluated round: a row per participant, or quantiles of many, and the mean."""
    named = summary.participants
    columns = [
        ("params", "parameters", whole),
        ("own\ndomain", "accuracy_own", fraction),
        ("all\ndomains", "accuracy_all", fraction),
        ("worst\ndomain", "accuracy_worst", fraction),
        ("sent", "bytes_sent", size_of),
        ("as\nparams", "bytes_as_parameters", size_of),
    ]
    if summary.baseline is not None:
        columns.insert(3, ("gain", "gain", difference))
    has_local = "accuracy_local" in named
    if has_local:
        columns.insert(1, ("local\ntest", "accuracy_local", fraction))
    count = len(named["parameters"])
    rows = []
    if count <= LISTED:
        for i in range(count):
            cells = [show(named[name][i]) for _, name, show in columns]
            rows.append([f"{i} {named['architecture'][i]}", *cells])
    else:
        for label, part in QUANTILES.items():
            rows.append([label, *(show(quantile(named[name], part)) for _, name, show in columns)])
    rows.append([f"mean of {count}", *(show(known_mean(named[name])) for _, name, show in columns)])
    title = f"after {summary.after} rounds; accuracies on test data" if summary.after else "not evaluated yet"
    notes = [DEFINITIONS, *([LOCAL] if has_local else []), AS_PARAMETERS]
    if summary.baseline is not None:
        notes.append(GAIN.format(summary.baseline))
    if count > LISTED:
        notes.append(f"Quantiles over {count} participants, column by column.")
    return Table(title, ["", *(heading for heading, _, _ in columns)], rows, "\n".join(notes))


def facts_table(summary: Summary) -> Table:
    """Return the table of the run's settings."""
    rows = [["state", summary.state], *([name, text] for name, text in summary.facts.items())]
    return Table("", ["", summary.name], rows, "")


def cost_table(summary: Summary) -> Table:
    """Return the table of costs, and of conflicts and distances in the mutual phase."""
    sent, would = summary.mean("bytes_sent"), summary.mean("bytes_as_parameters")
    rows = [["bytes sent by a participant", size_of(sent)]]
    if sent > 0:
        rows.append(["bytes if parameters were shared instead", f"{size_of(would)}, {would / sent:.3g} times as much"])
    rows += [
        ["time in the rounds, slowest rank", seconds(summary.seconds)],
        ["share of time waiting for messages", percent(summary.waiting_share)],
        ["conflict rate of the two gradients", percent(summary.mean("conflict_rate"))],
        ["distance from the neighbours, last round", _nats(summary.mean("loss_distillation"))],
        ["expected calibration error", fraction(summary.mean("calibration_error"))],
    ]
    chosen = summary.mean("accuracy_all_at_best_validation")
    if not math.isnan(chosen):
        samples = summary.validation_samples
        each = "" if math.isnan(samples) else f", by about {samples:.0f} samples each"
        rows.append(["all domains, in the round that validation chooses", f"{fraction(chosen)}{each}"])
    fitted = summary.mean("temperature")
    if not math.isnan(fitted):
        rows.append(["temperature of the posteriors, fitted", f"{fitted:.3f}"])
    return Table("cost and learning", ["", ""], rows, "Means over participants.")


def phase_table(summary: Summary) -> Table:
    """Return the table of seconds in each phase."""
    means = summary.phase_seconds
    all_P = {phase: summary.participants[f"seconds_{phase}"] for phase in PHASES}
    rows = [
        [
            phase,
            seconds(means[phase]),
            percent(summary.share(phase)),
            seconds(quantile(all_P[phase], 0.0)),
            seconds(quantile(all_P[phase], 1.0)),
        ]
        for phase in PHASES
    ]
    return Table(
        "seconds per phase", ["phase", "mean", "share", "lowest", "highest"], rows, "Per participant, all rounds."
    )


def domain_table(summary: Summary) -> Table:
    """Return the table of accuracies on each domain, over the participants."""
    rows = []
    for name, accuracy_P in zip(summary.domains, summary.accuracy_PD.T, strict=True):
        values = (known_mean(accuracy_P), quantile(accuracy_P, 0.0), quantile(accuracy_P, 1.0))
        rows.append([name, *(fraction(value) for value in values)])
    return Table("accuracy by domain", ["domain", "mean", "lowest", "highest"], rows, "Over participants.")


def own_table(summary: Summary) -> Table | None:
    """Return the table of the run's own arrays at its end; None if it has none."""
    if not summary.own_arrays:
        return None
    rows = []
    for name, values_P in summary.own_arrays.items():
        values = (known_mean(values_P), quantile(values_P, 0.0), quantile(values_P, 1.0))
        rows.append([name, *("-" if math.isnan(value) else f"{value:.3g}" for value in values)])
    caption = "Over participants. Metrics: last evaluated round, mean over domains. Notes: last round."
    if PRESENT.name in summary.own_arrays:
        caption += f" {PRESENT.name}: share of the rounds."
    return Table("metrics and notes", ["", "mean", "lowest", "highest"], rows, caption)


def class_table(summary: Summary) -> Table | None:
    """Return the table of accuracies by class at the end, with the classes taken for others; None without any."""
    found = summary.classes
    if found is None:
        return None
    labels, architectures = found.shown(), summary.participants["architecture"]
    rows = []
    if len(architectures) <= LISTED:
        for i, accuracy_C in enumerate(found.accuracy_PC):
            rows.append([f"{i} {architectures[i]}", *(short(accuracy_C[label]) for label in labels)])
    rows.append([f"mean of {len(architectures)}", *(short(found.mean_C[label]) for label in labels)])
    least = "" if len(labels) == len(found.mean_C) else f" The {len(labels)} least accurate of {len(found.mean_C)}."
    pairs = ", ".join(f"{label} as {predicted} ({share:.0%})" for label, predicted, share in found.pairs())
    taken = f" Most often taken for another, share of a class's samples: {pairs}." if pairs else ""
    caption = f"On the test sets of all domains.{least}{taken}"
    return Table("accuracy by class, at the end", ["class", *map(str, labels)], rows, caption)


def overview_table(summaries: Sequence[Summary]) -> Table:
    """Return the table of several runs, one row each."""
    rows = [
        [
            summary.name,
            summary.state.partition(":")[0],
            *(fraction(summary.mean(name)) for name in ("accuracy_own", "accuracy_all", "accuracy_worst")),
            *([difference(summary.mean("gain"))] if summary.baseline is not None else []),
            size_of(summary.mean("bytes_sent")),
            seconds(summary.seconds),
        ]
        for summary in summaries
    ]
    gain = ["gain"] if summaries[0].baseline is not None else []
    headings = ["run", "state", "own\ndomain", "all\ndomains", "worst\ndomain", *gain, "sent", "time"]
    return Table(f"{len(summaries)} runs", headings, rows, "Means over participants in the last evaluated round.")


def tables_of(summary: Summary) -> Iterator[Table]:
    """Yield all tables of a run, in the order of the report."""
    yield facts_table(summary)
    yield result_table(summary)
    if len(summary.domains) > 1:
        yield domain_table(summary)
    if (own := own_table(summary)) is not None:
        yield own
    if (by_class := class_table(summary)) is not None:
        yield by_class
    yield cost_table(summary)
    yield phase_table(summary)


def terminal(summaries: Sequence[Summary]) -> "RenderableType":
    """Return the report for rich to print."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = []
    if len(summaries) > 1:
        shown.append(rich_table(overview_table(summaries)))
    for summary in summaries:
        for table in tables_of(summary):
            shown += [Text(), rich_table(table)]
        for kind, lines in (("warning", summary.warnings), ("problem", summary.problems)):
            shown += [rich_text(f"{kind}: {line}", "yellow") for line in lines]
    return Group(*shown)


def as_markdown(summaries: Sequence[Summary]) -> str:
    """Return the report as Markdown."""
    pieces = [markdown(overview_table(summaries))] if len(summaries) > 1 else []
    for summary in summaries:
        pieces.append(f"## {summary.name}\n")
        pieces += [f"- **{kind}**: {line}\n" for kind, line in _remarks(summary)]
        pieces += [markdown(table) for table in tables_of(summary)]
    return "\n".join(pieces)


def as_csv(summaries: Sequence[Summary]) -> str:
    """Return one CSV line for each participant of each run, with all digits; unknown numbers are empty."""
    header, lines = numbers.long_form(summaries)
    text = io.StringIO()
    CsvLines(text).write([header, *(["" if cell is None else cell for cell in line] for line in lines)])
    return text.getvalue()


def as_json(summaries: Sequence[Summary]) -> str:
    """Return a JSON list with one object for each run; unknown numbers are null."""
    return json.dumps([numbers.as_json(summary) for summary in summaries], indent=1, allow_nan=False) + "\n"


def _remarks(summary: Summary) -> Iterator[tuple[str, str]]:
    yield from (("warning", line) for line in summary.warnings)
    yield from (("problem", line) for line in summary.problems)


def rich_table(table: Table) -> "RichTable":
    """Return a table for rich to print in 80 columns, with numbers aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    is_list = len(table.headings) == 2
    shown = RichTable(
        title=rich_text(table.title) if table.title else None,
        title_justify="left",
        caption=rich_text(table.caption) if table.caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, heading in enumerate(table.headings):
        left = number == 0 or is_list
        shown.add_column(rich_text(heading), justify="left" if left else "right", no_wrap=not is_list, overflow="fold")
    for row in table.rows:
        if row[0].startswith("mean of "):
            shown.add_section()
        shown.add_row(*(rich_text(cell) for cell in row))
    return shown


def quantile(values: NDArray[Any], part: float) -> float:
    """Return the quantile at `part` (0 to 1) of the known values, or NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(np.quantile(known, part)) if len(known) else math.nan


def _known(form: str, value: float, scale: float = 1.0) -> str:
    return NOTHING if math.isnan(value) else form.format(value * scale)


def whole(value: float) -> str:
    """Format a whole number, with commas."""
    return _known("{:,.0f}", value)


def fraction(value: float) -> str:
    """Format a number from 0 to 1, with three digits."""
    return _known("{:.3f}", value)


def short(value: float) -> str:
    """Format a number from 0 to 1, with two digits."""
    return _known("{:.2f}", value)


def difference(value: float) -> str:
    """Format a difference, with its sign and three digits."""
    return _known("{:+.3f}", value)


def seconds(value: float) -> str:
    """Format a time in seconds."""
    return _known("{:.3f} s" if value < 10 else "{:.1f} s" if value < 1000 else "{:,.0f} s", value)


def percent(value: float) -> str:
    """Format a share in per cent."""
    return _known("{:.1f} %", value, 100)


def _nats(value: float) -> str:
    return _known("{:.3f} nats", value)


def size_of(count: float) -> str:
    """Format a number of bytes with its unit; a dash if it is unknown."""
    return NOTHING if math.isnan(count) else size(count)
