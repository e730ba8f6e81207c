"""Whether a metrics file is what its schema says, and whether its numbers can be: of any file, however damaged.

Shape letters: R rounds of a block, P participants, D domains, K confidence bins, C classes, E edges.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run, look_at
from fedh2l_mpi.config import METHOD_KEYS, Config, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import (
    ADDED,
    BIN_FIELDS,
    DIMENSIONS,
    DOMAIN_FIELDS,
    FIELDS,
    ROW_FIELDS,
    SCALES,
    SCHEMA_VERSION,
    Field,
)
from fedh2l_mpi.metrics.content import content_digest
from fedh2l_mpi.metrics.reader import DAMAGE, is_absent, reason
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.run_directory import RunDirectory

if TYPE_CHECKING:
    import h5py

# Memory that a block of rounds may take, all its arrays together.
BLOCK_BYTES = 2**25
# Longest that another program may take; all read headers, whatever the file's size.
PROGRAM_SECONDS = 30
# Of means that are computed twice in float64; of what was computed in float32, such as a confidence of 1.0000001.
TOLERANCE, TOLERANCE_FLOAT32 = 1e-9, 1e-5
OF_ARRAY = re.compile(r"array '\w+'")
SHA256 = re.compile(r"[0-9a-f]{64}")
# In rounds without evaluation, these and nothing else are NaN: rounds that the config does not have evaluated, and in
# which `accuracy_all` is not known of every participant either.
EVALUATED = (
    *(name for name in DIMENSIONS if name.startswith(("accuracy", "calibration"))),
    "loss",
    "seconds_evaluate",
)
# Known in every round, whatever the method does.
ALWAYS = ("seconds_publish", "seconds_local", "seconds_wait", "seconds_mutual")
# Lowest and highest value; bytes, seconds and losses have no highest.
RANGES = {
    **{each.name: (0.0, np.inf) for each in (*ROW_FIELDS, *DOMAIN_FIELDS)},
    **{each.name: (0.0, 1.0) for each in BIN_FIELDS},
    **{name: (0.0, 1.0) for name in DIMENSIONS if name.startswith("accuracy")},
    "calibration_error": (0.0, 1.0),
    "conflict_rate": (0.0, 1.0),
    "gradient_cosine": (-1.0, 1.0),
}

Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    level : {"ok", "note", "error"}
        Note: nothing is wrong, but a person should know. A file without errors is valid.
    what : str
        One line.
    group : str
        What the check was about.
    """

    level: str
    what: str
    group: str = "file"


def validate(path: Path, programs: bool = True) -> list[Finding]:
    """Every check of a run, from its directory or its metrics file; never raises for what is in the file.

    Parameters
    ----------
    programs : bool
        Whether other programs are started to read the file too: h5dump, and one that follows dimension scales.
    """
    try:
        run = look_at(path)
    except UserError as error:
        return [Finding("error", str(error).removeprefix(f"{path}: "))]
    report = _Report()
    try:
        _check_file(run, report)
        _check_schema(run.path, run.metrics.closed, report)
        config = _check_config(run, report)
        _check_rounds(run, config, report)
        _check_participants(run, config, report)
        graphs = _check_graphs(run, config, report)
        _check_values(run, config, graphs, report)
        _check_content(run, report)
        if programs:
            _check_scales(run, report)
            _check_h5dump(run, report)
        _add_problems(run, report)
    finally:
        run.close()
    return report.findings


def text(path: Path, findings: Sequence[Finding], quiet: bool = False) -> str:
    """The findings in lines, by group, and the verdict; only errors and the verdict if `quiet`."""
    errors = sum(finding.level == "error" for finding in findings)
    lines = []
    for group in dict.fromkeys(finding.group for finding in findings):
        shown = [finding for finding in findings if finding.group == group and (finding.level == "error" or not quiet)]
        lines += [f"  {group}", *(f"    {finding.level:<5}  {finding.what}" for finding in shown)] if shown else []
    verdict = "valid" if errors == 0 else f"not valid: {errors} error{'s' if errors > 1 else ''}"
    return "\n".join([f"{path}: {verdict}", *lines]) + "\n"


