"""Mistakes of the user, and ranks that fail, leave, die or stop: real launches, real kills."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.launching import Mpi, kill, launch, mpich, processes, start, wait_for

from fedh2l_mpi import metrics
from fedh2l_mpi.lifecycle import status

# Models that go wrong in the middle of training; ranks may be a few rounds apart by then.
FAULTY = """
import os, pathlib, signal, sys, time
from torch import nn

class Faulty(nn.Module):
    def __init__(self, channels, side, classes):
        super().__init__()
        self.layer = nn.Linear(channels * side * side, classes)
        self.calls = 0
    def forward(self, images):
        self.calls += 1
        if self.calls == 190:  # as it publishes in round 7
            self.go_wrong()
        return self.layer(images.flatten(1))

class Raises(Faulty):
    def go_wrong(self): raise RuntimeError("a fault in one participant")
class Exits(Faulty):
    def go_wrong(self): sys.exit(0)
class Leaves(Faulty):
    def go_wrong(self): os._exit(0)
class Killed(Faulty):
    def go_wrong(self): os.kill(os.getpid(), signal.SIGKILL)
class Stopped(Faulty):
    def go_wrong(self):
        pathlib.Path(__file__).with_name("stopped-at").write_text(repr(time.time()))
        os.kill(os.getpid(), signal.SIGSTOP)
class StoppedAtEnd(nn.Linear):
    def __init__(self, channels, side, classes):
        super().__init__(channels * side * side, classes)
        from fedh2l_mpi.runtime import world
        # The rank does all its work, and stops just before it meets the others for the last time, or in MPI's own end.
        owner = world.World if self.function == "leave" else world
        real = getattr(owner, self.function)
        def stop_first(*arguments):
            # Any rank may have built this model, to know its size.
            from mpi4py import MPI
            if MPI.COMM_WORLD.rank == 1 and arguments[0] != "MPI_Abort": os.kill(os.getpid(), signal.SIGSTOP)
            return real(*arguments)
        setattr(owner, self.function, stop_first)
    def forward(self, images): return super().forward(images.flatten(1))
class StopsBeforeTheEnd(StoppedAtEnd): function = "leave"
class StopsInMpisEnd(StoppedAtEnd): function = "_call_mpi"
class Diverges(Faulty):
    def go_wrong(self): nn.init.constant_(self.layer.weight, float("nan"))
"""


@pytest.fixture
def faulty(tmp_path) -> dict[str, str]:
    """Environment in which the faulty models can be imported."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    return {"PYTHONPATH": str(tmp_path)}


def with_one(kind: str, out: Path) -> list[str]:
    """Arguments for a run in which participant 2 of 4, on rank 1 of 3 or 2 of 4, has a faulty model."""
    models = f"models={{0: mlp, 1: mlp, 2: 'faulty:{kind}', 3: mlp}}"
    return ["--set", models, "--set", "participants=4", "--set", "exchange.deadline_s=4", "--out", str(out)]


@pytest.mark.parametrize("kind", ["Raises", "Exits", "Leaves", "Killed", "Diverges"])
def test_one_rank_that_fails_ends_the_job_in_seconds(tmp_path, faulty, any_mpi, kind):
    out = tmp_path / "run"
    ended = launch(with_one(kind, out), ranks=4, mpi=any_mpi, environ=faulty, timeout=60)
    said = ended.out + ended.err
    # Of a rank that leaves with code 0, a launcher may, rarely, think well: it ends the others with 0, without a word.
    thinks_well = kind == "Leaves" and ended.code == 0
    assert thinks_well or ended.code != 0
    if kind in ("Raises", "Exits", "Diverges"):
        reason = {"Raises": "a fault in one participant", "Exits": "SystemExit", "Diverges": "participant 2 diverged"}[
            kind
        ]
        assert "fedh2l_mpi: error: rank " in said
        assert "participant 2" in said
        assert reason in said
    elif not thinks_well:
        # Killed from outside: the launcher names the pid, and the log says whose it was.
        culprit = (out / "log" / "rank-0002.log").read_text().split("pid ")[1].split(")")[0]
        assert culprit in said or "rank 2" in said
    # What was finished before is in the file.
    assert metrics.read(out / "metrics.h5").rounds >= 1
    said = status_soon(out)
    assert said.state == "failed"
    if kind == "Diverges":
        assert "rank 2 of 4" in said.reason
        assert "participant 2 diverged" in said.reason


