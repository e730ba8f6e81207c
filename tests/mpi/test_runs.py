"""Whole runs of the program under mpirun: the same numbers however many ranks and whichever MPI."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.launching import Mpi, assert_same, kill, launch, mpich, openmpi, start

from fedh2l_mpi import metrics

RING = ["--set", "participants=5", "--set", "rounds=6", "--set", "evaluation.every=3"]
REDRAWN = [
    *RING,
    *("--set", "topology.kind=erdos_renyi", "--set", "topology.redraw_every=2"),
    *("--set", "seed_set.samples_per_round=100", "--set", "seed_set.views_per_sample=3"),
    # The partition is the 31st that is drawn.
    *("--set", "data.partition.kind=dirichlet", "--set", "data.partition.min_per_class=24"),
    *("--set", "models=[resnet8, mlp, cnn]", "--set", "method.local_steps=3", "--set", "method.mutual_steps=3"),
]


def run(arguments: list[str], out: Path, ranks: int | None = None, mpi: Mpi | None = None) -> Path:
    ended = launch([*arguments, "--quiet", "--out", str(out)], ranks, mpi)
    assert (ended.code, ended.out) == (0, ""), ended.err
    return out / "metrics.h5"


CHAIN = [*RING, "--set", "faults.participation={kind: markov, mean_present: 2, mean_absent: 1}"]


@pytest.mark.parametrize(
    "settings", [RING, REDRAWN, CHAIN], ids=["ring", "redrawn random graph", "a chain of absences"]
)
def test_every_number_of_ranks_and_both_mpis_give_the_same_bits(tmp_path, settings):
    alone = run(settings, tmp_path / "alone")
    for ranks in (2, 3, 5):
        assert_same(alone, run(settings, tmp_path / f"ranks-{ranks}", ranks))
    other = openmpi()
    if other is None:
        pytest.skip("MPICH agrees; Open MPI is not here (make .venv-openmpi/installed)")
    assert_same(alone, run(settings, tmp_path / "openmpi", 3, other))


# A user's own method and metric.
NOTING = """
import torch
from fedh2l_mpi.methods.fedh2l import FedH2L

def top2(logits, labels):
    return (logits.topk(2).indices == labels[:, None]).any(dim=1).double().mean()

class Noting(FedH2L):
    notes = {"length": "length of the last gradient [1]"}

    def combined_step(self, participant, g_private, g_seed):
        super().combined_step(participant, g_private, g_seed)
        participant.note("length", (g_private + g_seed).norm())
