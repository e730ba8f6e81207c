"""Summarise one run in numbers: its settings, accuracies at the end, costs, and warnings.

Shape letters: R rounds, P participants, D domains, E evaluated rounds.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis import learning, optimizer_words
from fedh2l_mpi.analysis.classes import ByClass, by_class
from fedh2l_mpi.analysis.outcome import known_mean
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.metrics import PRESENT, ROW_FIELDS, TIMINGS, slowest_rank_seconds

PHASES = tuple(name.removeprefix("seconds_") for name in TIMINGS)
# A loss of accuracy against the baseline of more than this is negative transfer; less may be noise.
TRANSFER_MARGIN = 0.02


@dataclass(frozen=True)
class Summary:
    """A run in numbers; unknown values are NaN.

    Attributes
    ----------
    name, state : str
    facts : mapping of str to str
        Settings of the run as text: method, data, graph and so on.
    after : int
        Number of rounds that had finished at the last evaluation; 0: there was none.
    participants : mapping of str to array (P,)
        Values of each participant: `architecture` (text), and as numbers `parameters`, `own_domain`, `accuracy_local`
        (only if the run has local tests), `accuracy_own`, `accuracy_all`, `accuracy_worst`,
        `accuracy_all_at_best_validation`, `calibration_error`, `temperature` (NaN if none was fitted), `gain`
        (all-domain accuracy minus the baseline's), `bytes_sent`, `bytes_received`, `bytes_as_parameters` (traffic if
        models were exchanged: one copy per edge and round), `conflict_rate` (mean over rounds), `loss_private` and
        `loss_distillation` (last round, nats), and `seconds_*` of each phase.
    accuracy_PD : float64 (P, D)
        Accuracy at the last evaluation.
    seconds : float
        Time of the slowest rank in the rounds. Unknown times count as 0; NaN if all are unknown.
    warnings : sequence of str
        Signs of trouble in the learning.
    problems : sequence of str
        Damage of the file.
    baseline : str or None
        Name of the run that `gain` is measured against.
    classes : ByClass or None
        Results by class; None if the run has none.
    validation_samples : float
        Validation samples of a participant, mean, by the config's shares; NaN if they are unknown.
    own_arrays : mapping
        From the run's own arrays, notes of its method and metrics of its config, to each participant's value (P,) in
        the last round, or in the last evaluation; the mean over domains. `present` is its share of the rounds.
    """

    name: str
    state: str
    facts: Mapping[str, str]
    after: int
    participants: Mapping[str, NDArray[Any]]
    accuracy_PD: NDArray[np.float64]
    domains: Sequence[str]
    seconds: float
    warnings: Sequence[str]
    problems: Sequence[str]
    baseline: str | None = None
    classes: ByClass | None = None
    validation_samples: float = math.nan
    own_arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the table of results as plain text."""
        from fedh2l_mpi.analysis import report, tables

        return tables.plain(report.result_table(self))

    def mean(self, name: str) -> float:
        """Return the mean over the participants whose value is known."""
        return known_mean(self.participants[name])

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Seconds in each phase, mean over participants."""
        return {phase: self.mean(f"seconds_{phase}") for phase in PHASES}

    @property
    def waiting_share(self) -> float:
        """Share of all time that was spent waiting for messages."""
        return self.share("wait")

    def share(self, phase: str) -> float:
        """Return the share of all known time that was spent in a phase."""
        seconds = self.phase_seconds
        total = float(np.nansum(list(seconds.values())))
        return seconds[phase] / total if total > 0 else math.nan


def summarise(run: Run, baseline: Run | None = None) -> Summary:
    """Summarise a run; with a `baseline` run, also compute each participant's gain over it."""
    measured = run.metrics
    participants: dict[str, NDArray[Any]] = {
        "architecture": np.array(measured.texts("architecture")),
        "parameters": measured["parameters"],
        "own_domain": measured["own_domain"],
        **_last_evaluation(run),
        "accuracy_all_at_best_validation": accuracy_at_best_validation(
            measured["accuracy_validation"], measured["accuracy_all"]
        ),
        "bytes_sent": measured["bytes_sent"].sum(axis=0),
        "bytes_received": measured["bytes_received"].sum(axis=0),
        "bytes_as_parameters": measured["degree"].sum(axis=0) * measured["parameter_bytes"],
        "conflict_rate": mean_over_rounds(measured["conflict_rate"]),
        "loss_private": _last(measured["loss_private"]),
        "loss_distillation": _last(measured["loss_distillation"]),
        **{name: _total(measured[name]) for name in TIMINGS},
    }
    warnings = list(_warnings(run))
    gain_P = np.full(run.participants, math.nan)
    if baseline is not None:
        gain_P, more = _compare(run, participants, baseline)
        warnings += more
    participants["gain"] = gain_P
    evaluated = len(run.evaluated_E) > 0
    shape = (run.participants, len(measured["domain"]))
    accuracy_PD = measured.read_row("accuracy", run.evaluated_E[-1]) if evaluated else np.full(shape, math.nan)
    phases = [participants[name] for name in TIMINGS]
    seconds = math.nan if np.isnan(phases).all() else float(slowest_rank_seconds(phases, measured["rank"]))
    return Summary(
        run.name,
        str(run.condition),
        dict(_facts(run)),
        _after(run),
        participants,
        accuracy_PD,
        measured.texts("domain_name"),
        seconds,
        warnings,
        list(run.problems),
        baseline.name if baseline is not None else None,
        by_class(run),
        _validation_samples(run),
        _own_arrays(run),
    )