def status_soon(out: Path) -> status.Status:
    """The status as soon as it is not `running` any more; the watchdog of a killed rank 0 may need a moment."""
    for _ in range(250):
        said = status.read(out / "status")
        if said is not None and said.state != "running":
            return said
        time.sleep(0.02)
    raise AssertionError("the status file still says that the run is running")


def test_a_rank_that_hangs_is_named_after_the_deadline(tmp_path, faulty, any_mpi):
    ended = launch(with_one("Stopped", tmp_path / "run"), ranks=4, mpi=any_mpi, environ=faulty, timeout=60)
    assert ended.code == 86
    assert "from rank 2 within 4 s" in ended.err
    assert time.time() - float((tmp_path / "stopped-at").read_text()) < 4 + 5, "the deadline and 5 s"
    assert metrics.read(tmp_path / "run" / "metrics.h5").rounds >= 1
    said = status_soon(tmp_path / "run")
    assert said.state == "failed"
    assert "from rank 2 within 4 s" in said.reason


def test_a_rank_that_stops_when_all_is_done_neither_keeps_nor_fails_the_job(tmp_path, faulty, any_mpi):
    out = tmp_path / "run"
    settings = [*with_one("StopsBeforeTheEnd", out), "--set", "rounds=1"]
    ended = launch(settings, ranks=2, mpi=any_mpi, environ=faulty, timeout=60)
    assert status.read(out / "status").state == "complete"
    assert "no arrival at the end from some rank within 4 s (exchange.deadline_s). All work is done" in ended.err
    assert ended.code == 0, ended.err
    wait_for("nobody is left", lambda: not processes(out))


def test_a_rank_that_stops_in_mpis_own_end_does_not_keep_the_job(tmp_path, faulty):
    # Launchers may call an exit from there an error, because they never hear of that end.
    out = tmp_path / "run"
    launch([*with_one("StopsInMpisEnd", out), "--set", "rounds=1"], ranks=2, environ=faulty, timeout=60)
    assert status.read(out / "status").state == "complete"
    wait_for("nobody is left", lambda: not processes(out))


def test_nobody_is_left_behind(tmp_path, faulty, any_mpi):
    marker = str(tmp_path / "left-behind")
    launch(with_one("Killed", Path(marker)), ranks=4, mpi=any_mpi, environ=faulty, timeout=60)
    time.sleep(1.0)
    left = subprocess.run(["pgrep", "-f", marker], capture_output=True, text=True).stdout.split()
    assert not left


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 3 MiB: room for some checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "small", folder]).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_full_disk_ends_the_job_and_what_was_finished_can_be_read(tmp_path, small_disk, ranks):
    out = small_disk / "run"
    settings = ["--set", "models=[mlp]", "--set", "rounds=100000", "--set", "checkpoint.every=2"]
    ended = launch([*settings, "--out", str(out)], ranks=ranks, timeout=60)
    assert ended.code == 1, ended.err
    assert re.search(r"fedh2l_mpi: error: rank \d of .*No space left on device", ended.err), ended.err
    assert "--- Logging error ---" not in ended.err
    said = status.read(out / "status")
    assert said.state == "failed"
    assert "No space left on device" in said.reason
    result = metrics.read(out / "metrics.h5")
    # The rank that fails may name an older checkpoint than the newest of rank 0.
    made = [int(path.name.partition("-")[2]) for path in (out / "checkpoints").iterdir() if path.suffix != ".tmp"]
    assert result.rounds >= max(made) >= said.checkpoint
    assert not np.isnan(result["loss_private"]).any()
    # With room again, the run resumes.
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    going_on = ["--out", str(out), "--set", f"rounds={result.rounds + 5}", "--resume", "require", "--quiet"]
    ended = launch(going_on, ranks=ranks)
    assert ended.code == 0, ended.err
    assert status.read(out / "status").state == "complete"


