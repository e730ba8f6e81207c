"""Metrics files of four rounds, with the accuracies that a test gives."""

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import summary
from fedh2l_mpi.config import loading

NAN = np.nan
# Accuracies (P, D) of three participants on two domains.
THREE = [[0.9, 0.5], [0.6, 0.8], [0.7, 0.5]]


def write(
    folder,
    accuracy,
    loss_private=(0.5, 0.4, 0.3, 0.2),
    state="complete",
    planned=4,
    seed=0,
    architecture="lenet5",
    overrides=(),
):
    """A run of four rounds whose participants have `accuracy` (P, D) in the last, and half of it in the second."""
    accuracy_PD = np.array(accuracy)
    participants, domains = accuracy_PD.shape
    config = loading.load(None, [f"participants={participants}", "rounds=4", "evaluation.every=2", *overrides])
    config = config.resolved(1, launched=False)
    header = metrics.RunHeader(
        attributes={
            "config": config.to_yaml(),
            "seed": seed,
            "rounds_planned": planned,
            "ranks": 1,
            "threads": 1,
            "versions": '{"torch": "2.13.0"}',
            "git_revision": "0123456789abcdef-dirty",
            "started": "2026-11-24T00:00:00+00:00",
            "seed_set_digest": "ab" * 32,
        },
        participants=[
            {
                "architecture": architecture,
                "parameters": 1000,
                "parameter_bytes": 4000,
                "private_samples": 10,
                "own_domain": i % domains,
                "rank": i // 2,
                "host": "here",
                "device": "cpu",
            }
            for i in range(participants)
        ],
        label_histogram=np.full((participants, 10), 1),
        domain_names=[f"domain {i}" for i in range(domains)],
    )
    folder.mkdir(parents=True)
    writer = metrics.MetricsWriter(folder / "metrics.h5", header)
    writer.add_graph(0, [(i, (i + 1) % participants) for i in range(participants)] if participants > 2 else [])
    for round_index in range(4):
        rows = []
        for i in range(participants):
            values = {
                "loss_private": np.broadcast_to(loss_private[round_index], participants)[i],
                "conflict_rate": 0.25 * (i % 2),
                "bytes_sent": 100,
                "bytes_received": 100,
                "degree": 2,
                **{f"seconds_{phase}": 1.0 for phase in summary.PHASES},
            }
            accuracy_D = np.full(domains, NAN)
            if round_index % 2:
                accuracy_D = accuracy_PD[i] * (1.0 if round_index == 3 else 0.5)
                values |= {
                    "accuracy_own": accuracy_D[i % domains],
                    "accuracy_all": accuracy_D.mean(),
                    "accuracy_worst": accuracy_D.min(),
                    "accuracy_validation": 0.9 if round_index == 1 else 0.8,
                    "calibration_error": 0.1,
                }
            rows.append(metrics.pack_row(values, accuracy_D, -np.log(accuracy_D)))
        writer.append(round_index, np.stack(rows))
    writer.close(state)
    return folder