def _own_arrays(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return each participant's last value (P,) of the arrays that the schema does not have."""
    measured, found = run.metrics, {}
    for array in measured.columns.by_participant:
        if measured.rounds and array.name != "accuracy_local":
            found[array.name] = measured.read_row(array.name, measured.rounds - 1)
    if PRESENT.name in found:
        found[PRESENT.name] = mean_over_rounds(measured[PRESENT.name])
    for array in measured.columns.by_domain:
        if len(run.evaluated_E):
            values_PD = measured.read_row(array.name, run.evaluated_E[-1])
            found[array.name] = np.array([known_mean(values_D) for values_D in values_PD])
    return found


def mean_over_rounds(values_RP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the rounds with a known value, (P,)."""
    known = ~np.isnan(values_RP)
    count_P = known.sum(axis=0)
    return np.where(count_P > 0, np.where(known, values_RP, 0.0).sum(axis=0) / np.maximum(count_P, 1), math.nan)


def accuracy_at_best_validation(
    validation_RP: NDArray[np.float64], everywhere_RP: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return all-domain accuracy (P,) in the round with the highest validation accuracy (the latest of equals).

    Validation sets are small, so that many rounds are equal; the first of them has trained least.
    """
    best = np.full(validation_RP.shape[1], np.nan)
    known = ~np.isnan(validation_RP).all(axis=0)
    if known.any():
        chosen = len(validation_RP) - 1 - np.nanargmax(validation_RP[::-1, known], axis=0)
        best[known] = everywhere_RP[chosen, np.flatnonzero(known)]
    return best


def _total(values_RP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum over the rounds with a known value, (P,); NaN if there is none."""
    return np.where(np.isnan(values_RP).all(axis=0), math.nan, np.nansum(values_RP, axis=0))


def _last(values_RP: NDArray[np.float64]) -> NDArray[np.float64]:
    return values_RP[-1] if len(values_RP) else np.full(values_RP.shape[1], math.nan)


def _last_evaluation(run: Run) -> dict[str, NDArray[np.float64]]:
    local = ("accuracy_local",) if "accuracy_local" in run.metrics.dimensions else ()
    names = (*local, "accuracy_own", "accuracy_all", "accuracy_worst", "calibration_error", "temperature")
    if len(run.evaluated_E) == 0:
        return {name: np.full(run.participants, math.nan) for name in names}
    return {name: run.metrics[name][run.evaluated_E[-1]] for name in names}


def _validation_samples(run: Run) -> float:
    """Return the mean number of a participant's validation samples, from its private ones and the config's shares."""
    share, local = run.key("evaluation.validation_share"), run.key("evaluation.local_test_share") or 0.0
    if not isinstance(share, float) or not isinstance(local, float) or share + local >= 1:
        return math.nan
    return known_mean(run.metrics["private_samples"] * (share / (1 - share - local)))


def _after(run: Run) -> int:
    """Return the number of rounds that had finished at the last evaluation; 0: there was none."""
    return run.after(run.evaluated_E[-1]) if len(run.evaluated_E) else 0


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the run's settings, from config and attributes; leave out what is unknown."""
    measured, key, attributes = run.metrics, run.key, run.metrics.attributes
    if key("method.name"):
        extra = [f"{word} {key(f'method.{name}')}" for name, word in _METHOD_WORDS.items() if key(f"method.{name}")]
        yield "method", ", ".join([str(key("method.name")), *extra])
    if key("data.name"):
        domains = len(measured["domain"])
        yield "data", f"{key('data.name')}, {key('data.partition.kind')}, {_count(domains, 'domain')}"
    architectures, counts = np.unique(measured.texts("architecture"), return_counts=True)
    models = ", ".join(f"{count} {name}" for name, count in zip(architectures, counts, strict=True))
    yield "participants", f"{run.participants}: {models}"
    yield "graph", _graph(run)
    if attributes.get("seed_set_samples"):
        views, each = key("seed_set.views"), key("seed_set.views_per_sample") or 1
        yield (
            "seed set",
            f"{attributes['seed_set_samples']} samples, {attributes.get('seed_set_samples_per_round')} a round"
            + (f", views {views}" if views and views != "none" else "")
            + (f", {each} of each sample" if each > 1 else ""),
        )
    if key("exchange.codec"):
        yield "codec", str(key("exchange.codec")) + (f", k = {key('exchange.top_k')}" if key("exchange.top_k") else "")
    if key("exchange.skip_below") is not None:
        yield "rows not sent", f"rows within {key('exchange.skip_below'):g} of the neighbours' copies"
    if key("optimizer.name"):
        yield "optimizer", optimizer_words.in_words(key)
    yield "seed", str(attributes.get("seed", "?"))
    yield "hardware", _hardware(run)
    yield "versions", _versions(attributes.get("versions"))
    revision, dash, dirty = str(attributes.get("git_revision", "?")).partition("-")
    yield "revision", f"{revision[:12]}{dash}{dirty}"
    ended = f", ended {attributes['ended']}" if attributes.get("ended") else ""
    yield "started", str(attributes.get("started", "?")) + ended


_METHOD_WORDS = {
    "local_steps": "local steps",
    "mutual_steps": "mutual steps",
    "weight_kd": "weight_kd",
    "combine": "combine",
    "teachers": "teachers",
}


def _graph(run: Run) -> str:
    kind, degree_RP = run.key("topology.kind", "graph"), run.metrics["degree"]
    graphs = len(np.unique(run.metrics["graph_since_round"]))
    word = "drawn" if run.key("topology.redraw_every") else "changed"
    redrawn = f", {word} {graphs if word == 'drawn' else graphs - 1} times" if graphs > 1 else ""
    attributes = run.metrics.attributes
    gap = f", spectral gap {attributes['spectral_gap']}" if "spectral_gap" in attributes else ""
    gap += f" ({attributes['spectral_gap_of']})" if attributes.get("spectral_gap_of", "graph") != "graph" else ""
    return (
        f"{kind}, mean degree {known_mean(degree_RP.ravel().astype(float)):.3g}{redrawn}{gap}"
        if degree_RP.size
        else str(kind)
    )


def _hardware(run: Run) -> str:
    hosts, devices = set(run.metrics.texts("host")), sorted(set(run.metrics.texts("device")))
    ranks = run.metrics.attributes.get("ranks")
    where = hosts.pop() if len(hosts) == 1 else _count(len(hosts), "host")
    what = ", ".join(devices[:4]) + (" and more" if len(devices) > 4 else "")
    if gpus := run.metrics.attributes.get("gpus"):
        what += f" ({gpus})"
    threads = run.metrics.attributes.get("threads")
    return f"{_count(ranks, 'rank')} on {where}, {what}, {_count(threads, 'thread')} each"


def _versions(text: Any) -> str:
    try:
        versions = json.loads(str(text))
        return ", ".join(f"{name} {version}" for name, version in versions.items())
    except (ValueError, AttributeError):
        return "?"


def _count(number: Any, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _warnings(run: Run) -> Iterator[str]:
    state = run.condition
    if state.word != "complete":
        missing = state.planned - state.rounds
        yield f"unfinished: {state}" + (f", {missing} missing" if missing > 0 and state.word != "running" else "")
    elif state.rounds != state.planned and not state.early_stop:
        yield f"unfinished: {state.rounds} of {state.planned} rounds are there"
    if len(run.evaluated_E) == 0:
        yield "no round has been evaluated yet: no accuracies"
    yield from learning.cautions(run)


def _compare(
    run: Run, participants: Mapping[str, NDArray[Any]], baseline: Run
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the gain in all-domain accuracy (P,) over the baseline run, and warnings."""
    theirs, warnings = _last_evaluation(baseline), []
    unlike = [
        what
        for what, ours, other in (
            ("seed", run.metrics.attributes.get("seed"), baseline.metrics.attributes.get("seed")),
            (
                "seed set",
                run.metrics.attributes.get("seed_set_digest"),
                baseline.metrics.attributes.get("seed_set_digest"),
            ),
            ("data", _without_root(run.key("data")), _without_root(baseline.key("data"))),
            ("models", run.metrics.texts("architecture"), baseline.metrics.texts("architecture")),
        )
        if ours != other
    ]
    if unlike:
        warnings.append(f"the baseline {baseline.name} differs in {' and '.join(unlike)}, so gains are not paired")
    if baseline.state != "complete":
        warnings.append(f"the baseline {baseline.name} is unfinished: {baseline.condition}")
    after, theirs_after = _after(run), _after(baseline)
    if after and theirs_after and after != theirs_after:
        warnings.append(
            f"the baseline {baseline.name} was last evaluated after {theirs_after} rounds, this run after {after}, so "
            "gains compare different amounts of training"
        )
    if baseline.participants != run.participants:
        warnings.append(
            f"the baseline {baseline.name} has {baseline.participants} participants, this run {run.participants}, so "
            "gains are measured against the baseline's mean"
        )
        return participants["accuracy_all"] - known_mean(theirs["accuracy_all"]), warnings
    for name, meaning in (("accuracy_all", "all-domain"), ("accuracy_own", "own-domain")):
        gain_P = participants[name] - theirs[name]
        losing = np.flatnonzero(gain_P < -TRANSFER_MARGIN)
        if len(losing):
            losers = learning.list_participants(losing, gain_P, meaning + " accuracy {:+.3f}")
            warnings.append(f"negative transfer: {losers} to {baseline.name}")
    return participants["accuracy_all"] - theirs["accuracy_all"], warnings


def _without_root(section: Any) -> Any:
    return {key: value for key, value in section.items() if key != "root"} if isinstance(section, Mapping) else section


def long_form(summaries: Sequence[Summary]) -> tuple[list[str], list[list[Any]]]:
    """Return the header, and one line for each participant of each run, with all digits."""
    columns: list[tuple[str, Callable[[Summary, int], Any]]] = [
        ("run", lambda summary, i: summary.name),
        ("state", lambda summary, i: summary.state),
        ("after_rounds", lambda summary, i: summary.after),
        ("participant", lambda summary, i: i),
    ]
    names = list(dict.fromkeys(name for summary in summaries for name in summary.participants))
    lines = [
        [*(make(summary, i) for _, make in columns), *(_item(summary.participants[name][i]) for name in names)]
        for summary in summaries
        for i in range(len(summary.participants["parameters"]))
    ]
    return [*(name for name, _ in columns), *names], lines


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the summary as values for `json`; NaN becomes null."""
    participants = {name: [_item(value) for value in values] for name, values in summary.participants.items()}
    return {
        "name": summary.name,
        "state": summary.state,
        "facts": dict(summary.facts),
        "after_rounds": summary.after,
        "baseline": summary.baseline,
        "mean": {name: _item(summary.mean(name)) for name in participants if name != "architecture"},
        "participants": participants,
        "domains": list(summary.domains),
        "accuracy": [[_item(value) for value in row] for row in summary.accuracy_PD],
        "seconds": _item(summary.seconds),
        "seconds_per_phase": {phase: _item(value) for phase, value in summary.phase_seconds.items()},
        "waiting_share": _item(summary.waiting_share),
        "warnings": list(summary.warnings),
        "problems": list(summary.problems),
        "accuracy_class": []
        if summary.classes is None
        else [[_item(value) for value in row] for row in summary.classes.accuracy_PC],
        "units": {field.name: field.units for field in ROW_FIELDS},
    }


def _item(value: Any) -> Any:
    """Return a Python value; None for NaN and infinity, for which JSON has no word."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
