"""Write runs as one HTML page: a single file that needs no network, for a screen, a phone or paper.

Shape letters: P participants, D domains.
"""

import datetime
import importlib.metadata
import importlib.util
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fedh2l_mpi
from fedh2l_mpi.analysis import figures, report
from fedh2l_mpi.analysis.html import classes, groups, matrix
from fedh2l_mpi.analysis.html.matrix import Matrix, Scale
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.analysis.summary import Summary
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.libraries import require
from fedh2l_mpi.runtime.units import size

HERE = Path(__file__).parent
# The page leaves out the overview, which repeats other plots, and the domains, which are its matrix.
PLOTS = tuple(name for name in figures.FIGURES if name not in ("overview", "domains"))
PLOT_MM = 100.0
# A page of more runs has no plots of single runs, because it would be too large for a browser.
MOST_PLOTTED = 24
# With more participants than LISTED, the table has quantiles and the EXTREMES least and most accurate participants.
LISTED, EXTREMES = 64, 5
DASH = "–"
# Height of the matrix of many participants, and of one line of its labels, in CSS pixels.
HEAT_PX, LABEL_PX = 560, 17

# Terms that the headings link to.
TERMS = {
    "own": (
        "own-domain accuracy",
        "accuracy on the test set of the domain of the participant's private data (of all domains, if they are a mix)",
    ),
    "all": ("all-domain accuracy", "mean accuracy over every domain's test set: the aim of learning together"),
    "local": ("local accuracy", "accuracy on test samples of the participant's own data, its own distribution"),
    "worst": ("worst-domain accuracy", "accuracy on the domain on which the participant is least accurate"),
    "gain": ("gain", "all-domain accuracy minus that of the same participant in the baseline run"),
    "validation": (
        "at best validation",
        "all-domain accuracy in the round with the best accuracy on held-back private data (the latest of equals)",
    ),
    "calibration": (
        "calibration error",
        "expected calibration error: the distance between confidence and accuracy, mean over test samples in ten bins "
        "of confidence; 0 if a model is right as often as its confidence says",
    ),
    "conflict": (
        "conflict rate",
        "share of mutual steps in which the gradients on private data and on the seed set point against each other "
        "(their inner product is negative), mean over rounds",
    ),
    "sent": ("sent", "bytes over the participant's edges of the graph in all rounds, within a rank or between ranks"),
    "parameters": (
        "as parameters",
        "traffic if participants exchanged models instead: one copy per edge and round",
    ),
    "waiting": ("waiting", "share of the participants' time in the rounds that they spent waiting for messages"),
}


@dataclass(frozen=True)
class Measure:
    """Column of tables: an array of `Summary.participants`, and the function that formats it."""

    name: str
    heading: str
    show: Callable[[float], str]
    term: str | None = None


def build(runs: Sequence[Run], summaries: Sequence[Summary], out: Path) -> None:
    """Write the page. The file appears when it is complete.

    Parameters
    ----------
    summaries : sequence of Summary
        Summaries of the same runs in the same order.

    Raises
    ------
    UserError
        If jinja2 is missing, or the file cannot be written.
    """
    # Path.is_dir would raise an error for a name that is too long.
    if os.path.isdir(out):
        raise UserError(f"--html: {out} is a directory. Choose the name of a file.")
    text = render(runs, summaries)
    try:
        # A folder's name may contain bytes that are not UTF-8.
        atomic_files.write_bytes(out, text.encode(errors="replace"))
    except OSError as error:
        raise UserError(f"--html: {out} cannot be written: {error.strerror}.") from None