@dataclass
class _Report:
    findings: list[Finding] = field(default_factory=list)

    def ok(self, group: str, what: str) -> None:
        self.findings.append(Finding("ok", what, group))

    def note(self, group: str, what: str) -> None:
        self.findings.append(Finding("note", what, group))

    def error(self, group: str, what: str) -> None:
        self.findings.append(Finding("error", what, group))

    def verdict(self, group: str, errors: Sequence[str], sound: str) -> None:
        """The errors, or where there are none, one line that all is well."""
        for what in errors:
            self.error(group, what)
        if not errors:
            self.ok(group, sound)


def _check_file(run: Run, report: _Report) -> None:
    version = run.metrics.attributes.get("schema_version")
    if version == SCHEMA_VERSION:
        report.ok("file", f"a metrics file of fedh2l_mpi, schema {version}")
    for problem in run.problems:
        if problem.startswith("has schema"):
            report.error("file", problem)
    level = report.ok if run.state.word == "complete" else report.note
    level("file", f"the run is {run.state}" if run.state.word == "complete" else f"the run {_was(run)}")
    digest = run.metrics.attributes.get("seed_set_digest")
    if isinstance(digest, str) and SHA256.fullmatch(digest):
        report.ok("file", f"seed_set_digest {digest[:12]}... is one")
    else:
        report.error("file", f"attribute 'seed_set_digest': got {digest!r}, must be 64 hexadecimal digits")


def _add_problems(run: Run, report: _Report) -> None:
    """Whatever the reader met on its way, unless a check has said it, or has another complaint about the array."""
    said = [finding.what for finding in report.findings if finding.level == "error"]
    for problem in run.problems:
        array = OF_ARRAY.match(problem)
        if problem not in said and not (array and any(what.startswith(array[0]) for what in said)):
            report.error("damage", problem)


def _was(run: Run) -> str:
    return f"{'is' if run.state.word == 'running' else 'has'} {run.state}"


def _check_schema(path: Path, closed: bool, report: _Report) -> None:
    """Names, shapes, types, units and dimensions of all arrays, as the file itself has them."""
    wrong: list[str] = []
    reworded: list[str] = []
    try:
        file, _ = open_for_reading(path)
    except DAMAGE as error:
        report.error("arrays", f"cannot be read as HDF5: {reason(error)}")
        return
    with file:
        sizes = {scale.name: _length(file, scale.name) for scale in SCALES}
        fields = {**{scale.name: scale for scale in SCALES}, **FIELDS}
        missing_since_added = [name for name in fields if name in ADDED and is_absent(file, name)]
        for name, wanted in fields.items():
            if name in missing_since_added:
                continue
            try:
                array = file[name]
                meaning = _text_attribute(array, "long_name")
                wrong += _wrong_in_array(array, meaning, wanted, sizes, closed)
            except DAMAGE as error:
                wrong.append(f"array {name!r} is missing or damaged: {reason(error)}")
            else:
                reworded += [name] if meaning and meaning != wanted.long_name else []
    report.verdict("arrays", wrong, f"{len(fields) - len(missing_since_added)} arrays with their dimensions and units")
    if reworded:
        report.note("arrays", f"another version's words in the long_name of {', '.join(reworded)}")
    if missing_since_added:
        report.note("arrays", f"an older version recorded no {', '.join(missing_since_added)}")