def wait_for_ranks(out: Path, ranks: int, process: subprocess.Popen[str]) -> list[int]:
    """Pids of all ranks, once each of them has finished a round; a busy machine may need a minute for that."""

    def found() -> list[int]:
        assert process.poll() is None, process.communicate()
        logs = [out / "log" / f"rank-{rank:04d}.log" for rank in range(ranks)]
        told = [re.search(r", pid (\d+)\)", log.read_text()) if log.exists() else None for log in logs]
        said = status.read(out / "status")
        return [int(pid[1]) for pid in told] if said is not None and said.round > 0 and all(told) else []

    wait_for("all ranks in their rounds", found, patience_s=60)
    return found()


WRONG = {
    "no such config": (["nothing.yaml"], "nothing.yaml: cannot read the config"),
    "an unknown option": (["--bogus"], "unrecognized arguments: --bogus"),
    "an option without value": (["--set"], "--set: expected one argument"),
    "an unknown key": (["--set", "topologie.kind=ring"], "topologie: unknown key; .*did you mean 'topology'"),
    "a wrong value": (["--set", "optimizer.lr=-1"], "optimizer.lr: got -1, must be > 0"),
    "an unknown model": (["--set", "models=[lenet6]"], r"models: got 'lenet6'\. Known: mlp, .*did you mean 'lenet5'"),
    "a model that is not there": (["--set", "models=[nowhere:Model]"], "cannot import nowhere"),
    "a degree too large": (
        ["--set", "topology.kind=random_regular", "--set", "topology.degree=4"],
        "topology.degree: got 4. It must be less than the number of participants, 4",
    ),
    "too many samples": (["--set", "data.partition.samples_per_participant=9999"], "the training data have 1438"),
    "no private data left": (
        ["--set", "seed_set.share=0.99", "--set", "data.partition.samples_per_participant=9"],
        "leaves participant 0 no private data",
    ),
    "no seed set": (["--set", "seed_set.share=0"], "gives an empty seed set"),
    "a seed subset too large": (["--set", "seed_set.samples_per_round=5000"], "the seed set has 288 samples"),
    "no data": (["--set", "data.name=mnist", "--set", "data.root=/nowhere"], "/nowhere is not a folder"),
    "CUDA where there is none": (["--set", "devices.kind=cuda"], "no CUDA device is visible"),
    "an edge list that is not there": (
        ["--set", "topology.kind=edge_list", "--set", "topology.path=/no/edges"],
        "topology.path: cannot read /no/edges",
    ),
    "a run directory that is a file": (["--out", "setup.cfg"], "--out: setup.cfg is a file"),
    "a run directory nobody can write": (["--out", "/proc/run"], "--out: /proc/run cannot be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_gets_one_message_and_exit_code_2(tmp_path, case):
    arguments, says = WRONG[case]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "run")]
    ended = launch([*arguments, *out])
    assert ended.code == 2, ended
    assert re.search(says, ended.err), ended.err
    assert ended.err.count("fedh2l_mpi: error:") == 1
    assert "Traceback" not in ended.err
    # Nothing is left that would stand in the way of the corrected run.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", ["an unknown option", "a wrong value", "no seed set", "an unknown model"])
def test_under_mpirun_a_mistake_is_told_once_and_all_leave(tmp_path, any_mpi, case):
    arguments, _ = WRONG[case]
    ended = launch([*arguments, "--out", str(tmp_path / "run")], ranks=3, mpi=any_mpi)
    assert ended.code == 2
    assert ended.err.count("fedh2l_mpi: error:") == 1
    assert "Traceback" not in ended.err


