"""Compare two runs: every row of the metrics file, every weight in the last checkpoint."""

from pathlib import Path

import torch

from fedh2l_mpi import metrics
from fedh2l_mpi.run_directory import RunDirectory


def states(out: Path, rounds: int) -> dict[int, dict]:
    """Everything in a checkpoint, by participant."""
    found = {}
    for path in RunDirectory(out).checkpoint(rounds).glob("*.pt"):
        found |= torch.load(path, weights_only=True)["participants"]
    return found


def leaves(value: object, name: str = "") -> dict[str, bytes]:
    """Every tensor and number of a state, by its place in it, as bytes."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in leaves(v, f"{name}.{k}").items()}
    return {name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()}


def assert_same_run(one: Path, other: Path, rounds: int, added: tuple[str, ...] = ()) -> None:
    """Assert that the runs are the same bit for bit, except times and who computed them.

    `added` names arrays that the file of `one` does not have yet, and entries of a state that its checkpoints lack.
    """
    a, b = (metrics.read(RunDirectory(out).metrics) for out in (one, other))
    assert len(a["round"]) == rounds
    for name in a.arrays:
        if name not in (*metrics.TIMINGS, "rank", *added):
            assert a[name].tobytes() == b[name].tobytes(), f"{name} differs"
    ours, theirs = leaves(states(one, rounds)), leaves(states(other, rounds))
    assert len(ours) > 10
    differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    assert {name.rpartition(".")[2] for name in differ} == set(added) - set(a.arrays), differ