def _wrong_in_array(
    array: "h5py.Dataset", meaning: Any, wanted: Field, sizes: Mapping[str, int | None], closed: bool
) -> list[str]:
    import h5py

    wrong = []
    name = wanted.name
    kind = np.dtype(wanted.dtype)
    is_as_wanted = array.dtype.kind == kind.kind and (kind.kind == "S" or array.dtype == kind)
    if not is_as_wanted:
        wrong.append(f"array {name!r}: got type {array.dtype}, must be {wanted.dtype}")
    dims = DIMENSIONS.get(name, (name,))
    if len(array.shape) != len(dims):
        wrong.append(f"array {name!r}: got {len(array.shape)} dimensions, must be {len(dims)}: {', '.join(dims)}")
        return wrong
    for dim, length in zip(dims, array.shape, strict=True):
        size = sizes[dim]
        # A kill may leave arrays that grow a round apart: what all of them have counts.
        if size is not None and length != size and (closed or dim not in ("round", "edge")):
            wrong.append(f"array {name!r}: got length {length} along {dim}, must be {size}")
    if name in sizes and not h5py.h5ds.is_scale(array.id):
        wrong.append(f"array {name!r}: must be a dimension scale")
    units = _text_attribute(array, "units")
    if units != wanted.units:
        wrong.append(f"array {name!r}, attribute 'units': got {units!r}, must be {wanted.units!r}")
    if not meaning:
        wrong.append(f"array {name!r}, attribute 'long_name': got {meaning!r}, must be {wanted.long_name!r}")
    return wrong


def _text_attribute(array: "h5py.Dataset", name: str) -> Any:
    got = array.attrs.get(name)
    return got.decode(errors="replace") if isinstance(got, bytes) else got


def _length(file: "h5py.File", name: str) -> int | None:
    try:
        return int(file[name].shape[0])
    except DAMAGE:
        return None


def _check_config(run: Run, report: _Report) -> Config | None:
    """The config if it is one, and whether it is the one that the file was written with."""
    recorded = run.metrics.attributes.get("config")
    if not run.config:
        # Its problem has a line already.
        return None
    try:
        config = loading.validate(Config, dict(run.config))
    except UserError as error:
        report.error("config", f"attribute 'config' is no valid config: {' '.join(str(error).split())}")
        config = None
    if config is not None:
        attributes = run.metrics.attributes
        differing = [
            f"config has {key} {wanted}, the file has {what} {got}"
            for key, wanted, what, got in (
                ("participants", config.participants, "participants:", run.participants),
                ("seed", config.seed, "attribute 'seed':", attributes.get("seed")),
                ("rounds", config.rounds, "attribute 'rounds_planned':", attributes.get("rounds_planned")),
            )
            if wanted is not None and got != wanted
        ]
        report.verdict("config", differing, "a valid config, of these participants, rounds and seed")
    beside = RunDirectory(run.path.parent)
    if run.path.name == beside.metrics.name and beside.config.exists():
        try:
            same = beside.config.read_text(encoding="utf-8", errors="replace") == recorded
        except OSError as error:
            report.note("config", f"{beside.config.name} beside the file cannot be read: {error.strerror}")
            return config
        if same:
            report.ok("config", f"{beside.config.name} beside the file is the same")
        else:
            report.error("config", f"{beside.config.name} beside the file is not the same as the attribute 'config'")
    return config


def _check_rounds(run: Run, config: Config | None, report: _Report) -> None:
    planned, finished = run.state.planned, run.metrics.rounds
    wrong = [problem for problem in run.problems if problem.startswith("missing rounds")]
    if run.state.word == "complete" and finished != planned and not wrong:
        wrong.append(f"got {finished} rounds, must be {planned} of a complete run")
    if planned and finished > planned:
        wrong.append(f"got {finished} rounds, {planned} were planned")
    report.verdict("rounds", wrong, f"{finished} of {planned or '?'} rounds, without a gap")


