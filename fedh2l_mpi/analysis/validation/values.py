"""Check a metrics file's values: ranges, and what follows from other values or the config."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.analysis.validation.findings import Report
from fedh2l_mpi.config import Config, MethodConfig
from fedh2l_mpi.metrics import (
    BIN_FIELDS,
    DIMENSIONS,
    DOMAIN_FIELDS,
    PRESENT,
    ROW_FIELDS,
    SIMULATED_SECONDS,
    TEMPERATURES,
)

# Largest size of a block of rounds, all its arrays together.
BLOCK_BYTES = 2**25
# Tolerance of means that are computed twice in float64; and of values from float32, such as a confidence of 1.0000001.
TOLERANCE, TOLERANCE_FLOAT32 = 1e-9, 1e-5
# Only these are NaN in rounds without evaluation. A round has none if the config does not ask for one and some
# participant has no `accuracy_all`.
EVALUATED = (
    *(name for name in DIMENSIONS if name.startswith(("accuracy", "calibration"))),
    "loss",
    "seconds_evaluate",
    "temperature",
)
# Known in every round, whatever the method does.
ALWAYS = ("seconds_publish", "seconds_local", "seconds_wait", "seconds_mutual", SIMULATED_SECONDS.name, PRESENT.name)
# Lowest and highest value; bytes, seconds and losses have no upper limit.
RANGES = {
    **{each.name: (0.0, np.inf) for each in (*ROW_FIELDS, *DOMAIN_FIELDS)},
    **{each.name: (0.0, 1.0) for each in BIN_FIELDS},
    **{name: (0.0, 1.0) for name in DIMENSIONS if name.startswith("accuracy")},
    "calibration_error": (0.0, 1.0),
    "conflict_rate": (0.0, 1.0),
    "gradient_cosine": (-1.0, 1.0),
    "temperature": TEMPERATURES,
    "accuracy_local": (0.0, 1.0),
    PRESENT.name: (0.0, 1.0),
    **dict.fromkeys(("balanced_accuracy", "macro_f1", "auroc"), (0.0, 1.0)),
    **dict.fromkeys(("nll", SIMULATED_SECONDS.name), (0.0, np.inf)),
}
Rows = Mapping[str, NDArray[Any]]


def check_rounds(run: Run, config: Config | None, report: Report) -> None:
    """Check that all rounds are there."""
    planned, finished = run.condition.planned, run.metrics.rounds
    wrong = [problem for problem in run.problems if problem.startswith("missing rounds")]
    if run.state == "complete" and finished != planned and not run.condition.early_stop and not wrong:
        wrong.append(f"got {finished} rounds, must be {planned} of a complete run")
    if planned and finished > planned:
        wrong.append(f"got {finished} rounds, {planned} were planned")
    report.verdict("rounds", wrong, f"{finished} of {planned or '?'} rounds, without a gap")


def check_participants(run: Run, config: Config | None, report: Report) -> None:
    """Check the participants' architectures, samples, labels and domains."""
    metrics = run.metrics
    domains = len(metrics["domain"])
    wrong = []
    limits = {"own_domain": (-1, domains - 1), "rank": (0, _number(run, "ranks", metrics["participant"].size) - 1)}
    for name in (
        "parameters",
        "parameter_bytes",
        "private_samples",
        "own_domain",
        "rank",
        "label_histogram",
        "domain_histogram",
    ):
        if not metrics.is_whole(name):
            continue
        low, high = limits.get(name, (0, np.inf))
        wrong += _first_wrong(name, metrics[name], low, high)
    for name in ("label_histogram", "domain_histogram"):
        if metrics.is_whole(name) and metrics.is_whole("private_samples"):
            sums_P, samples_P = metrics[name].sum(axis=1), metrics["private_samples"]
            for i in np.flatnonzero(sums_P != samples_P)[:1]:
                wrong.append(f"{name} of participant {i}: got {sums_P[i]} samples, must be {samples_P[i]}")
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
    if np.isinf(low):
        return "finite"
    return f">= {low:g}" if np.isinf(high) else f"from {low:g} to {high:g}"


