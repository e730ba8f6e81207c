"""What the benchmarks write and read; what they measure is no test."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.four_rounds import THREE, write

from benchmarks import checkpoints, injected_errors, measuring, overlap, performance, scaling
from benchmarks.gpu import bare, check, ratios
from fedh2l_mpi.methods.gradients import InnerProducts, gem
from fedh2l_mpi.planning.overhead import Loads

GIVEN = Path("elsewhere")
ROOT = Path(__file__).parents[2]


def test_the_gpu_check_runs_on_a_cpu(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu.check", "--device", "cpu", "--tiny", "--only", "facts,levers,syncs"]
    environment = {**os.environ, "OUT": str(tmp_path)}
    ended = subprocess.run([*words, "--patience", "10"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    findings = json.loads((tmp_path / "check.json").read_text())["findings"]
    assert {row["part"] for row in findings} == {"facts", "levers", "syncs"}
    found = {row["finding"] for row in findings}
    assert found > {"16 mlp, float32, one by one", "16 mlp, float32, together", "prototype, mlp x 4, vmap"}
    assert "FAIL" not in {row["verdict"] for row in findings}


def test_every_ratio_to_the_bare_loop_is_measured_on_a_cpu_too(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "ratios.json")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "no GPU\n")
    assert not list(tmp_path.iterdir())
    words += ["--device", "cpu", "--tiny"]
    ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads((tmp_path / "ratios.json").read_text())["rows"]
    assert [(row["case"], row["way"]) for row in rows] == [
        (case.name, way) for case in ratios.cases(tiny=True) for way in (ratios.BARE, *case.ways)
    ]
    assert all(row["steps_per_s"] > 0 and row["over_bare"] > 0 for row in rows)
    assert [row["over_alone"] for row in rows if row["way"] == ratios.ALONE] == [1.0] * len(ratios.cases(tiny=True))
    # What a CPU cannot say is left out, and targets of a GPU are not judged.
    assert {row["busy"] for row in rows} == {None}
    assert "reached" not in ended.stdout
    assert "MISSED" not in ended.stdout


def test_a_ratio_is_judged_by_its_targets():
    def row(way: str, steps_per_s: float, *targets: ratios.Target, busy: float = math.nan) -> ratios.Row:
        return ratios.Row("16 mlp", way, {}, steps_per_s, busy, targets)

    fast = ratios.Target(10, ratios.ALONE)
    rows = [
        row(ratios.BARE, 200.0),
        row(ratios.ALONE, 100.0, ratios.Target(0.5, ratios.BARE)),
        row("graphs", 990.0, fast, ratios.Target(0.85, "busy"), busy=0.9),
        row("together", 1000.0, fast, ratios.Target(0.85, "busy")),
        ratios.Row("16 mlp", "together, graphs", {}, targets=(fast,), failure="UserError: no"),
        ratios.Row("another case", "graphs", {}, 5.0, targets=(fast,)),
    ]
    judged = [[], [True], [False, True], [True, None], [None], [None]]
    assert [ratios.verdicts(one, rows) for one in rows] == judged
    lines = ratios.lines(rows, judges=True)
    assert lines[3].split()[:6] == ["16", "mlp", "graphs", "990.0", "4.95", "9.90"]
    assert lines[3].endswith(">= 10 x one by one: MISSED; busy >= 85%: reached")
    assert lines[5].endswith("FAILED: UserError: no")


def test_a_gpu_is_busy_while_any_of_its_kernels_runs():
    assert ratios.covered([(5, 6), (0, 2), (1, 3), (1, 2), (3, 3.5)]) == 4.5
    assert ratios.covered([]) == 0


def test_the_bare_loop_of_a_gpu_takes_the_steps_of_the_methods():
    work = bare.Workload("mlp", 1, 8, participants=3, private=32, seed_samples=32, steps=0, method="fedavg")
    loop = bare.BareLoop(work, "cpu")
    weights = [torch.nn.utils.parameters_to_vector(learner.model.parameters()) for learner in loop.learners]
    loop.round()
    for learner in loop.learners:
        after = torch.nn.utils.parameters_to_vector(learner.model.parameters())
        torch.testing.assert_close(after, torch.stack(weights).mean(dim=0))
    first = loop.learners[0]
    parameters = list(first.model.parameters())
    for _ in range(100):
        # A small private gradient, which other labels oppose.
        first.private_step()
    # A minibatch is the whole of 32 samples, so both gradients are those of all samples, in any order.
    for theirs_NBC in (torch.full((1, 32, 10), 0.1), torch.empty(0)):
        seed_logits_BC = first.model(loop.seed_images)
        seed_loss = torch.nn.functional.cross_entropy(seed_logits_BC, 9 - loop.seed_labels)
        if len(theirs_NBC):
            # Source: KL(uniform || p) = -log C - mean over classes of log p.
            seed_loss = seed_loss - math.log(10) - seed_logits_BC.log_softmax(1).mean()
        private_loss = torch.nn.functional.cross_entropy(first.model(first.images), first.labels)
        both = [
            torch.nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters, retain_graph=True))
            for loss in (private_loss, seed_loss)
        ]
        a, b = gem(InnerProducts.of(*both))
        assert float(a) > 1
        first.mutual_step(loop.seed_images, 9 - loop.seed_labels, theirs_NBC)
        step = torch.nn.utils.parameters_to_vector([parameter.grad for parameter in parameters])
        torch.testing.assert_close(step, a * both[0] + b * both[1], rtol=1e-3, atol=1e-6)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the library that lets calls fail")
def test_a_failed_call_loses_nothing_in_silence_and_the_resumed_run_is_the_same():
    words = [sys.executable, "-m", "benchmarks.injected_errors", "--quick"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = ended.stdout.splitlines()[1:-1]
    assert [tuple(row.split()[:2]) for row in rows] == sorted(injected_errors.QUICK_CLASSES)


def test_calls_on_files_that_differ_in_numbers_alone_are_one_class():
    lines = [
        "write /runs/a/checkpoints/round-00000002.my-host-77.tmp/rank-0000.pt",
        "write /runs/a/checkpoints/round-00000004.my-host-77.tmp/rank-0000.pt",
        "rename /runs/a/checkpoints/round-00000004",
        "open /runs/a/status.my.host.1234.new",
        "fsync /runs/a",
    ]
    assert injected_errors.classes(lines, Path("/runs/a")) == {
        ("write", "checkpoints/round-*/rank-*.pt"): 2,
        ("rename", "checkpoints/round-*"): 1,
        ("open", "status.*.new"): 1,
        ("fsync", "."): 1,
    }


@pytest.mark.parametrize("name", check.PARTS)
def test_every_part_of_the_gpu_check_is_a_function_of_its_module(name):
    part = getattr(importlib.import_module(f"benchmarks.gpu.{check.PARTS[name].module}"), name)
    assert callable(part)
    assert part.__doc__


def test_a_part_of_a_benchmark_replaces_nothing_that_was_recorded_of_the_whole():
    assert performance.out_of(None, quick=False) == performance.PERFORMANCE
    assert performance.out_of(None, quick=True) is None
    assert performance.out_of(GIVEN, quick=True) == GIVEN
    assert scaling.out_of(None, largest=1000) == scaling.RESULTS
    assert scaling.out_of(None, largest=16) is None
    assert scaling.out_of(GIVEN, largest=16) == GIVEN


def test_the_rows_of_scaling_are_written_where_they_should_be_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "recorded.csv")
    parts = dict.fromkeys(scaling.PARTS, 0.001)
    loads = Loads(**{field.name: np.ones(1) for field in fields(Loads)})
    cases = [scaling.Case("posteriors", "ring", participants, 1) for participants in (4, 16)]
    both = [scaling.Measured(case, loads, [parts], [2**20], [2**20]) for case in cases]
    phases = {"publish": 0.001, "local": 0.001, "mutual": 0.001, "seed_round": 0.001}
    for out in (None, tmp_path / "given.csv"):
        scaling.report(both, [phases] * 2, [(1e3, 0.001), (1e4, 0.002)], out)
    assert [path.name for path in tmp_path.iterdir()] == ["given.csv"]
    assert f"wrote {tmp_path / 'given.csv'}" in capsys.readouterr().out


def test_a_rank_without_a_message_in_a_round_is_not_waited_for(tmp_path):
    def event(rank: int, kind: str, begin: float, round_index: int, **more: object) -> dict:
        return {"pid": rank, "ph": kind, "ts": begin, "args": {"round": round_index}, **more}

    # Round 0: ranks 0, 1 and 2; round 1: ranks 0 and 1.
    posted = {0: [(0, 0), (1, 2), (2, 6)], 1: [(0, 20), (1, 24)]}
    events = [
        event(rank, kind, at, round_index)
        for round_index, posts in posted.items()
        for rank, begin in posts
        for kind, at in (("b", begin), ("e", 10 + 20 * round_index))
    ]
    events.append(event(0, "X", 0, 0, cat="wait", dur=10))
    events.append(event(0, "X", 20, 1, cat="wait", dur=10))
    trace = tmp_path / "out.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    told = overlap.overlaps(overlap.lanes(trace))
    assert (told[0].messages, told[0].waiting_for_senders, told[0].waiting_for_transfer) == pytest.approx(
        (20e-6, 10e-6, 10e-6)
    )
    assert told[2].messages == pytest.approx(4e-6)


def test_seconds_of_ranks_are_those_of_their_participants(tmp_path):
    # Participants 0 and 1 are rank 0's, and 2 is rank 1's; in each of four rounds, each phase of each takes a second.
    run = write(tmp_path / "run", THREE)
    seconds = measuring.seconds_by_rank(run)
    assert {rank: phases["seconds_wait"] for rank, phases in seconds.items()} == {0: 8.0, 1: 4.0}
    phases = len(seconds[0])
    assert measuring.waited_shares(run) == {0: pytest.approx(1 / phases), 1: pytest.approx(1 / phases)}
    assert checkpoints.round_seconds(run, 4) == pytest.approx(2 * phases)


BURNS = "import time\nwhile time.process_time() < 0.4: pass"


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are counted on Linux only")
def test_the_cost_of_a_command_has_that_of_its_orphans():
    # The shell does not wait for its child, like a rank that starts the process that imports for a node.
    cost = measuring.spent(["sh", "-c", f'"{sys.executable}" -S -c "{BURNS}" & exit 0'])
    assert 0.4 <= cost.cpu_s < 4
    assert cost.wall_s >= 0.4
    with pytest.raises(SystemExit, match="sh -c echo why; exit 3 failed:\nwhy"):
        measuring.spent(["sh", "-c", "echo why; exit 3"])