def _check_participants(run: Run, config: Config | None, report: _Report) -> None:
    metrics = run.metrics
    domains = len(metrics["domain"])
    wrong = []
    limits = {"own_domain": (-1, domains - 1), "rank": (0, _number(run, "ranks", metrics["participant"].size) - 1)}
    for name in ("parameters", "parameter_bytes", "private_samples", "own_domain", "rank", "label_histogram"):
        if not metrics.is_whole(name):
            continue
        low, high = limits.get(name, (0, np.inf))
        wrong += _first_wrong(name, metrics[name], low, high)
    if metrics.is_whole("label_histogram") and metrics.is_whole("private_samples"):
        sums_P, samples_P = metrics["label_histogram"].sum(axis=1), metrics["private_samples"]
        for i in np.flatnonzero(sums_P != samples_P)[:1]:
            wrong.append(f"label_histogram of participant {i}: got {sums_P[i]} samples, must be {samples_P[i]}")
    if config is not None and metrics.is_whole("architecture"):
        for i, name in enumerate(metrics.texts("architecture")):
            try:
                expected = config.architecture(i)
            except KeyError:
                expected = "none"
            if name != expected:
                wrong.append(f"architecture of participant {i}: got {name!r}, must be {expected!r} by the config")
                break
    report.verdict("participants", wrong, "architectures, samples, labels and domains agree")


def _number(run: Run, attribute: str, default: int) -> int:
    value = run.metrics.attributes.get(attribute)
    return value if isinstance(value, int) else default


def _first_wrong(name: str, values: NDArray[Any], low: float, high: float) -> list[str]:
    places = np.argwhere((values < low) | (values > high))
    if not len(places):
        return []
    at = tuple(places[0])
    where = ", ".join(f"{dim} {i}" for dim, i in zip(DIMENSIONS[name], at, strict=True))
    return [f"{name} of {where}: got {values[at]}, must be {_between(low, high)}"]


def _between(low: float, high: float) -> str:
    return f">= {low:g}" if np.isinf(high) else f"from {low:g} to {high:g}"


@dataclass(frozen=True)
class _Graphs:
    """Every graph of the run, in the order of the rounds they begin in.

    Attributes
    ----------
    since_E : int64 (E,), ascending
    ends_E2 : int32 (E, 2)
    redraw_every : int or None
        Rounds between redraws; a graph without edges leaves no other trace.
    """

    since_E: NDArray[np.int64]
    ends_E2: NDArray[np.int32]
    redraw_every: int | None

    def degrees(self, round_index: int, participants: int) -> NDArray[np.int64]:
        """int64 (P,), of the graph of a round."""
        if self.redraw_every is not None:
            since = round_index // self.redraw_every * self.redraw_every
        else:
            at = int(np.searchsorted(self.since_E, round_index, side="right"))
            since = int(self.since_E[at - 1]) if at else 0
        first, last = np.searchsorted(self.since_E, [since, since + 1])
        return np.bincount(self.ends_E2[first:last].ravel(), minlength=participants)


def _check_graphs(run: Run, config: Config | None, report: _Report) -> _Graphs | None:
    """The graphs if they are such."""
    metrics = run.metrics
    since_E, ends_E2 = metrics["graph_since_round"], metrics["graph_edges"]
    if not (metrics.is_whole("graph_edges") and metrics.is_whole("graph_since_round")):
        return None
    # A kill may come between a graph and its first round.
    begun = since_E < max(1, metrics.rounds)
    since_E, ends_E2 = since_E[begun], ends_E2[begun]
    wrong = []
    for e in np.flatnonzero((ends_E2 < 0).any(axis=1) | (ends_E2 >= run.participants).any(axis=1))[:1]:
        wrong.append(f"edge {e}: got {ends_E2[e].tolist()}, must be participants from 0 to {run.participants - 1}")
    for e in np.flatnonzero(ends_E2[:, 0] == ends_E2[:, 1])[:1]:
        wrong.append(f"edge {e}: got {ends_E2[e].tolist()}, must join two participants")
    for e in np.flatnonzero(np.diff(since_E, prepend=0) < 0)[:1]:
        wrong.append(f"edge {e}: got a graph since round {since_E[e]} after one since round {since_E[e - 1]}")
    if not wrong:
        low, high = ends_E2.min(axis=1, initial=2**31 - 1), ends_E2.max(axis=1, initial=-1)
        order = np.lexsort((high, low, since_E))
        rows_E3 = np.column_stack([since_E, low, high])[order]
        for e in np.flatnonzero((rows_E3[1:] == rows_E3[:-1]).all(axis=1))[:1]:
            since, a, b = rows_E3[e].tolist()
            wrong.append(f"the graph since round {since}: the edge {a}, {b} is there twice")
    graphs = len(np.unique(since_E))
    report.verdict("graph", wrong, f"{len(since_E)} edges, {graphs} graph{'' if graphs == 1 else 's'}")
    return None if wrong else _Graphs(since_E, ends_E2, config.topology.redraw_every if config is not None else None)