"""
# In round 1, nobody of the last rank is there; in round 2, nobody at all.
ABSENT = "participant,from,to\n0,0,1\n0,3,\n1,1,1\n1,4,\n2,1,1\n2,3,\n3,0,0\n3,3,3\n4,3,\n"
SHORT = ["--set", "participants=5", "--set", "rounds=4", "--set", "evaluation.every=4"]


KEPT = ("posteriors.h5", "exchange.keep_posteriors=1")


@pytest.mark.parametrize(
    "settings",
    [
        ["method.name=d_psgd", "models=[cnn]", "topology.kind=random_regular", "topology.degree=2"],
        [
            *("method.name=fedprox", "models=[cnn]", "topology.kind=complete", "data.partition.kind=quantity"),
            *("method.local_labels=private_and_seed", "optimizer.schedule=cosine"),
        ],
        [
            *("network={kind: wifi, speed_steps_per_s: [5, 50], spread: 0.3}", "models=[mlp]", "seed_set.views=none"),
            *("exchange.skip_below=0.05", "topology=one_peer_exponential"),
        ],
        ["method.name=fedmd", "method.warmup_rounds=1", "seed_set.views=both", "data.augmentation=affine"],
        ["method.name=pooled", "seed_set.views=affine"],
        ["recipe=classic", "models=[resnet8, mlp, cnn]", "exchange.codec=float16"],
        ["models=[resnet8, mlp, cnn]", "optimizer.schedule=cosine"],
        ["method.combine=gem_neighbours", "method.teachers=confidence", "topology.kind=complete"],
        [
            *("method.teachers=better", "data.partition.kind=dirichlet", "topology.kind=complete"),
            *("method.local_steps=2", "method.mutual_steps=5", "evaluation.calibration=seed_set"),
        ],
        ["seed_set.labelled=false", "optimizer.average=none"],
        ["method.name=d_psgd", "method.publish=start", "models=[cnn]"],
        ["devices.batching=like", "models=[mlp, mlp, lenet5]", "topology.kind=star"],
        ["method.name=fd", "method.local_labels=private_and_seed", "topology.kind=erdos_renyi"],
        ["method.name=fedproto", "optimizer.precision=bfloat16", "exchange.codec=float16"],
        [
            *("method.name=proxyfl", "method.proxy_model=cnn", "topology.kind=star", "optimizer.schedule=cosine"),
            "method.local_labels=private_and_seed",
        ],
        ["method.name=fml", "method.proxy_model=vit", "topology.kind=complete", "data.partition.kind=quantity"],
        ["method.name=ds_fl", "models=[mlp, cnn]", "seed_set.labelled=false"],
        ["method.name=feddf", "method.publish=start", "exchange.codec=float16"],
        ["method.name=kt_pfl", "topology.kind=erdos_renyi", "topology.redraw_every=1"],
        [
            *("method.name=fedavg_finetuned", "models=[cnn]", "topology.kind=complete"),
            *("data.partition.kind=quantity", "evaluation.local_test_share=0.1"),
        ],
        [
            *("method.name=fedavg", "models=[cnn]", "topology.kind=complete", "rounds=6"),
            *("faults.participation=file", "faults.participation.path=times.csv"),
        ],
        ["method.name=fedmd", "method.warmup_rounds=0", "optimizer.precision=bfloat16", "exchange.codec=float16"],
        [
            "data.partition.shift=[{kind: noise, step: 0.1}, {kind: blur, step: 0.4}, {kind: rotation, step: 10}]",
            *("models=[{name: mlp, hidden: [16]}, mlp, cnn]", "data.augmentation=jitter", "seed_set.views=jitter"),
        ],
        [
            *("models=[mlp]", "seed_set.views=none", "exchange.codec=top_k", "exchange.top_k=2"),
            *("exchange.skip_below=0.1", "exchange.keep_posteriors=1"),
        ],
        [
            *("method.name=noting:Noting", "evaluation.metrics=[balanced_accuracy, auroc, noting:top2]"),
            *("evaluation.local_test_share=0.1", "evaluation.predictions=true", "evaluation.calibration=none"),
        ],
    ],
    ids=[
        "d_psgd",
        "fedprox, seed labels, cosine",
        "network with a clock, pairs, skipped rows",
        "fedmd, views, augmentation",
        "pooled",
        "classic, float16",
        "BatchNorm, cosine",
        "gem_neighbours, confidence",
        "better teachers, label skew, calibrated",
        "no seed labels, no averaged weights",
        "d_psgd, start",
        "batching",
        "fd, seed labels",
        "fedproto, bfloat16, float16",
        "proxyfl, seed labels, BatchNorm, cosine",
        "fml, dropout",
        "ds_fl, no seed labels",
        "feddf, start, float16",
        "kt_pfl, redrawn graph",
        "fedavg_finetuned, local test",
        "fedavg, a file of absences",
        "fedmd, bfloat16, float16",
        "shifts, jitter, a model's arguments",
        "top 2, skipped rows",
        "notes, metrics, local test, predictions",
    ],
)
def test_every_kind_of_method_gives_the_same_bits_on_any_number_of_ranks(tmp_path, settings, monkeypatch):
    (tmp_path / "noting.py").write_text(NOTING)
    (tmp_path / "times.csv").write_text(ABSENT)
    settings = [setting.replace("times.csv", str(tmp_path / "times.csv")) for setting in settings]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    arguments = [*SHORT, *(word for setting in settings for word in ("--set", setting))]
    alone = run(arguments, tmp_path / "alone")
    for ranks in (2, 3, 5) if "evaluation.predictions=true" in settings else (3,):
        more = run(arguments, tmp_path / f"ranks-{ranks}", ranks)
        assert_same(alone, more)
        for name, key in (("predictions.h5", "evaluation.predictions=true"), KEPT):
            files = [path.with_name(name) for path in (alone, more)]
            assert files[0].exists() == files[1].exists() == (key in settings)
            assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


RECIPE = [
    *("participants=5", "rounds=60", "evaluation.every=2", "method.local_steps=2", "method.mutual_steps=2"),
    *("models=[mlp, mlp, lenet5]", "devices.batching=like", "optimizer.name=adamw", "optimizer.lr=0.01"),
    *("optimizer.weight_decay=0.1", "optimizer.schedule=linear", "optimizer.warmup_steps=9"),
    *("optimizer.clip_norm=0.5", "optimizer.label_smoothing=0.1", "run.early_stop.patience=1"),
    "optimizer.per_model={lenet5: {name: sgd, momentum: 0.9, schedule: step, label_smoothing: 0.2}}",
]


def test_a_recipe_by_model_ends_early_after_the_same_round_on_any_number_of_ranks(tmp_path):
    arguments = [word for setting in RECIPE for word in ("--set", setting)]
    alone = run(arguments, tmp_path / "alone")
    ended = metrics.read(alone)
    assert 0 < ended.rounds < 60
    assert ended.rounds % 2 == 0
    for ranks in (2, 5):
        several = run(arguments, tmp_path / f"ranks-{ranks}", ranks)
        assert_same(alone, several)
        assert metrics.read(several).attributes["early_stop"] == ended.attributes["early_stop"]


def test_a_partition_file_gives_the_same_bits_on_any_number_of_ranks(tmp_path):
    words = np.resize(["private"] * 5 + ["seed", "validation", "test"], 500)
    lines = [f"{row},{row % 7 % 5},{word}" for row, word in enumerate(words)]
    (tmp_path / "who.csv").write_text("\n".join(["row,participant,part", *lines]))
    settings = ["data.partition=file", f"data.partition.path={tmp_path / 'who.csv'}", "models=[mlp, lenet5]"]
    arguments = [*SHORT, *(word for setting in settings for word in ("--set", setting))]
    alone = run(arguments, tmp_path / "alone")
    for ranks in (2, 5):
        assert_same(alone, run(arguments, tmp_path / f"ranks-{ranks}", ranks))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            "series",
            [
                "models=[cnn1d, gru, {name: mlp, hidden: [16]}]",
                "data.partition.shift=[{kind: time_warp, step: 0.2}, {kind: noise, step: 0.1}]",
            ],
        ),
        ("tokens", ["models=[text_transformer, gru, mlp]", "data.augmentation=word_dropout"]),
    ],
)
def test_series_and_texts_give_the_same_bits_on_any_number_of_ranks(tmp_path, kind, settings):
    draw, labels = np.random.default_rng(0), np.arange(400) % 3
    series = (draw.normal(size=(400, 2, 9)) + labels[:, None, None]).astype(np.float32)
    ids = draw.integers(0, 20, (400, 7))
    np.savez(tmp_path / "own.npz", x=series if kind == "series" else ids, y=labels)
    data = ["data.name=npz", f"data.root={tmp_path / 'own.npz'}", f"data.samples={kind}"]
    arguments = [*SHORT, *(word for setting in [*data, *settings] for word in ("--set", setting))]
    alone = run(arguments, tmp_path / "alone")
    assert_same(alone, run(arguments, tmp_path / "ranks-3", 3))


def test_pooling_private_data_says_that_it_breaks_privacy(tmp_path):
    ended = launch(["--set", "method.name=pooled", "--set", "rounds=1", "--out", str(tmp_path / "run")])
    assert ended.code == 0, ended.err
    assert ended.out.count("WARNING pooled puts the private data of all participants in one place") == 1
    assert metrics.read(tmp_path / "run" / "metrics.h5")["private_samples"].tolist() == [258] * 4


def test_sixteen_ranks_without_any_argument_run_the_default_config(tmp_path):
    # Exactly `mpirun -n 16 python -m fedh2l_mpi`; its 40 rounds take two cores some time.
    ended = launch([], ranks=16, timeout=240, cwd=tmp_path)
    assert ended.code == 0, ended.err
    (path,) = (tmp_path / "runs").glob("default-*/metrics.h5")
    result = metrics.read(path)
    assert (result.rounds, result.closed, len(result["participant"])) == (40, True, 16)
    assert result["rank"].tolist() == list(range(16))
    assert len(list(path.parent.glob("log/rank-*.log"))) == 16
    assert f"metrics: runs/{path.parent.name}/metrics.h5" in ended.out
    assert "all-domain" in ended.out
    assert result["accuracy_all"][-1].mean() > 0.7


def test_ranks_agree_on_the_directory_where_another_run_has_its_name(tmp_path):
    now = time.time()
    for ahead_s in range(60):
        name = time.strftime("default-%Y%m%d-%H%M%S", time.localtime(now + ahead_s))
        (tmp_path / "runs" / name).mkdir(parents=True)
    ended = launch(["--set", "rounds=1", "--set", "models=[mlp]"], ranks=2, cwd=tmp_path)
    assert ended.code == 0, ended.err
    (path,) = (tmp_path / "runs").glob("default-*-2")
    assert sorted(log.name for log in path.glob("log/*")) == ["rank-0000.log", "rank-0001.log"]
    assert len(list((tmp_path / "runs").rglob("*.log"))) == 2
    assert f"metrics: runs/{path.name}/metrics.h5" in ended.out


def test_rotated_mnist_reaches_more_than_a_separate_reference_without_views(tmp_path, mnist):
    arguments = ["configs/rotated_mnist.yaml", "--set", f"data.root={mnist}"]
    ended = launch([*arguments, "--quiet", "--out", str(tmp_path / "run")], ranks=2, timeout=300)
    assert ended.code == 0, ended.err
    result = metrics.read(tmp_path / "run" / "metrics.h5")
    # The reference got 0.876 without views, this simulator 0.939 by its defaults.
    assert result["accuracy_all"][-1].mean() >= 0.93
    assert result["accuracy_own"][-1].mean() >= 0.95


def test_a_run_can_be_watched_by_another_process(tmp_path):
    mpi = mpich()
    if mpi is None:
        pytest.skip("no mpirun on this machine")
    out = tmp_path / "run"
    process = start([mpi.mpirun, "-n", "2", mpi.python, "-m", "fedh2l_mpi", "--quiet", "--out", str(out)])
    try:
        seen = []
        while process.poll() is None:
            if (out / "metrics.h5").exists():
                seen.append(metrics.read(out / "metrics.h5").rounds)
        assert process.returncode == 0, process.stderr.read()
    finally:
        kill(process)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5, "the file did not grow while it was watched"
    assert metrics.read(out / "metrics.h5").rounds == 40


def test_check_needs_no_mpi_and_trains_nothing(tmp_path):
    ended = launch(["--check", "configs/digits_ring.yaml", "--set", "topology.kind=star"], cwd=None)
    assert ended.code == 0, ended.err
    for words in ("star, 3 edges, degree 1 to 3", "288 samples", "lenet5 21,386", "the config is sound"):
        assert words in ended.out, words
    # 3 edges, both ways, each a message of 10 posteriors, a byte each, for two views of 288 samples.
    assert f"{6 * (48 + 4 + 2 * 288 * 10) / 1024:.1f} KiB per round" in ended.out


def test_metrics_hold_what_the_ranks_are(tmp_path):
    result = metrics.read(run(["--set", "rounds=1", "--set", "participants=4"], tmp_path / "run", ranks=2))
    assert result["rank"].tolist() == [0, 0, 1, 1]
    assert set(result["device"].tolist()) == {b"cpu"}
    assert result.attributes["ranks"] == 2
    assert result.attributes["threads"] == 1
    assert np.isfinite(result["seconds_wait"]).all()


SCRIPT = """
import sys
import fedh2l_mpi as fh