def test_too_many_ranks_are_refused(tmp_path, any_mpi):
    ended = launch(["--set", "participants=2", "--out", str(tmp_path / "run")], ranks=3, mpi=any_mpi)
    assert ended.code == 2
    assert "the config has 2, but mpirun started 3 ranks. Fix: use -n 2 or fewer" in ended.err


def test_a_directory_that_holds_a_run_is_never_used_again(tmp_path):
    out = str(tmp_path / "run")
    assert launch(["--quiet", "--set", "rounds=1", "--out", out]).code == 0
    before = (tmp_path / "run" / "metrics.h5").read_bytes()
    ended = launch(["--quiet", "--set", "rounds=1", "--out", out], ranks=2)
    assert ended.code == 2
    assert "holds a run already" in ended.err
    assert (tmp_path / "run" / "metrics.h5").read_bytes() == before


def test_ranks_that_cannot_see_each_other_are_refused(tmp_path):
    # What `srun` without PMI, or the mpirun of another MPI, does: many processes, each alone in its MPI.
    for number, environ in enumerate(
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        )
    ):
        ended = launch(["--out", str(tmp_path / f"{number}")], environ=environ)
        assert ended.code == 2
        assert "MPI" in ended.err or "without a launcher" in ended.err
        assert ended.err.count("fedh2l_mpi: error:") == 1
    # Only one of them speaks.
    silent = launch(["--out", str(tmp_path / "other")], environ={"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"})
    assert silent.seconds > 3, "it must not leave before the one that speaks"
    assert (silent.code, silent.err) == (2, "")


def test_damaged_mnist_is_told(tmp_path, mnist):
    for path in mnist.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    ended = launch(
        ["configs/rotated_mnist.yaml", "--set", f"data.root={tmp_path}", "--out", str(tmp_path / "run")], ranks=2
    )
    assert ended.code == 2
    assert "train-images-idx3-ubyte.gz: ends before its gzip stream" in ended.err


def test_the_help_is_printed_once(any_mpi: Mpi):
    ended = launch(["--help"], ranks=2, mpi=any_mpi)
    assert ended.code == 0
    assert ended.out.count("usage:") == 1


def test_a_config_written_by_a_run_runs_again_to_the_same_numbers(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    assert launch(["--quiet", "--set", "rounds=2", "--set", "seed=5", "--out", str(first)]).code == 0
    assert launch([str(first / "config.yaml"), "--quiet", "--out", str(again)]).code == 0
    one, other = (metrics.read(folder / "metrics.h5") for folder in (first, again))
    assert one["loss"].tobytes() == other["loss"].tobytes()


def test_a_rank_killed_from_outside_is_the_one_that_is_blamed(tmp_path):
    # MPICH reads large messages straight from the sender's memory, and fails in the rank that reads, not in the one
    # that died; whichever rank speaks must blame the dead one, and those that the launcher ended since.
    # Often it ends all before any can speak.
    mpi, victim = mpich(), 1
    for attempt in range(3):
        out = tmp_path / f"run-{attempt}"
        fast = ["--set", "participants=3", "--set", "rounds=100000", "--set", "models=[mlp]"]
        process = start([mpi.mpirun, "-n", "3", mpi.python, "-m", "fedh2l_mpi", *fast, "--out", str(out)])
        try:
            pid = wait_for_ranks(out, 3, process)[victim]
            time.sleep(attempt / 10)
            os.kill(pid, signal.SIGKILL)
            _, said = process.communicate(timeout=60)
        finally:
            kill(process)
        assert process.returncode != 0
        logs = "".join(path.read_text() for path in (out / "log").iterdir())
        for line in said.splitlines():
            if "fedh2l_mpi: error" in line:
                assert re.search(rf"because .*\brank {victim} \(host", line), said
                assert f"because rank {victim} (host" in logs
        assert "Traceback" not in said