class _Tally:
    """One check in all rounds: how often it failed, and where first."""

    def __init__(self, sound: str) -> None:
        self.sound, self.count, self.first, self.looked = sound, 0, "", False

    def see(self, wrong: NDArray[np.bool_], tell: Callable[..., str]) -> None:
        """Count a block's failures; `tell` gets the place of the first."""
        self.looked = True
        if wrong.any():
            if not self.count:
                self.first = tell(*np.argwhere(wrong)[0].tolist())
            self.count += int(np.count_nonzero(wrong))

    def close(self, group: str, report: _Report) -> None:
        """One line, or none if there was nothing to look at."""
        if not self.looked:
            return
        more = f" ({self.count} such)" if self.count > 1 else ""
        report.verdict(group, [self.first + more] if self.count else [], self.sound)


def _check_values(run: Run, config: Config | None, graphs: _Graphs | None, report: _Report) -> None:
    """Ranges, NaN, and what follows from other arrays, in blocks of rounds."""
    known = _Tally("numbers where there must be some, and NaN nowhere else" if config else "numbers where always some")
    ranges = _Tally("accuracies and shares within 0 and 1, losses, times, bytes and counts not negative")
    consistent = {
        "accuracy_all": _Tally("accuracy_all is the mean over domains"),
        "accuracy_worst": _Tally("accuracy_worst is the lowest over domains"),
        "accuracy_own": _Tally("accuracy_own is that on the own domain"),
        "calibration_share": _Tally("calibration_share adds up to 1"),
        "calibration_error": _Tally("calibration_error is that of the bins"),
        "bytes_received": _Tally("as many bytes received as sent in every round"),
        "degree": _Tally("degree is that of the round's graph"),
    }
    for rounds_R, rows in _blocks(run):
        _see_known(run, config, rounds_R, rows, known)
        _see_ranges(rounds_R, rows, ranges)
        for name, got, expected in _derived(run, graphs, rounds_R, rows):
            _see_derived(name, rounds_R, got, expected, consistent[name])
    known.close("values", report)
    ranges.close("values", report)
    for tally in consistent.values():
        tally.close("consistency", report)


