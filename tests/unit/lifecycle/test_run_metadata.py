"""What a run on GPUs records about them, from a run on a CPU that is told that it has some."""

import json
from dataclasses import replace

import pytest
import torch

from fedh2l_mpi import metrics
from fedh2l_mpi.build import build_rank
from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle import provenance, resume, run_metadata
from fedh2l_mpi.runtime.world import World

SETTINGS = ["participants=2", "models=[mlp]", "rounds=1"]


@pytest.fixture(scope="module")
def built():
    config = loading.load(None, SETTINGS).resolved(1, launched=False)
    return config, World(None), build_rank(config, World(None))


def on_gpus(built, *models: str):
    config, world, setup = built
    rows = [row | {"gpu": model, "device": "cuda:0"} for row, model in zip(setup.everyone, models, strict=True)]
    return config, world, replace(setup, device=torch.device("cuda:0"), everyone=rows)


@pytest.fixture
def gpu_libraries(monkeypatch):
    found = {"cuda": "12.8", "cudnn": "91002", "driver": "570.86.15"}
    monkeypatch.setattr(provenance, "gpu_libraries", lambda: dict(found))
    return found


def test_a_metrics_file_names_the_models_of_gpus_and_their_libraries(tmp_path, built, gpu_libraries):
    header = run_metadata.header(*on_gpus(built, "NVIDIA H100", "NVIDIA A100"))
    metrics.MetricsWriter(tmp_path / "metrics.h5", header).close("complete")
    attributes = metrics.look(tmp_path / "metrics.h5").attributes
    assert attributes["gpus"] == "NVIDIA A100, NVIDIA H100"
    assert gpu_libraries.items() <= json.loads(attributes["versions"]).items()
    on_cpu = run_metadata.header(*built).attributes
    assert "gpus" not in on_cpu
    assert not set(gpu_libraries) & set(json.loads(on_cpu["versions"]))


def test_a_resume_on_another_gpu_or_driver_is_told_in_one_line(built, gpu_libraries):
    a100 = run_metadata.facts(*on_gpus(built, "NVIDIA A100", "NVIDIA A100"))
    assert resume.changes_of_last_bits(a100, a100) == []
    gpu_libraries["driver"] = "580.1"
    h100 = run_metadata.facts(*on_gpus(built, "NVIDIA H100", "NVIDIA H100"))
    was = "has changed since the checkpoint was made: there"
    assert resume.changes_of_last_bits(a100, h100) == [
        f"the model of a GPU {was} ['NVIDIA A100'], here ['NVIDIA H100']",
        f"a library {was} {{'driver': '570.86.15'}}, here {{'driver': '580.1'}}",
    ]
    # Everything else about GPUs follows from this.
    on_cpu = run_metadata.facts(*built)
    for one, other in ((a100, on_cpu), (on_cpu, a100)):
        (change,) = resume.changes_of_last_bits(one, other)
        assert change.startswith("the kind of device has changed")


def test_a_checkpoint_of_an_earlier_version_says_nothing_about_gpus(built, gpu_libraries):
    here = run_metadata.facts(*on_gpus(built, "NVIDIA A100", "NVIDIA A100"))
    earlier = {name: value for name, value in here.items() if name != "gpus"}
    earlier["libraries"] = {name: here["libraries"][name] for name in ("torch", "numpy")}
    assert resume.changes_of_last_bits(earlier, here) == []
