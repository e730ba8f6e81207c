"""Runs that are stopped and resumed in one process: the same numbers, and when a longer run is possible."""

import shutil

import numpy as np
import pytest
from helpers.runs_in_process import ALONE, run
from helpers.same_runs import assert_same_run

from fedh2l_mpi import metrics
from fedh2l_mpi.config import loading
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import start
from fedh2l_mpi.lifecycle.signals import StopRequest
from fedh2l_mpi.run_directory import RunDirectory

# Every kind of thing that a participant has to remember.
CASES = {
    "redrawn graph, Adam, three architectures": [
        "topology.kind=erdos_renyi",
        "topology.redraw_every=2",
        "seed_set.samples_per_round=64",
        "seed_set.views_per_sample=2",
    ],
    "momentum, BatchNorm": ["models=[resnet8]", "optimizer.name=sgd", "optimizer.momentum=0.9", "participants=2"],
    "dropout, augmentation": ["models=[mobilenet, vit]", "participants=2", "data.augmentation=affine"],
    "kept logits": ["method.name=fedmd", "method.warmup_rounds=1"],
    "gossip of parameters from before the local steps": ["method.name=d_psgd", "models=[cnn]", "method.publish=start"],
    "federated averaging with a proximal term": ["method.name=fedprox", "models=[mlp]", "topology.kind=complete"],
    "averaged weights, BatchNorm, a falling rate": [
        *("models=[resnet8]", "participants=2", "optimizer.average=ema", "optimizer.schedule=cosine"),
    ],
    "AdamW, warm-up, clipping, smoothed labels, SGD of one architecture": [
        *("models=[mlp, lenet5]", "optimizer.name=adamw", "optimizer.weight_decay=0.1", "optimizer.clip_norm=0.5"),
        *("optimizer.schedule=linear", "optimizer.warmup_steps=8", "optimizer.label_smoothing=0.1"),
        "optimizer.per_model={lenet5: {name: sgd, momentum: 0.9, schedule: step}}",
    ],
    "averaged weights of parameters that are exchanged": [
        *("method.name=fedavg", "models=[resnet8]", "participants=2", "topology.kind=complete"),
        *("optimizer.average=ema", "optimizer.average_decay=0.9"),
    ],
    "averaged weights, members of a batch": ["models=[mlp]", "devices.batching=like", "optimizer.average=ema"],
    "teachers in agreement, seed labels in local steps, corrected": [
        *("method.teachers=agreement", "method.local_labels=private_and_seed", "method.prior_correction=balanced"),
        *("models=[mlp, cnn]", "data.partition.kind=shards"),
    ],
    "teachers of classes from the round before": ["method.name=fd", "models=[mlp, cnn]", "exchange.skip_below=0.05"],
    "an average to begin from": [
        *("method.name=fedavg_finetuned", "models=[cnn]", "topology.kind=complete", "participants=2"),
    ],
    "weights of teachers, redrawn graph": [
        *("method.name=kt_pfl", "models=[mlp, cnn]", "topology.kind=erdos_renyi", "topology.redraw_every=2"),
    ],
    "pairs that change with every round": [
        *("models=[mlp]", "topology=one_peer_exponential", "participants=6", "method.name=d_psgd"),
    ],
    "a chain of absences": [
        *("models=[mlp]", "method.name=kt_pfl", "topology=complete"),
        "faults.participation={kind: markov, mean_present: 2, mean_absent: 2}",
    ],
    "absences, skipped rows": [
        *("models=[mlp]", "seed_set.views=none", "exchange.skip_below=0.1", "method.teachers=agreement"),
        "faults.participation={kind: bernoulli, probability: 0.7}",
    ],
    "prototypes of embeddings": ["method.name=fedproto", "models=[mlp, cnn]", "method.prototype_size=32"],
    "a network with a clock": [
        *("models=[mlp]", "topology=star", "network={kind: lte, speed_steps_per_s: [5, 50], spread: 0.3}"),
    ],
    "a second model, with momentum and BatchNorm": [
        *("method.name=proxyfl", "method.proxy_model=cnn", "models=[mlp, lenet5]", "optimizer.name=sgd"),
        "optimizer.momentum=0.9",
    ],
    "pooled data": ["method.name=pooled", "models=[mlp]"],
    "a codec": ["models=[mlp]", "exchange.codec=top_k", "exchange.top_k=2"],
    "skipped rows, a codec, redrawn graph": [
        *("models=[mlp]", "seed_set.views=none", "exchange.skip_below=0.1", "exchange.codec=float16"),
        *("topology.kind=erdos_renyi", "topology.redraw_every=2"),
    ],
    "skipped rows of logits, none before the first exchange": [
        *("method.name=fedmd", "method.warmup_rounds=2", "models=[mlp]"),
        *("seed_set.views=none", "exchange.skip_below=2.0"),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_is_unbroken_bit_for_bit(tmp_path, case):
    settings = ["rounds=4", "evaluation.every=2", "method.local_steps=3", "method.mutual_steps=2", *CASES[case]]
    assert run(tmp_path / "unbroken", *settings) == StopRequest.NOTHING
    assert run(tmp_path / "broken", *settings, stop_after=1) == StopRequest.FILE_STOP
    assert run(tmp_path / "broken", mode="require", stop_after=3) == StopRequest.FILE_STOP
    assert run(tmp_path / "broken", *settings, mode="auto") == StopRequest.NOTHING
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken", rounds=4)


def test_a_codec_moves_numbers_and_must_stay_and_the_deadline_need_not(tmp_path):
    settings = ["models=[mlp]", "evaluation.every=2", "exchange.codec=top_k", "exchange.top_k=2"]
    run(tmp_path / "run", *settings, "rounds=2")
    for change in (["exchange.top_k=3"], ["exchange.codec=uint8", "exchange.top_k=null"]):
        with pytest.raises(UserError) as error:
            run(tmp_path / "run", *change, "rounds=3", mode="auto")
        assert all(override.partition("=")[0] in str(error.value) for override in change)
    assert run(tmp_path / "run", "exchange.deadline_s=77", "rounds=3", mode="auto") == StopRequest.NOTHING
    assert loading.load(tmp_path / "run" / "config.yaml").exchange.deadline_s == 77


def test_a_partition_file_with_another_content_is_refused_even_if_it_has_the_same_labels(tmp_path):
    zeros, path = np.flatnonzero(digits().train.labels == 0)[:24], tmp_path / "who.csv"
    parts = np.repeat(["private", "seed", "validation", "test"], 6)

    def write(rows: np.ndarray) -> None:
        lines = [f"{row},{place % 2},{part}" for place, (row, part) in enumerate(zip(rows, parts, strict=True))]
        path.write_text("\n".join(["row,participant,part", *lines]))

    write(zeros)
    settings = ["models=[mlp]", "participants=2", "data.partition=file", f"data.partition.path={path}"]
    assert run(tmp_path / "run", *settings, "rounds=3", stop_after=1) == StopRequest.FILE_STOP
    write(np.concatenate([zeros[1::-1], zeros[2:]]))
    with pytest.raises(UserError, match="--resume: .* or the partition file differs from the checkpoint"):
        run(tmp_path / "run", mode="require")
    write(zeros)
    assert run(tmp_path / "run", mode="require") == StopRequest.NOTHING
    run(tmp_path / "unbroken", *settings, "rounds=3")
    assert_same_run(tmp_path / "unbroken", tmp_path / "run", rounds=3)


def test_a_complete_run_is_done_and_more_rounds_make_it_the_longer_run(tmp_path):
    settings = ["models=[mlp]", "evaluation.every=2"]
    run(tmp_path / "long", *settings, "rounds=6")
    run(tmp_path / "grown", *settings, "rounds=2")
    config = loading.load(tmp_path / "grown" / "config.yaml")
    found = start.reserve(ALONE, RunDirectory(tmp_path / "grown"), config, "auto")
    assert found.kind == "done"
    found.release()
    run(tmp_path / "grown", "rounds=6", mode="auto")
    assert_same_run(tmp_path / "long", tmp_path / "grown", rounds=6)
    assert loading.load(tmp_path / "grown" / "config.yaml").rounds == 6
    with pytest.raises(UserError, match=r"rounds: got 5, but the run in .*grown has already finished 6"):
        run(tmp_path / "grown", "rounds=5", mode="auto")


def test_a_stopped_run_is_not_complete_with_a_last_round_that_was_not_evaluated(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=4", "evaluation.every=4", stop_after=1)
    before = out.config.read_bytes(), out.metrics.read_bytes()
    with pytest.raises(
        UserError, match="rounds: got 1, and .* has finished them, .* was not evaluated. Fix: use 2 or more"
    ):
        run(out.path, "rounds=1", mode="auto")
    assert (out.config.read_bytes(), out.metrics.read_bytes()) == before
    assert run(out.path, "rounds=2", mode="auto") == StopRequest.NOTHING
    assert not np.isnan(metrics.read(out.metrics)["accuracy"][1]).any()


def test_a_complete_run_without_checkpoints_is_not_made_longer_from_round_0(tmp_path):
    out = RunDirectory(tmp_path / "run")
    run(out.path, "models=[mlp]", "rounds=1")
    shutil.rmtree(out.checkpoints)
    before = out.metrics.read_bytes()
    for mode in ("auto", "require"):
        with pytest.raises(UserError, match="rounds: got 2, but the run .* is complete after 1 and has no checkpoint"):
            run(out.path, "rounds=2", mode=mode)
    assert out.metrics.read_bytes() == before
    assert not out.lock.exists()