rounds = []
small = {"participants": 5, "rounds": 2, "models": ["mlp"]}
first = fh.run(small, out="first", on_round=lambda index, arrays: rounds.append(index))
second = fh.run(small, set=["seed=1"], out="second")
said = (first.state, second.state, rounds, first["accuracy_all"].shape, first.model(4).training)
# In one piece, since the ranks share standard output.
sys.stdout.write(" ".join(map(str, said)) + "\\n")
if "fail" in sys.argv:
    def fail(index, arrays):
        raise ValueError("a mistake of the script's own")
    fh.run(small, out="failed", on_round=fail)
"""


def test_a_script_runs_twice_on_every_rank_and_its_own_error_ends_the_job(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = launch([], ranks=3, cwd=tmp_path, module="script")
    assert ended.code == 0, ended.err
    # Rank 0 alone is called back; every rank finds both runs complete.
    expected = [f"complete complete {rounds} (2, 5) False" for rounds in ("[0, 1]", "[]", "[]")]
    assert sorted(ended.out.splitlines()) == sorted(expected)
    arguments = ["--set", "participants=5", "--set", "rounds=2", "--set", "models=[mlp]"]
    assert_same(run(arguments, tmp_path / "alone"), tmp_path / "first" / "metrics.h5")
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    failed = launch(["fail"], ranks=3, cwd=tmp_path, module="script")
    assert failed.code == 1
    assert "failed with ValueError: a mistake of the script's own" in failed.err
    assert (tmp_path / "failed" / "status").read_text().startswith("state: failed\n")