def _blocks(run: Run) -> Iterator[tuple[NDArray[np.int64], Rows]]:
    """Numbers of a block of rounds, and the arrays over rounds that can be read there, float64 or int64."""
    metrics = run.metrics
    names = [name for name, dims in DIMENSIONS.items() if dims[0] == "round"]
    round_bytes = 8 * sum(int(np.prod([len(metrics[dim]) for dim in DIMENSIONS[name][1:]])) for name in names)
    step = max(1, BLOCK_BYTES // max(1, round_bytes))
    for first in range(0, metrics.rounds, step):
        some = (slice(first, first + step),)
        rows = {name: metrics.part(name, some) for name in names if metrics.is_whole(name)}
        # What turned out to be damaged has its line, and none for each of its NaN.
        yield metrics["round"][first : first + step], {n: rows[n] for n in rows if metrics.is_whole(n)}


def _see_known(run: Run, config: Config | None, rounds_R: NDArray[np.int64], rows: Rows, tally: _Tally) -> None:
    def tell(expected: str) -> Callable[..., str]:
        return lambda r, *place: f"{_place(name, rounds_R[r], place)}: got {values[(r, *place)]}, must be {expected}"

    always = list(ALWAYS)
    if config is not None and config.method.name in METHOD_KEYS and config.method.local_steps:
        always.append("loss_private")
    for name in always:
        if name in rows:
            values = rows[name]
            tally.see(np.isnan(values), tell("a number"))
    if config is None:
        return
    last = config.rounds - 1
    is_evaluated_R = ((rounds_R + 1) % config.evaluation.every == 0) | (rounds_R == last)
    if "accuracy_all" in rows:
        # A run that was made a longer one keeps the evaluation of its former last round.
        is_evaluated_R |= ~np.isnan(rows["accuracy_all"]).any(axis=1)
    for name in EVALUATED:
        if name not in rows:
            continue
        values = rows[name]
        evaluated = is_evaluated_R.reshape(-1, *[1] * (values.ndim - 1))
        tally.see(~np.isnan(values) & ~evaluated, tell("NaN in a round without evaluation"))
        may_be_nan: Any = False
        if name == "accuracy_validation":
            # A participant without validation samples has none.
            may_be_nan = True
        elif name in ("calibration_confidence", "calibration_accuracy"):
            may_be_nan = rows["calibration_share"] == 0.0 if "calibration_share" in rows else True
        tally.see(np.isnan(values) & evaluated & ~np.asarray(may_be_nan), tell("a number in a round with evaluation"))


def _see_ranges(rounds_R: NDArray[np.int64], rows: Rows, tally: _Tally) -> None:
    for name, values in rows.items():
        low, high = RANGES[name]
        slack = TOLERANCE_FLOAT32 if values.dtype.kind == "f" and not name.startswith("accuracy") else 0.0
        # NaN is neither: whether it may be there is another check.
        wrong = (values < low - slack) | (values > high + slack) | np.isinf(values)

        def tell(r: int, *place: int, name: str = name, values: NDArray[Any] = values) -> str:
            low, high = RANGES[name]
            return f"{_place(name, rounds_R[r], place)}: got {values[(r, *place)]}, must be {_between(low, high)}"

        tally.see(wrong, tell)


def _derived(
    run: Run, graphs: _Graphs | None, rounds_R: NDArray[np.int64], rows: Rows
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """An array's name, what it has, and what follows from others; NaN where nothing does."""
    if "accuracy" in rows and rows["accuracy"].shape[-1]:
        accuracy_RPD = rows["accuracy"]
        mean_RP = accuracy_RPD.mean(axis=-1)
        derived = {"accuracy_all": mean_RP, "accuracy_worst": accuracy_RPD.min(axis=-1)}
        own_P = run.metrics["own_domain"]
        if run.metrics.is_whole("own_domain") and ((own_P >= -1) & (own_P < accuracy_RPD.shape[-1])).all():
            of_own_RP = np.take_along_axis(accuracy_RPD, np.maximum(own_P, 0)[None, :, None], axis=-1)[..., 0]
            derived["accuracy_own"] = np.where(own_P == -1, mean_RP, of_own_RP)
        yield from ((name, rows[name], expected) for name, expected in derived.items() if name in rows)
    if "calibration_share" in rows:
        share_RPK = rows["calibration_share"]
        sums_RP = share_RPK.sum(axis=-1)
        yield "calibration_share", sums_RP, np.ones_like(sums_RP)
        if all(name in rows for name in ("calibration_error", "calibration_accuracy", "calibration_confidence")):
            gap_RPK = np.abs(rows["calibration_accuracy"] - rows["calibration_confidence"])
            error_RP = np.where(share_RPK == 0.0, 0.0, share_RPK * gap_RPK).sum(axis=-1)
            yield "calibration_error", rows["calibration_error"], error_RP
    if "bytes_sent" in rows and "bytes_received" in rows:
        yield "bytes_received", rows["bytes_received"].sum(axis=1), rows["bytes_sent"].sum(axis=1)
    if "degree" in rows and graphs is not None:
        degrees_RP = np.stack([graphs.degrees(int(number), run.participants) for number in rounds_R])
        yield "degree", rows["degree"], degrees_RP


def _see_derived(
    name: str, rounds_R: NDArray[np.int64], got: NDArray[Any], expected: NDArray[Any], tally: _Tally
) -> None:
    def tell(r: int, *place: int) -> str:
        at = (r, *place)
        what = "sum of " if name in ("bytes_received", "calibration_share") else ""
        return f"{what}{_place(name, rounds_R[r], place)}: got {got[at]}, must be {expected[at]}"

    # Not (a > b): what is NaN on either side follows from nothing.
    tally.see(np.abs(got - expected) > TOLERANCE, tell)


def _place(name: str, round_index: int, place: Sequence[int]) -> str:
    dims = zip(DIMENSIONS[name][1:], place, strict=False)
    return f"{name} of " + ", ".join([f"round {round_index}", *(f"{dim} {i}" for dim, i in dims)])


def _check_content(run: Run, report: _Report) -> None:
    recorded = run.metrics.attributes.get("content_digest")
    if not run.metrics.closed:
        report.note("content", "the file was not closed: there is no digest to compare with")
    elif not recorded:
        report.note("content", "an older version recorded no content_digest")
    else:
        try:
            file, _ = open_for_reading(run.path)
            with file:
                got = content_digest(file)
        except DAMAGE as error:
            report.error("content", f"content_digest cannot be computed: {reason(error)}")
            return
        wrong = f"content_digest: got {got[:12]}..., must be {str(recorded)[:12]}...: a value has changed since"
        report.verdict("content", [wrong] if got != recorded else [], f"content_digest {got[:12]}... matches")


def _check_scales(run: Run, report: _Report) -> None:
    """Whether the dimension scales are attached, asked in a process of its own.

    HDF5 keeps references to them in its global heap, the one structure without a checksum: where that is damaged, it
    loops for ever.
    """
    code = "import sys; from fedh2l_mpi.analysis import validation; validation.print_unattached(sys.argv[1])"
    ended = _ended([sys.executable, "-c", code, str(run.path)])
    if isinstance(ended, _Failure):
        report.error("programs", f"dimension scales cannot be followed: {ended}")
    else:
        report.verdict("programs", ended.splitlines(), "every dimension has its scale attached")


def print_unattached(path: str) -> None:
    """A line for each dimension that has not the scale that it must have, or has another."""
    file, _ = open_for_reading(Path(path))
    for name, dims in DIMENSIONS.items():
        if is_absent(file, name):
            continue
        for axis, dim in enumerate(dims):
            try:
                attached = [scale.name for scale in file[name].dims[axis].values()]
            except DAMAGE as error:
                print(f"array {name!r}: scales of dimension {axis} are damaged: {reason(error)}")
            else:
                if attached != [f"/{dim}"]:
                    print(f"array {name!r}: got scales {attached} for dimension {axis}, must be {dim!r} alone")


def _check_h5dump(run: Run, report: _Report) -> None:
    program = shutil.which("h5dump")
    if program is None:
        report.note("programs", "h5dump is not installed: not tried")
        return
    if not run.metrics.closed:
        report.note("programs", "h5dump not tried: the file was not closed; after a kill, h5clear -s makes it readable")
        return
    wrong = []
    for options in (["-H"], ["-d", "round"]):
        ended = _ended([program, *options, str(run.path)])
        wrong += [f"h5dump {' '.join(options)}: {ended}"] if isinstance(ended, _Failure) else []
    report.verdict("programs", wrong, "h5dump reads the file")


class _Failure(str):
    """How a program failed."""


def _ended(command: Sequence[str]) -> str:
    """What a program printed, or a _Failure."""
    try:
        ended = subprocess.run(command, capture_output=True, timeout=PROGRAM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _Failure(f"still running after {PROGRAM_SECONDS} s")
    except OSError as error:
        return _Failure(f"cannot be started: {error.strerror}")
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        return _Failure(f"exit code {ended.returncode}: {said[0]}")
    return ended.stdout.decode(errors="replace")
