"""Sizes of the files of a run, against those of the files."""

import numpy as np
import pytest
import torch
from helpers.configs import settled

from fedh2l_mpi import methods, metrics
from fedh2l_mpi.config import TopologyConfig
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.models import build
from fedh2l_mpi.planning import disk, requirements
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import draw


@pytest.mark.parametrize(
    ("participants", "domains", "rounds"), [(16, 6, 300), (300, 4, 70), (2000, 10, 3)], ids=["long", "wide", "wider"]
)
def test_a_metrics_file_is_as_large_as_told(tmp_path, participants, domains, rounds):
    row = {
        "architecture": "lenet5", "parameters": 1, "parameter_bytes": 4, "private_samples": 1, "own_domain": 0,
        "rank": 0, "host": "node-0001.cluster", "device": "cuda:0",
    }  # fmt: skip
    names = [f"rotated {15 * domain} deg" for domain in range(domains)]
    histogram = np.zeros((participants, 10), dtype=np.int64)
    header = metrics.RunHeader({"config": "x" * 2500}, [row] * participants, histogram, names)
    writer = metrics.MetricsWriter(tmp_path / "metrics.h5", header)
    edges = draw(TopologyConfig(kind="ring"), participants, 0, 0).edges
    writer.add_graph(0, edges)
    table = np.zeros((participants, metrics.row_width(domains)))
    for round_index in range(rounds):
        writer.append(round_index, table)
    writer.close("complete")
    told = disk.metrics_file_bytes(participants, domains, 10, rounds, len(edges))
    assert told == pytest.approx((tmp_path / "metrics.h5").stat().st_size, rel=0.01)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("kept", [0, 500_000])
def test_a_checkpoint_is_as_large_as_told(tmp_path, ranks, kept):
    average = ["optimizer.average=ema"] if kept else []
    config = settled("participants=6", "models=[lenet5, resnet8, mlp]", *average)
    source, method = digits(), methods.build(config)
    needs = requirements.compute(config, source, method, requirements.count_samples(federated.plan(config, source)))
    hosting = Hosting(6, ranks)
    told = disk.checkpoint_bytes(config, hosting, needs.models, kept)
    for rank in range(ranks):
        content = {}
        for index in hosting.participants_of(rank):
            one = requirements.stand_in_participant(
                config, source, build(config.architecture(index), SampleForm.image(1, 8), 10, 0)
            )
            content[index] = {
                **one.state(),
                "steps": 3,
                "position": 30,
                "kept": {"published": torch.zeros(kept // 4)},
            }
        path = tmp_path / f"rank-{rank:04d}.pt"
        torch.save({"round": 9, "participants": content}, path)
        assert told[rank] == pytest.approx(path.stat().st_size, rel=0.05)
