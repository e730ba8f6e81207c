"""Small runs to compare: two participants, one accuracy."""

from pathlib import Path

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.config.loading import load

PARTICIPANT = {
    "architecture": "mlp", "parameters": 9, "parameter_bytes": 36, "private_samples": 5, "own_domain": 0, "rank": 0,
    "host": "here", "device": "cpu",
}  # fmt: skip


def write(
    path: Path,
    *overrides: str,
    seed: int = 0,
    accuracy: float = 0.5,
    sent: int = 0,
    started: str = "2026-01-01T00:00:00+00:00",
    state: str = "complete",
    evaluated: bool | str = True,
    rounds: int = 2,
    revision: str = "0123456789",
    trust: float | None = None,
) -> Path:
    """A run of two participants whose all-domain accuracies in the last round have this mean.

    Evaluated is every round, none, or "once", the last. With `trust`, the run has an array of its own of this mean.
    """
    config = load(None, [f"seed={seed}", "participants=2", f"rounds={rounds}", *overrides]).resolved(1, launched=False)
    attributes = {
        "config": config.to_yaml(), "seed": seed, "git_revision": revision, "started": started, "rounds_planned": 2,
    }  # fmt: skip
    path.mkdir(parents=True)
    own = metrics.Columns((metrics.Field("trust", "f8", "1", "a note"),)) if trust is not None else metrics.NO_COLUMNS
    header = metrics.RunHeader(attributes, [PARTICIPANT] * 2, np.ones((2, 3), np.int64), ["plain"], own)
    writer = metrics.MetricsWriter(path / "metrics.h5", header)
    for number in range(rounds):
        level = accuracy if number == rounds - 1 else 0.1
        values = [{"accuracy_own": 0.9, "accuracy_all": level + sign * 0.05} for sign in (-1, 1)]
        is_evaluated = evaluated is True or (evaluated == "once" and number == rounds - 1)
        values = [{**row, "accuracy_worst": 0.2, "seconds_local": 1.0} if is_evaluated else {} for row in values]
        counts = {"bytes_sent": sent, "bytes_received": sent, "degree": 1}
        rows = [metrics.pack_row({**row, **counts}, [0.5], [1.0]) for row in values]
        notes = [] if trust is None else [[[trust - 0.1], [trust + 0.1]]]
        writer.append(number, np.hstack([np.stack(rows), *notes]))
    writer.close(state)
    return path
