"""Runs as files, of made-up numbers that agree with each other as those of a real run do."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.config import loading

FIELD = {field.name: i for i, field in enumerate(metrics.ROW_FIELDS)}


def header(participants=3, domains=2, rounds=12, seed=0, overrides=(), config=None, **attributes):
    """What a run knows before its first round."""
    text = config or loading.load(
        None,
        [
            f"participants={participants}",
            f"seed={seed}",
            f"rounds={rounds}",
            "evaluation.every=4",
            f"data.partition.domains={domains}",
            *overrides,
        ],
    ).resolved(1, launched=False).to_yaml()  # fmt: skip
    given = {
        "config": text,
        "seed": seed,
        "rounds_planned": rounds,
        "ranks": 1,
        "threads": 1,
        "versions": '{"é": "1"}',
        "git_revision": "abc",
        "started": "2026-11-24T00:00:00+00:00",
        "host": "elsewhere",
        "pid": 1,
        "seed_set_digest": hashlib.sha256(b"seed set").hexdigest(),
        "seed_set_bytes": 100,
        **attributes,
    }
    described = [
        {
            "architecture": ["lenet5", "mlp", "cnn"][i % 3],
            "parameters": 1000 + i,
            "parameter_bytes": 4000,
            "private_samples": 30,
            "own_domain": i % domains if domains > 1 else -1,
            "rank": 0,
            "host": "hôte",
            "device": "cpu",
        }
        for i in range(participants)
    ]
    names = [f'turned <{d}>, "é"' for d in range(domains)]
    held_PD = np.zeros((participants, domains), dtype=np.int64)
    held_PD[np.arange(participants), np.arange(participants) % domains] = 30
    return metrics.RunHeader(given, described, np.full((participants, 10), 3), names, domain_histogram=held_PD)


def table(round_index, participants=3, domains=2, rounds=12, seed=0):
    """Every participant's row of a round; evaluated are every fourth and the last."""
    rng = np.random.default_rng((seed, round_index))
    rows = np.full((participants, metrics.row_width(domains)), np.nan)
    for name in ("loss_private", "loss_seed", *metrics.TIMINGS):
        rows[:, FIELD[name]] = rng.random(participants)
    for name in ("bytes_sent", "bytes_received"):
        rows[:, FIELD[name]] = 200 if participants > 2 else 0
    rows[:, FIELD["degree"]] = 2 if participants > 2 else 0
    if (round_index + 1) % 4 and round_index != rounds - 1:
        rows[:, FIELD["seconds_evaluate"]] = np.nan
        return rows
    accuracy_PD = rng.random((participants, domains))
    share_PK = rng.dirichlet(np.ones(10), participants)
    share_PK[:, 0] = 0.0
    share_PK /= share_PK.sum(axis=1, keepdims=True)
    confidence_PK, right_PK = rng.random((2, participants, 10))
    rows[:, FIELD["temperature"]] = 1.5
    rows[:, FIELD["calibration_error"]] = (share_PK * np.abs(confidence_PK - right_PK)).sum(axis=1)
    confidence_PK[:, 0] = right_PK[:, 0] = np.nan
    own = np.arange(participants)
    rows[:, FIELD["accuracy_own"]] = accuracy_PD[own, own % domains]
    rows[:, FIELD["accuracy_all"]] = accuracy_PD.mean(axis=1)
    rows[:, FIELD["accuracy_worst"]] = accuracy_PD.min(axis=1)
    rows[:, FIELD["accuracy_validation"]] = rng.random(participants)
    of_domains = [accuracy_PD, -np.log(accuracy_PD)]
    rows[:, len(FIELD) :] = np.concatenate([*of_domains, share_PK, confidence_PK, right_PK], axis=1)
    return rows


def ring(participants):
    """Its edges."""
    return sorted(tuple(sorted((i, (i + 1) % participants))) for i in range(participants)) if participants > 2 else []


def write(folder: Path, participants=3, domains=2, rounds=12, finished=None, seed=0, state="complete", **more) -> Path:
    """A run directory; `state` None leaves the file as a killed writer does."""
    folder.mkdir(parents=True)
    path = folder / "metrics.h5"
    head = header(participants, domains, rounds, seed, **more)
    (folder / "config.yaml").write_text(str(head.attributes["config"]))
    writer = metrics.MetricsWriter(path, head)
    writer.add_graph(0, ring(participants))
    for round_index in range(rounds if finished is None else finished):
        writer.append(round_index, table(round_index, participants, domains, rounds, seed))
    if state is None:
        shutil.copy(path, folder / "copy.h5")
    writer.close(state or "failed")
    if state is None:
        (folder / "copy.h5").replace(path)
    return folder