@dataclass(frozen=True)
class _Graphs:
    """All graphs of the run, in the order of their first rounds.

    Attributes
    ----------
    since_E : int64 (E,), ascending
    ends_E2 : int32 (E, 2)
    changes_every : int or None
        Rounds between changes, from which graphs without edges are known.
    """

    since_E: NDArray[np.int64]
    ends_E2: NDArray[np.int32]
    changes_every: int | None

    def degrees(self, round_index: int, is_present_P: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the degrees in the graph of a round, whose edges join participants that are present, int64 (P,)."""
        if self.changes_every is not None:
            since = round_index // self.changes_every * self.changes_every
        else:
            at = int(np.searchsorted(self.since_E, round_index, side="right"))
            since = int(self.since_E[at - 1]) if at else 0
        first, last = np.searchsorted(self.since_E, [since, since + 1])
        ends_E2 = self.ends_E2[first:last]
        joined_E = is_present_P[ends_E2].all(axis=1)
        return np.bincount(ends_E2[joined_E].ravel(), minlength=len(is_present_P))


def check_graphs(run: Run, config: Config | None, report: Report) -> _Graphs | None:
    """Check the graphs; return them if they are valid, else None."""
    metrics = run.metrics
    since_E, ends_E2 = metrics["graph_since_round"], metrics["graph_edges"]
    if not (metrics.is_whole("graph_edges") and metrics.is_whole("graph_since_round")):
        return None
    # A kill after a graph was written, but before its first round, leaves a graph that counts for nothing.
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
            wrong.append(f"the graph since round {since}: the edge {a}, {b} occurs twice")
    graphs = len(np.unique(since_E))
    report.verdict("graph", wrong, f"{len(since_E)} edges, {graphs} graph{'' if graphs == 1 else 's'}")
    return None if wrong else _Graphs(since_E, ends_E2, config.topology.changes_every if config is not None else None)


class _Tally:
    """One check over all rounds: the number of failures, and the first of them."""

    def __init__(self, sound: str) -> None:
        self.sound, self.count, self.first, self.is_checked = sound, 0, "", False

    def add(self, wrong: NDArray[np.bool_], describe: Callable[..., str]) -> None:
        """Count a block's failures; `describe` gets the index of the first."""
        self.is_checked = True
        if wrong.any():
            if not self.count:
                self.first = describe(*np.argwhere(wrong)[0].tolist())
            self.count += int(np.count_nonzero(wrong))

    def close(self, group: str, report: Report) -> None:
        """Report one line, or none if nothing was checked."""
        if not self.is_checked:
            return
        more = f" ({self.count} such)" if self.count > 1 else ""
        report.verdict(group, [self.first + more] if self.count else [], self.sound)


def check_values(run: Run, config: Config | None, graphs: _Graphs | None, report: Report) -> None:
    """Check ranges, NaN, and values that follow from other arrays, in blocks of rounds."""
    known = _Tally(
        "numbers wherever there must be some, NaN everywhere else"
        if config
        else "numbers in every array that always has some"
    )
    ranges = _Tally("accuracies and shares within 0 and 1, losses, times, bytes and counts not negative")
    consistent = {
        "accuracy_all": _Tally("accuracy_all is the mean over domains"),
        "accuracy_worst": _Tally("accuracy_worst is the lowest over domains"),
        "accuracy_own": _Tally("accuracy_own is the accuracy on the own domain"),
        "calibration_share": _Tally("calibration_share adds up to 1"),
        "calibration_error": _Tally("calibration_error agrees with the bins"),
        "accuracy_class": _Tally("accuracy_class follows from the confusion matrices"),
        "bytes_received": _Tally("as many bytes received as sent in every round"),
        "degree": _Tally("degree agrees with the round's graph"),
    }
    for rounds_R, rows in _blocks(run):
        _check_known(run, config, rounds_R, rows, known)
        _check_ranges(rounds_R, rows, ranges)
        for name, got, expected in _derived(run, graphs, rounds_R, rows):
            _check_derived(name, rounds_R, got, expected, consistent[name])
    _check_end(run, consistent["accuracy_class"])
    known.close("values", report)
    ranges.close("values", report)
    for tally in consistent.values():
        tally.close("consistency", report)


def _check_end(run: Run, tally: _Tally) -> None:
    """Check that accuracies by class are those of the confusion matrices, of a run that has them."""
    metrics = run.metrics
    if not all(name in metrics.dimensions and metrics.is_whole(name) for name in ("accuracy_class", "confusion")):
        return
    accuracy_PC, counts_PCC = metrics["accuracy_class"], metrics["confusion"]
    if (counts_PCC == -1).all() and np.isnan(accuracy_PC).all():
        return
    samples_PC = counts_PCC.sum(axis=2, dtype=np.int64)
    hits_PC = np.diagonal(counts_PCC, axis1=1, axis2=2)
    expected_PC = np.where(samples_PC > 0, hits_PC / np.maximum(samples_PC, 1), np.nan)

    def describe(i: int, label: int) -> str:
        where = f"participant {i}, class {label}"
        return f"accuracy_class of {where}: got {accuracy_PC[i, label]}, must be {expected_PC[i, label]}"

    known_PC = ~np.isnan(accuracy_PC)
    near_PC = np.abs(accuracy_PC - expected_PC) <= TOLERANCE
    tally.add((known_PC != (samples_PC > 0)) | (known_PC & ~near_PC) | (counts_PCC < 0).any(axis=2), describe)


def _blocks(run: Run) -> Iterator[tuple[NDArray[np.int64], Rows]]:
    """Yield the numbers of a block of rounds, and its readable arrays over rounds, float64 or int64."""
    metrics = run.metrics
    names = [name for name, dims in metrics.dimensions.items() if dims[0] == "round"]
    round_bytes = 8 * sum(int(np.prod([len(metrics[dim]) for dim in metrics.dimensions[name][1:]])) for name in names)
    step = max(1, BLOCK_BYTES // max(1, round_bytes))
    for first in range(0, metrics.rounds, step):
        some = (slice(first, first + step),)
        rows = {name: metrics.part(name, some) for name in names if metrics.is_whole(name)}
        # An array that turns out damaged is left out: its damage is reported once, and its NaN are no errors.
        yield metrics["round"][first : first + step], {n: rows[n] for n in rows if metrics.is_whole(n)}


def _check_known(run: Run, config: Config | None, rounds_R: NDArray[np.int64], rows: Rows, tally: _Tally) -> None:
    def describe(expected: str) -> Callable[..., str]:
        return lambda r, *index: f"{_position(name, rounds_R[r], index)}: got {values[(r, *index)]}, must be {expected}"

    always = list(ALWAYS)
    if config is not None and config.method.name in MethodConfig.kinds and config.method.local_steps:
        always.append("loss_private")
    for name in always:
        if name in rows:
            values = rows[name]
            is_absent = rows[PRESENT.name] == 0 if name == "loss_private" and PRESENT.name in rows else False
            tally.add(np.isnan(values) & ~np.asarray(is_absent), describe("a number"))
    if config is None:
        return
    last = config.rounds - 1
    is_evaluated_R = ((rounds_R + 1) % config.evaluation.every == 0) | (rounds_R == last)
    if "accuracy_all" in rows:
        # A run that was extended keeps the evaluation of its former last round.
        is_evaluated_R |= ~np.isnan(rows["accuracy_all"]).any(axis=1)
    columns = run.metrics.columns
    own = [field.name for field in columns.by_domain]
    for name in (*EVALUATED, *own, "accuracy_local"):
        if name not in rows:
            continue
        values = rows[name]
        evaluated = is_evaluated_R.reshape(-1, *[1] * (values.ndim - 1))
        tally.add(~np.isnan(values) & ~evaluated, describe("NaN in a round without evaluation"))
        may_be_nan: Any = False
        if name in ("accuracy_validation", "accuracy_local", *own):
            # A participant without such samples has no accuracy on them, and a metric may be unknown.
            may_be_nan = True
        elif name == "temperature":
            may_be_nan = config.evaluation.calibration == "none"
            tally.add(~np.isnan(values) & may_be_nan, describe("NaN without evaluation.calibration"))
        elif name in ("calibration_confidence", "calibration_accuracy"):
            may_be_nan = rows["calibration_share"] == 0.0 if "calibration_share" in rows else True
        is_missing = np.isnan(values) & evaluated & ~np.asarray(may_be_nan)
        tally.add(is_missing, describe("a number in a round with evaluation"))


def _check_ranges(rounds_R: NDArray[np.int64], rows: Rows, tally: _Tally) -> None:
    for name, values in rows.items():
        # What a user's method notes, or a user's metric returns, may have any finite value.
        low, high = RANGES.get(name, (-np.inf, np.inf))
        slack = TOLERANCE_FLOAT32 if values.dtype.kind == "f" and not name.startswith("accuracy") else 0.0
        # NaN passes here, because another check decides where NaN may be.
        wrong = (values < low - slack) | (values > high + slack) | np.isinf(values)

        def describe(r: int, *index: int, name: str = name, values: NDArray[Any] = values) -> str:
            low, high = RANGES.get(name, (-np.inf, np.inf))
            return f"{_position(name, rounds_R[r], index)}: got {values[(r, *index)]}, must be {_between(low, high)}"

        tally.add(wrong, describe)


def _derived(
    run: Run, graphs: _Graphs | None, rounds_R: NDArray[np.int64], rows: Rows
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Yield an array's name, its values, and the values that follow from other arrays, with NaN for none."""
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
        is_present_RP = rows.get(PRESENT.name, np.ones(rows["degree"].shape)) > 0
        rounds = zip(rounds_R.tolist(), is_present_RP, strict=True)
        degrees_RP = np.stack([graphs.degrees(number, is_present_P) for number, is_present_P in rounds])
        yield "degree", rows["degree"], degrees_RP


def _check_derived(
    name: str, rounds_R: NDArray[np.int64], got: NDArray[Any], expected: NDArray[Any], tally: _Tally
) -> None:
    def describe(r: int, *index: int) -> str:
        at = (r, *index)
        what = "sum of " if name in ("bytes_received", "calibration_share") else ""
        return f"{what}{_position(name, rounds_R[r], index)}: got {got[at]}, must be {expected[at]}"

    # A comparison with NaN is False, so a value that follows from nothing passes.
    tally.add(np.abs(got - expected) > TOLERANCE, describe)


def _position(name: str, round_index: int, index: Sequence[int]) -> str:
    dims = zip(DIMENSIONS.get(name, ("round", "participant", "domain"))[1:], index, strict=False)
    return f"{name} of " + ", ".join([f"round {round_index}", *(f"{dim} {i}" for dim, i in dims)])
