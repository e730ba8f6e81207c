"""Jobs that are stopped, killed and resumed: real mpiruns, real signals, and the numbers of the unbroken run."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.launching import Mpi, kill, launch, mpich, start
from helpers.same_runs import assert_same_run

from fedh2l_mpi import metrics
from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.run_directory import RunDirectory

FAST = ["participants=3", "method.local_steps=2", "method.mutual_steps=2", "evaluation.every=1", "checkpoint.every=1"]
EXTRAS = ["evaluation.metrics=[auroc]", "evaluation.local_test_share=0.1", "evaluation.predictions=true"]
KEEP = "exchange.keep_posteriors=1"
RING = [*FAST, "models=[mlp]", *EXTRAS, KEEP]
REDRAWN = [
    *FAST,
    "models=[cnn, mlp]",
    "topology.kind=erdos_renyi",
    "topology.redraw_every=2",
    "optimizer.name=sgd",
    "optimizer.momentum=0.9",
]
# More than there is time for; but all graphs of a run are drawn at its start.
MANY = 3000
SHIFTED = ["data.partition.shift=[{kind: noise, step: 0.1}]", "data.augmentation=jitter"]
COMING_AND_GOING = "faults.participation={kind: markov, mean_present: 4, mean_absent: 2}"
GOSSIP = [*FAST, "models=[{name: mlp, hidden: [32]}]", "method.name=d_psgd", *SHIFTED, COMING_AND_GOING]


def arguments(out: Path, settings: list[str], rounds: int, *more: str) -> list[str]:
    """Arguments of a run that resumes from `out`."""
    words = [word for setting in [*settings, f"rounds={rounds}"] for word in ("--set", setting)]
    return [*words, "--out", str(out), *more]


def begin(out: Path, settings: list[str], rounds: int, ranks: int, mpi: Mpi | None = None) -> subprocess.Popen[str]:
    """Start a job that resumes a run; return after its first round."""
    mpi = mpi or mpich()
    if mpi is None:
        pytest.skip("no mpirun on this machine")
    program = [mpi.python, "-m", "fedh2l_mpi", *arguments(out, settings, rounds, "--resume", "auto")]
    before = status.read(RunDirectory(out).status)
    process = start([mpi.mpirun, "-n", str(ranks), *program] if ranks > 1 else program)
    try:
        for _ in range(1200):
            now = status.read(RunDirectory(out).status)
            if now is not None and now.state == "running" and (before is None or now.who != before.who):
                return process
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
    except BaseException:
        kill(process)
        raise
    kill(process)
    raise AssertionError("the job did not begin within 24 s")


def pid_of(out: Path, rank: int) -> int:
    """Of the last process that was this rank."""
    return int(RunDirectory(out).log(rank).read_text().rpartition(f"rank {rank} of ")[2].split("pid ")[1].split(")")[0])


def end(process: subprocess.Popen[str], timeout: float = 30) -> tuple[int, str, str]:
    """How a job ends; it is killed if it does not."""
    try:
        said, errors = process.communicate(timeout=timeout)
    finally:
        kill(process)
    return process.returncode, said, errors


def state_soon(out: Path) -> status.Status:
    """What the status file says as soon as nobody says any more that the run is running."""
    for _ in range(250):
        now = status.read(RunDirectory(out).status)
        if now is not None and now.state != "running":
            return now
        time.sleep(0.02)
    raise AssertionError("the status file still says that the run is running")


def finish_and_compare(tmp_path: Path, out: Path, settings: list[str], ranks: int | None, more: int = 10) -> None:
    """Go on for some rounds, to the end, and compare with a run of as many rounds that nobody disturbed."""
    rounds = metrics.read(RunDirectory(out).metrics).rounds + more
    # On a busy machine, a job may be killed before its first checkpoint.
    mode = "require" if RunDirectory(out).committed() else "auto"
    ended = launch(arguments(out, settings, rounds, "--resume", mode, "--quiet"), ranks)
    assert ended.code == 0, ended.err
    assert status.read(RunDirectory(out).status).state == "complete"
    # With the run's own config, because defaults such as the decay of averages follow from the rounds at the start.
    words = ["--set", f"rounds={rounds}", "--out", str(tmp_path / "unbroken"), "--quiet"]
    unbroken = launch([str(RunDirectory(out).config), *words], timeout=240)
    assert unbroken.code == 0, unbroken.err
    assert_same_run(tmp_path / "unbroken", out, rounds)
    for name, key in (("predictions.h5", "evaluation.predictions=true"), ("posteriors.h5", KEEP)):
        written = [run / name for run in (tmp_path / "unbroken", out)]
        assert [path.exists() for path in written] == [key in settings] * 2
        assert not written[0].exists() or written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.parametrize(
    ("settings", "ranks"), [(RING, (2,)), (REDRAWN, (3, 1, 2)), (GOSSIP, (3,))], ids=["ring", "redrawn", "d_psgd"]
)
def test_killed_at_any_time_and_resumed_is_unbroken_bit_for_bit(tmp_path, settings, ranks):
    draw, out, seen, kills = random.Random(1), tmp_path / "run", [], 5 if settings is not GOSSIP else 2
    for attempt in range(kills):
        size = ranks[attempt % len(ranks)]
        process = begin(out, settings, rounds=MANY, ranks=size)
        try:
            # From before the first round's end, through rows and checkpoints in the writing; later on a busy machine.
            time.sleep(draw.uniform(0.0, 0.5) * (attempt + 1))
            os.kill(pid_of(out, draw.randrange(size)), signal.SIGKILL)
        finally:
            code, said, errors = end(process)
        assert code != 0, (said, errors)
        assert state_soon(out).state == "failed"
        result = metrics.read(RunDirectory(out).metrics)
        # A round is reported after its flush, so all reported rounds are there and none is half there.
        told = [
            int(line.split(f" of {MANY} rounds")[0].split()[-1]) for line in said.splitlines() if f" of {MANY} " in line
        ]
        assert result.rounds >= max(told, default=0)
        for name in ("accuracy", "loss", "loss_private", "bytes_sent"):
            is_absent = result["present"] == 0 if COMING_AND_GOING in settings and name == "loss_private" else False
            assert not ((result[name] != result[name]) & ~np.asarray(is_absent)).any(), f"{name} has holes"
        seen.append(result.rounds)
    assert len(set(seen)) > kills // 2, seen
    assert seen[-1] > seen[0], "killed jobs got nowhere"
    finish_and_compare(tmp_path, out, settings, ranks=2)


def test_a_job_that_is_killed_on_its_way_to_an_early_stop_ends_where_the_unbroken_run_does(tmp_path):
    settings = [*FAST, "models=[mlp, lenet5]", "optimizer.name=adamw", "optimizer.weight_decay=0.1"]
    settings += ["optimizer.warmup_steps=20", "optimizer.clip_norm=1.0", "optimizer.label_smoothing=0.1"]
    settings += ["optimizer.per_model.lenet5.schedule=linear", "run.early_stop.patience=4"]
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    whole = launch(arguments(unbroken, settings, MANY, "--quiet"))
    assert whole.code == 0, whole.err
    expected = status.read(RunDirectory(unbroken).status)
    process = begin(out, settings, rounds=MANY, ranks=3)
    try:
        os.kill(pid_of(out, 1), signal.SIGKILL)
    finally:
        end(process)
    ended = launch(arguments(out, settings, MANY, "--resume", "auto", "--quiet"), 2)
    assert ended.code == 0, ended.err
    now = status.read(RunDirectory(out).status)
    assert (now.state, now.round, now.reason) == ("complete", expected.round, expected.reason)
    assert now.reason.startswith(f"early stop in round {now.round}, best round ")
    assert now.round < MANY
    assert_same_run(unbroken, out, now.round)


def test_usr1_to_the_launcher_or_a_hang_up_of_any_rank_stops_the_job_in_order(tmp_path, any_mpi):
    out = tmp_path / "run"
    for number, size in ((signal.SIGUSR1, 3), (signal.SIGHUP, 2)):
        process = begin(out, REDRAWN, rounds=MANY, ranks=size, mpi=any_mpi)
        time.sleep(0.3)
        # Launchers pass it on to every rank; a person may know of one rank only, and UCX has a use for HUP, too.
        os.kill(process.pid if number == signal.SIGUSR1 else pid_of(out, 1), number)
        code, said, errors = end(process)
        assert code == 0, (said, errors)
        now = status.read(RunDirectory(out).status)
        reason = number.name.removeprefix("SIG")
        assert (now.state, now.reason) == ("stopped", reason)
        assert now.checkpoint == now.round == metrics.read(RunDirectory(out).metrics).rounds
        assert f"stopped ({reason}), with a checkpoint; python -m fedh2l_mpi --resume auto" in said
        assert not RunDirectory(out).lock.exists()
    finish_and_compare(tmp_path, out, REDRAWN, ranks=None)


def test_ctrl_c_stops_a_run_in_order_and_a_second_one_ends_it_at_once(tmp_path):
    out, settings = tmp_path / "run", [*RING, "checkpoint.every=null"]
    for size in (1, 2):
        process = begin(out, settings, rounds=MANY, ranks=size)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        code, said, errors = end(process)
        assert code == 130, (said, errors)
        assert "stopping after this round, with a checkpoint; Ctrl-C again ends the run at once" in errors
        now = status.read(RunDirectory(out).status)
        assert (now.state, now.reason) == ("stopped", "interrupted")
        assert now.checkpoint == now.round == metrics.read(RunDirectory(out).metrics).rounds > 0
        assert f"stopped (interrupted), with a checkpoint; python -m fedh2l_mpi --resume auto --out {out} res" in said
    finish_and_compare(tmp_path, out, RING, ranks=None)

    process = begin(tmp_path / "slow", [*FAST, "models=[mlp]", "method.local_steps=100000000"], rounds=2, ranks=1)
    # Until it is in the first round, which never ends; before that, one Ctrl-C ends it.
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    code, _, errors = end(process)
    assert code == 130, errors
    assert f"interrupted; python -m fedh2l_mpi --resume auto --out {tmp_path / 'slow'} starts it again" in errors
    assert status.read(tmp_path / "slow" / "status").state == "stopped"


def test_files_in_the_run_directory_ask_for_a_checkpoint_and_for_the_end(tmp_path):
    out = RunDirectory(tmp_path / "run")
    process = begin(out.path, [*RING, "checkpoint.every=null"], rounds=MANY, ranks=2)
    try:
        # A second job is kept off.
        other = launch(arguments(out.path, [*RING, "checkpoint.every=null"], MANY, "--resume", "auto"))
        assert other.code == 2
        assert (
            f"another process (host {os.uname().nodename}, pid {pid_of(out.path, 0)}) is writing this run" in other.err
        )
        out.checkpoint_request.touch()
        for _ in range(500):
            if not out.checkpoint_request.exists():
                break
            time.sleep(0.02)
        assert len(out.committed()) == 1, "the request is gone before it is answered"
        out.stop_request.touch()
    finally:
        code, _, errors = end(process)
    assert code == 0, errors
    now = status.read(out.status)
    assert (now.state, now.reason) == ("stopped", "file STOP")
    assert not out.stop_request.exists(), "it would stop the next job, too"
    assert len(out.committed()) == 2


def test_every_file_of_a_checkpoint_is_verified_on_the_rank_that_needs_it(tmp_path):
    whole = RunDirectory(tmp_path / "run")
    ended = launch(arguments(whole.path, RING, 3, "--quiet"), ranks=3)
    assert ended.code == 0, ended.err
    for rank in range(3):
        out = RunDirectory(tmp_path / f"damaged-{rank}")
        shutil.copytree(whole.path, out.path)
        path = out.checkpoint(3) / f"rank-000{rank}.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        # By ranks that host other blocks than those that wrote.
        ended = launch(arguments(out.path, RING, 4, "--resume", "auto"), ranks=2)
        assert ended.code == 0, ended.err
        assert f"cannot be used: {path}: its content has changed since it was written. The checkpoint" in ended.out
        assert "resumed after 2 of 4 rounds" in ended.out
    finish_and_compare(tmp_path, tmp_path / "damaged-2", RING, ranks=2, more=1)


def test_ranks_do_not_outlive_their_launcher(tmp_path, any_mpi):
    out = tmp_path / "run"
    process = begin(out, RING, rounds=MANY, ranks=2, mpi=any_mpi)
    ranks = [pid_of(out, rank) for rank in range(2)]
    os.kill(process.pid, signal.SIGKILL)
    # One launcher takes its ranks with it; another leaves them running, and then they stop in order.
    now = state_soon(out)
    assert (now.state, now.reason) == ("stopped", "launcher gone") or now.state == "failed"
    for _ in range(500):
        if not any(Path(f"/proc/{pid}").exists() for pid in ranks):
            break
        time.sleep(0.02)
    else:
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
        pytest.fail("ranks run on")
    end(process)
