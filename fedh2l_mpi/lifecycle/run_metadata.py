"""Run metadata: digests for the start-up handshake, and the headers of metrics files and checkpoints."""

import datetime
import hashlib
import json
import os
from typing import Any

import numpy as np
import torch

from fedh2l_mpi import metrics, models
from fedh2l_mpi.build import RankSetup
from fedh2l_mpi.config import Config, comparison
from fedh2l_mpi.data.federated import Plan
from fedh2l_mpi.lifecycle import provenance, run_config
from fedh2l_mpi.methods import mixing
from fedh2l_mpi.runtime import processes
from fedh2l_mpi.runtime.world import World


def digests(config: Config, setup: RankSetup) -> dict[str, bytes]:
    """Return digests, by name, of everything that must be equal on all ranks."""
    return {
        "data set": setup.plan.source.digest,
        "seed set": setup.federation.seed_set.digest(),
        "partition": setup.plan.digest(),
        "graph": setup.topology.digest(),
        "config": hashlib.sha256(config.to_yaml().encode()).digest(),
        "exchanged array": repr(setup.array).encode(),
        "columns": setup.columns.to_text().encode(),
        "network": setup.network.digest() if setup.network is not None else b"",
        "participation": setup.participation.digest() if setup.participation is not None else b"",
        "file of weights": models.weights_digest(config.weights),
        "code version": provenance.source_digest(),
    }


def facts(config: Config, world: World, setup: RankSetup) -> dict[str, Any]:
    """Return the facts about the run for a checkpoint's manifest."""
    on_gpu = setup.device.type == "cuda"
    versions = provenance.versions(world.mpi_library, on_gpu)
    libraries = ("torch", "numpy", *(provenance.gpu_libraries() if on_gpu else ()))
    content = setup.federation.seed_set.digest() + setup.plan.label_histogram().tobytes() + setup.plan.source.digest
    data = hashlib.sha256(content)
    if config.data.partition.kind == "file":
        # The other kinds follow from settings that a checkpoint compares; older checkpoints have no more than these.
        data.update(setup.plan.digest())
    if setup.network is not None:
        data.update(setup.network.digest())
    if setup.participation is not None:
        data.update(setup.participation.digest())
    return {
        "participants": config.size,
        "settings": comparison.unusual(config),
        "settings_sha256": comparison.digest(config),
        "data_sha256": data.hexdigest(),
        "source_sha256": provenance.source_digest().hex(),
        "versions": versions,
        "libraries": {name: json.loads(versions)[name] for name in libraries},
        "threads": torch.get_num_threads(),
        "devices": sorted({row["device"].partition(":")[0] for row in setup.everyone}),
        "gpus": _gpus(setup),
        "columns": setup.columns.names,
    }


def _gpus(setup: RankSetup) -> list[str]:
    """Return the models of the run's GPUs, each once."""
    return sorted({row["gpu"] for row in setup.everyone if row["gpu"]})


def _test_samples(plan: Plan) -> tuple[int, int]:
    """Count the test samples of the smallest domain: those of the most frequent class, and all.

    The class is the one that is the most frequent on average over the domains.
    """
    labels = (plan.source.test or plan.source.train).labels
    shares_DC = [np.bincount(labels[test.rows], minlength=plan.classes) / len(test) for test in plan.tests]
    smallest = min(len(test) for test in plan.tests)
    return round(smallest * float(np.mean(shares_DC, axis=0).max())), smallest


def header(config: Config, world: World, setup: RankSetup) -> metrics.RunHeader:
    """Return the header of the metrics file, which describes the run before its first round."""
    seed_set = setup.federation.seed_set
    gap = mixing.spectral_gap_of(config)
    most_frequent, samples = _test_samples(setup.plan)
    gpus = _gpus(setup)
    return metrics.RunHeader(
        attributes={
            "config": run_config.stored_text(config),
            "seed": config.seed,
            "rounds_planned": config.rounds,
            "ranks": world.size,
            "threads": torch.get_num_threads(),
            "versions": provenance.versions(world.mpi_library, setup.device.type == "cuda"),
            **({"gpus": ", ".join(gpus)} if gpus else {}),
            "git_revision": provenance.git_revision(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": world.host,
            "pid": os.getpid(),
            "process_start": processes.start_mark(os.getpid()) or "unknown",
            "partition_draws": setup.plan.draws,
            "seed_set_digest": seed_set.digest().hex(),
            "seed_set_bytes": seed_set.nbytes,
            "seed_set_samples": len(seed_set),
            "seed_set_samples_per_round": seed_set.samples_per_round,
            "test_samples_of_a_class": most_frequent,
            "test_samples": samples,
            **({"spectral_gap": f"{gap[0]:.6g}", "spectral_gap_of": gap[1]} if gap is not None else {}),
        },
        participants=setup.everyone,
        label_histogram=setup.plan.label_histogram(),
        domain_histogram=setup.plan.domain_histogram(),
        domain_names=setup.plan.domain_names,
        columns=setup.columns,
        may_stop_early=config.run.early_stop.patience is not None,
    )
