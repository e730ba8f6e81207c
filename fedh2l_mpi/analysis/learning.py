"""Find participants that have learned nothing, and losses that exploded or rose again.

`cautions` lists participants for a report; `verdict` judges a run that has ended.

Shape letters: R rounds, P participants, W windows of rounds.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.run import Run

# An accuracy this many standard errors above the best guess is no luck.
STANDARD_ERRORS = 3.0
# In files without the facts about the test sets, accuracy counts as chance up to this part of the way from guessing
# to 1.
CHANCE_MARGIN = 0.1
# A private loss has exploded if it ends at more than this many times the loss of equal posteriors, ln C.
EXPLODED_RATIO = 2.0
# Training diverges if the private loss ends at more than this many times, and nats above, its lowest value.
DIVERGED_RATIO, DIVERGED_NATS = 1.5, 0.1
# A line lists at most this many participants, and counts the rest.
NAMED = 8


def cautions(run: Run) -> Iterator[str]:
    """Yield a line for each sign that participants have not learned, with their numbers."""
    accuracy_P, loss_RP = _last_accuracies(run), run.metrics["loss_private"]
    guess, limit = _chance_level(run)
    if (guessing := accuracy_P <= limit).any():
        yield f"at chance level ({guess:.3g}): {_named(guessing, accuracy_P, 'all-domain accuracy {:.3f}')}"
    exploded = has_exploded(_last(loss_RP), len(run.metrics["class"]))
    if exploded.any():
        yield f"exploded: {_named(exploded, _last(loss_RP), 'private loss {:.3g} nats')}"
    rose, ratios_P = diverging(loss_RP)
    if (rose := rose & ~exploded).any():
        yield f"diverging: {_named(rose, ratios_P, 'private loss {:.1f} times its lowest')}"


def verdict(run: Run) -> str:
    """Return one line about a run that has ended without learning anything; empty for every other run."""
    accuracy_P, loss_P, signs = _last_accuracies(run), _last(run.metrics["loss_private"]), []
    guess, limit = _chance_level(run)
    if not np.isnan(accuracy_P).all() and (mean := float(np.nanmean(accuracy_P))) <= limit:
        signs.append(f"the mean all-domain accuracy {mean:.3f} is at chance level ({guess:.3g} for the best guess)")
    classes = len(run.metrics["class"])
    if count := int(has_exploded(loss_P, classes).sum()):
        signs.append(
            f"the private loss of {count} of {len(loss_P)} participants has exploded (up to {np.nanmax(loss_P):.3g} "
            f"nats, against {math.log(max(classes, 2)):.3g} of equal posteriors)"
        )
    return f"{' and '.join(signs)}. A lower optimizer.lr may help." if signs else ""


def chance_level(classes: int, most_frequent: int | None, samples: int | None) -> tuple[float, float]:
    """Return the accuracy of the best guess, and the largest accuracy that a guess may have by luck.

    Parameters
    ----------
    classes : int
        Number of classes, C.
    most_frequent, samples : int or None
        Test samples of the class with the most, which is the best guess, and of all classes, n; None: unknown.

    Source: the standard error of a share q of n samples is sqrt(q (1 - q) / n), of the binomial distribution.
    """
    if most_frequent is None or samples is None or not 0 <= most_frequent <= samples > 0:
        chance = 1 / classes if classes else math.nan
        return chance, chance + CHANCE_MARGIN * (1 - chance)
    guess = most_frequent / samples
    return guess, guess + STANDARD_ERRORS * math.sqrt(guess * (1 - guess) / samples)


def has_exploded(loss_P: NDArray[np.float64], classes: int) -> NDArray[np.bool_]:
    """Return True where a private loss [nats] is far above that of equal posteriors, ln C, bool (P,)."""
    return np.asarray(loss_P > EXPLODED_RATIO * math.log(max(classes, 2)))


def diverging(loss_RP: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return where the private loss rose again, bool (P,), and the factors; losses are means of a tenth of a run."""
    rounds, participants = loss_RP.shape
    window = max(1, rounds // 10)
    windows = rounds // window
    if windows < 3 or np.isnan(loss_RP).all():
        return np.zeros(participants, bool), np.full(participants, math.nan)
    # The windows end with the last round. Rounds that are left over come from the start, where losses are high.
    loss_WRP = loss_RP[rounds - windows * window :].reshape(windows, window, participants)
    # Who was absent has no loss; a window of absence counts for nothing.
    count_WP = (~np.isnan(loss_WRP)).sum(axis=1)
    means_WP = np.where(count_WP > 0, np.nansum(loss_WRP, axis=1) / np.maximum(count_WP, 1), math.nan)
    lowest_P, last_P = np.fmin.reduce(means_WP, axis=0), means_WP[-1]
    ratios_P = last_P / np.where(lowest_P > 0, lowest_P, math.nan)
    return (last_P > DIVERGED_RATIO * lowest_P) & (last_P > lowest_P + DIVERGED_NATS), ratios_P


def list_participants(chosen: NDArray[np.int64], values_P: NDArray[np.float64], form: str) -> str:
    """List the first participants by number and value, and count the rest."""
    listed = ", ".join(f"participant {i} ({form.format(values_P[i])})" for i in chosen[:NAMED])
    return listed + (f" and {len(chosen) - NAMED} more" if len(chosen) > NAMED else "")


def _named(which_P: NDArray[np.bool_], values_P: NDArray[np.float64], form: str) -> str:
    return list_participants(np.flatnonzero(which_P), values_P, form)


def _last(values_RP: NDArray[np.float64]) -> NDArray[np.float64]:
    return values_RP[-1] if len(values_RP) else np.full(values_RP.shape[1], math.nan)


def _last_accuracies(run: Run) -> NDArray[np.float64]:
    """Return every participant's all-domain accuracy at the last evaluation; NaN before the first."""
    if not len(run.evaluated_E):
        return np.full(run.participants, math.nan)
    return run.metrics.read_row("accuracy_all", run.evaluated_E[-1])


def _chance_level(run: Run) -> tuple[float, float]:
    facts = [run.metrics.attributes.get(name) for name in ("test_samples_of_a_class", "test_samples")]
    return chance_level(len(run.metrics["class"]), *(fact if isinstance(fact, int) else None for fact in facts))