def render(runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Return the page as text."""
    jinja2, Markup = require("jinja2", "--html"), require("markupsafe", "--html").Markup
    room = matrix.CELLS // len(runs)
    matrices = [matrix.run_matrix(run, room) for run in runs]
    scale, colours = matrix.scale_of(matrices), matrix.palette()
    many = len(runs) > 1
    sections = []
    for number, (run, summary, accuracies) in enumerate(zip(runs, summaries, matrices, strict=True), start=1):
        # Otherwise each array would open the file again.
        with run.metrics.opened():
            if len(runs) <= MOST_PLOTTED:
                plots, missing = _plots(run, f"run {number}, {run.name}" if many else run.name)
            else:
                plots, missing = [], [f"A page of more than {MOST_PLOTTED} runs has no plots of single runs."]
        sections.append(
            {
                "id": f"run-{number}",
                "name": summary.name,
                "state": summary.state,
                "word": run.state,
                "after": summary.after,
                "warnings": summary.warnings,
                "cards": list(_cards(run, summary)),
                "facts": _facts(run, summary),
                "participants": _participants(summary),
                "baseline": summary.baseline,
                "classes": classes.section(summary.classes, _names(summary)),
                "matrix": _matrix(run, summary, accuracies, scale),
                "plots": [(title, caption, Markup(svg)) for title, caption, svg in plots],
                "missing": missing,
                "config": str(run.metrics.attributes.get("config", "")).rstrip(),
                # Problems come last, because reading the arrays above may reveal more.
                "problems": list(dict.fromkeys([*summary.problems, *run.problems])),
            }
        )
    compared = groups.section([run.file for run in runs], PLOT_MM) if many else None
    if compared is not None:
        compared["plots"] = [(title, caption, Markup(svg)) for title, caption, svg in compared["plots"]]
    data = {
        "low": scale.low,
        "high": scale.high,
        "colours": [*colours, matrix.UNKNOWN_COLOUR],
        "runs": {
            section["id"]: {
                "after": accuracies.after_S,
                "cells": accuracies.cells_SPD.reshape(len(accuracies.after_S), -1).tolist(),
                "summary": accuracies.summary_SQD.reshape(len(accuracies.after_S), -1).tolist(),
            }
            for section, accuracies in zip(sections, matrices, strict=True)
            if len(accuracies.after_S) > 1
        },
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("page.html").render(
        title=summaries[0].name if not many else f"{len(runs)} runs",
        sections=sections,
        groups=compared,
        comparison=_comparison(summaries) if many else None,
        data=data,
        scale=scale,
        colours=[(colour, matrix.ink_on(colour)) for colour in colours],
        terms=TERMS,
        made=_made(),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )


def _plots(run: Run, where: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return title, caption and SVG of each plot, and a line for each plot that cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        return [], ["There are no plots, because matplotlib was not installed when this page was made."]
    plots, missing = [], []
    for name in PLOTS:
        kind = figures.FIGURES[name]
        try:
            svg = figures.inline_svg(figures.draw(run, name, PLOT_MM), f"{kind.title}, {where}")
        except UserError as error:
            reason = str(error).removeprefix(f"{run.file}: ").removeprefix(f"nothing to draw for {name!r}: ")
            missing.append(f"{kind.title}: not drawn, {reason.removesuffix('.')}.")
        else:
            plots.append((kind.title, kind.caption, svg))
    return plots, missing


def _cards(run: Run, summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    """Yield the key numbers: heading, term, value, and a note."""
    count = len(summary.participants["parameters"])
    average = f"mean of {count:,} participants" if count > 1 else "the one participant"
    for name, heading, term in (
        ("accuracy_all", "all-domain accuracy", "all"),
        ("accuracy_own", "own-domain accuracy", "own"),
        ("accuracy_worst", "worst-domain accuracy", "worst"),
    ):
        yield heading, term, _fraction(summary.mean(name)), _why(run, summary, name) or average
    if summary.baseline is not None:
        note = _why(run, summary, "gain") or f"all-domain accuracy over {summary.baseline}"
        yield "gain", "gain", _difference(summary.mean("gain")), note
    sent, would = summary.mean("bytes_sent"), summary.mean("bytes_as_parameters")
    ratio = f", {would / sent:.3g} times as much" if sent > 0 else ""
    note = f"per participant; as parameters {_size(would)}{ratio}"
    yield "sent", "sent", _size(sent), _why(run, summary, "bytes_sent") or note
    waiting = f"in the rounds, slowest rank; {_percent(summary.waiting_share)} waiting"
    yield "time", "waiting", _seconds(summary.seconds), _why(run, summary, "seconds_wait") or waiting
    note = _why(run, summary, "conflict_rate") or "of mutual steps, private against seed gradient"
    yield "conflict rate", "conflict", _percent(summary.mean("conflict_rate")), note
    fitted = summary.mean("temperature")
    scaled = "" if math.isnan(fitted) else f"; fitted temperature {fitted:.3f}"
    note = _why(run, summary, "calibration_error") or f"expected, 0 is best{scaled}"
    yield "calibration error", "calibration", _fraction(summary.mean("calibration_error")), note


def _why(run: Run, summary: Summary, name: str) -> str:
    """Return the reason why a number is unknown, or an empty string if it is known."""
    if not math.isnan(summary.mean(name)):
        return ""
    if run.metrics.rounds == 0:
        return "no round has finished"
    if name in run.metrics.fields and not run.metrics.is_whole(name):
        return "not recorded, or damaged in the file"
    if summary.after == 0 and (name == "gain" or name.startswith(("accuracy", "calibration"))):
        return "no round has been evaluated"
    return {"gain": "unknown for the baseline", "conflict_rate": "no step had two gradients"}.get(name, "unknown")


def _names(summary: Summary) -> list[str]:
    return [f"{i} {architecture}" for i, architecture in enumerate(summary.participants["architecture"])]


def _measures(has_gain: bool, has_local: bool) -> list[Measure]:
    local = [Measure("accuracy_local", "local", _fraction, "local")] if has_local else []
    gain = [Measure("gain", "gain", _difference, "gain")] if has_gain else []
    return [
        *local,
        Measure("accuracy_own", "own domain", _fraction, "own"),
        Measure("accuracy_all", "all domains", _fraction, "all"),
        Measure("accuracy_worst", "worst domain", _fraction, "worst"),
        *gain,
        Measure("accuracy_all_at_best_validation", "at best validation", _fraction, "validation"),
        Measure("calibration_error", "calibration error", _fraction, "calibration"),
        Measure("conflict_rate", "conflict rate", _percent, "conflict"),
        Measure("bytes_sent", "sent", _size, "sent"),
        Measure("bytes_as_parameters", "as parameters", _size, "parameters"),
    ]


def _comparison(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return the table of several runs, one row of means each."""
    has_local = all("accuracy_local" in summary.participants for summary in summaries)
    measures = _measures(any(summary.baseline is not None for summary in summaries), has_local)
    return {
        "measures": measures,
        "rows": [
            (
                f"{summary.after:,}" if summary.after else DASH,
                [measure.show(summary.mean(measure.name)) for measure in measures],
                _seconds(summary.seconds),
            )
            for summary in summaries
        ],
    }


def _participants(summary: Summary) -> dict[str, Any]:
    """Return the table of participants: groups of rows, each with or without a heading, and the row of means."""
    named, count = summary.participants, len(summary.participants["parameters"])
    measures = [
        Measure("parameters", "parameters", _whole),
        *_measures(summary.baseline is not None, "accuracy_local" in named),
    ]

    def row(i: int) -> tuple[str, str, str, list[str]]:
        own = int(named["own_domain"][i])
        domain = summary.domains[own] if 0 <= own < len(summary.domains) else "a mix" if own == -1 else DASH
        return (
            str(i),
            str(named["architecture"][i]),
            domain,
            [measure.show(named[measure.name][i]) for measure in measures],
        )

    groups: list[tuple[str, list[Any]]] = []
    if count <= LISTED:
        groups.append(("", [row(i) for i in range(count)]))
    else:
        quantiles = [
            (label, "", "", [measure.show(report.quantile(named[measure.name], part)) for measure in measures])
            for label, part in report.QUANTILES.items()
        ]
        groups.append(("Quantiles of each column", quantiles))
        accuracy_P = named["accuracy_all"]
        # Sort by accuracy; participants with the same accuracy keep the order of their numbers.
        ordered = [int(i) for i in np.argsort(accuracy_P, kind="stable") if not np.isnan(accuracy_P[i])]
        if len(ordered) >= 2 * EXTREMES:
            groups.append((f"Lowest {EXTREMES} in all-domain accuracy", [row(i) for i in ordered[:EXTREMES]]))
            groups.append(
                (f"Highest {EXTREMES} in all-domain accuracy", [row(i) for i in ordered[: -EXTREMES - 1 : -1]])
            )
    means = [measure.show(summary.mean(measure.name)) for measure in measures]
    return {"measures": measures, "groups": groups, "means": means, "count": count, "all": count <= LISTED}


def _facts(run: Run, summary: Summary) -> dict[str, str]:
    """Return the run's settings, digests and file."""
    attributes = run.metrics.attributes
    facts = {"state": summary.state, **summary.facts}
    once_bytes = attributes.get("seed_set_bytes")
    if isinstance(once_bytes, int) and once_bytes:
        facts["seed set, once"] = f"{_size(float(once_bytes))} to every participant, before round 1"
    return facts | {
        "seed set digest": str(attributes.get("seed_set_digest") or DASH),
        "content digest": str(
            attributes.get("content_digest") or f"{DASH} (the file was not closed, or an older version wrote it)"
        ),
        "file": str(run.file),
    }


def _matrix(run: Run, summary: Summary, accuracies: Matrix, scale: Scale) -> dict[str, Any] | None:
    """Return the matrix of the last evaluated round with its labels and notes, or None if there is no such round."""
    if not accuracies.after_S:
        return None
    cells_PD, owners_P = accuracies.cells_SPD[-1], run.metrics["own_domain"][accuracies.order_P]
    architectures = summary.participants["architecture"]
    levels_PD = scale.level(cells_PD)
    shown = {
        "numbered": accuracies.is_numbered,
        "domains": list(summary.domains),
        "after": accuracies.after_S,
        "evaluated": accuracies.evaluated,
        "count": len(cells_PD),
        "summary": [
            (label, [_permille(value) for value in values])
            for label, values in zip(
                ["mean"] if accuracies.is_numbered else report.QUANTILES,
                accuracies.summary_SQD[-1].tolist(),
                strict=True,
            )
        ],
    }
    if accuracies.is_numbered:
        shown["rows"] = [
            (
                f"{i} {architectures[i]}",
                [(_permille(cell), level, domain == owner) for domain, (cell, level) in enumerate(cells)],
            )
            for i, owner, cells in zip(
                accuracies.order_P.tolist(),
                owners_P.tolist(),
                (
                    zip(cells, levels, strict=True)
                    for cells, levels in zip(cells_PD.tolist(), levels_PD.tolist(), strict=True)
                ),
                strict=True,
            )
        ]
        return shown
    height = min(HEAT_PX, 12 * len(cells_PD))
    shown |= {
        "height": height,
        "picture": matrix.picture(cells_PD, scale),
        "owners": _owners(summary, owners_P, height),
    }
    return shown


def _owners(summary: Summary, owners_P: NDArray[np.int64], height: int) -> list[tuple[str, float, float]]:
    """Return a label for each own domain's rows: text (empty if there is no room), top and height in per cent."""
    firsts = [0, *(np.flatnonzero(np.diff(owners_P)) + 1).tolist(), len(owners_P)]
    labels = []
    for first, end in itertools.pairwise(firsts):
        owner, share = int(owners_P[first]), (end - first) / len(owners_P)
        text = summary.domains[owner] if 0 <= owner < len(summary.domains) else "a mix"
        labels.append((text if share * height >= LABEL_PX else "", 100 * first / len(owners_P), 100 * share))
    return labels


def _made() -> Mapping[str, str]:
    versions = [f"fedh2l_mpi {fedh2l_mpi.__version__}", f"Python {platform.python_version()}"]
    for name in ("numpy", "matplotlib", "jinja2"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    now = datetime.datetime.now(datetime.UTC)
    return {"iso": now.isoformat(timespec="seconds"), "time": f"{now:%Y-%m-%d %H:%M} UTC", "with": ", ".join(versions)}


def _permille(cell: int) -> str:
    return DASH if cell == matrix.UNKNOWN else f"{cell // 1000}.{cell % 1000:03d}"


def _typeset(show: Callable[[float], str]) -> Callable[[float], str]:
    """Return a format of the report with the dash and the minus sign that a page can show."""
    return lambda value: DASH if math.isnan(value) else show(value).replace("-", "−")


_whole, _fraction, _difference = _typeset(report.whole), _typeset(report.fraction), _typeset(report.difference)
_percent, _seconds, _size = _typeset(report.percent), _typeset(report.seconds), _typeset(size)
