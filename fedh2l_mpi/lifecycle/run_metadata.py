"""Which run this is: what ranks compare before it begins, and what its metrics file and its checkpoints say of it."""

import datetime
import hashlib
import json
import os
from typing import Any

import torch

from fedh2l_mpi import metrics, models
from fedh2l_mpi.build import RankSetup
from fedh2l_mpi.config import Config, comparison
from fedh2l_mpi.lifecycle import provenance
from fedh2l_mpi.models.flat_parameters import shared_bytes
from fedh2l_mpi.runtime.world import World


def digests(config: Config, hosted: RankSetup) -> dict[str, bytes]:
    """What must be the same on every rank, by name."""
    return {
        "seed set": hosted.federation.seed_set.digest(),
        "graph": hosted.topology.digest(),
        "config": hashlib.sha256(config.to_yaml().encode()).digest(),
        "exchanged array": repr(hosted.array).encode(),
        "file of weights": models.weights_digest(config.weights),
        "code version": provenance.source_digest(),
    }


def description(world: World, hosted: RankSetup) -> list[dict[str, Any]]:
    """Who learns where: the metrics file's participant fields, and the pid, of all participants. **Collective.**"""
    private_samples = hosted.private_samples
    mine = [
        {
            "architecture": participant.architecture,
            "parameters": participant.parameter_count,
            "parameter_bytes": shared_bytes(participant.model),
            "private_samples": private_samples[participant.index],
            "own_domain": hosted.plan.own_domain(participant.index),
            "rank": world.rank,
            "host": world.host,
            "device": str(hosted.device),
            "pid": os.getpid(),
        }
        for participant in hosted.participants
    ]
    return [row for rows in world.collect(mine) for row in rows]


def facts(config: Config, world: World, hosted: RankSetup, description: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint says of the run that it is of."""
    versions = provenance.versions(world.mpi_library)
    data = hashlib.sha256(hosted.federation.seed_set.digest() + hosted.plan.label_histogram().tobytes())
    return {
        "participants": config.size,
        "settings": comparison.unusual(config),
        "settings_sha256": comparison.digest(config),
        "data_sha256": data.hexdigest(),
        "source_sha256": provenance.source_digest().hex(),
        "versions": versions,
        "libraries": {name: json.loads(versions)[name] for name in ("torch", "numpy")},
        "threads": torch.get_num_threads(),
        "devices": sorted({row["device"].partition(":")[0] for row in description}),
    }


def header(config: Config, world: World, hosted: RankSetup, description: list[dict[str, Any]]) -> metrics.RunHeader:
    """What the metrics file says of the run before its first round."""
    seed_set = hosted.federation.seed_set
    return metrics.RunHeader(
        attributes={
            "config": config.to_yaml(),
            "seed": config.seed,
            "rounds_planned": config.rounds,
            "ranks": world.size,
            "threads": torch.get_num_threads(),
            "versions": provenance.versions(world.mpi_library),
            "git_revision": provenance.git_revision(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": world.host,
            "pid": os.getpid(),
            "seed_set_digest": seed_set.digest().hex(),
            "seed_set_bytes": seed_set.nbytes,
            "seed_set_samples": len(seed_set),
            "seed_set_samples_per_round": seed_set.samples_per_round,
        },
        participants=description,
        label_histogram=hosted.plan.label_histogram(),
        domain_names=hosted.plan.domain_names,
    )
