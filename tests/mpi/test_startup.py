"""Imports at start-up: what a rank loads, and `--share-imports`, one import on a node for all its ranks."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import SHARES, Mpi, assert_same, kill, launch, mpich, openmpi, processes, start, wait_for

from fedh2l_mpi import metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.lifecycle import status
from fedh2l_mpi.runtime.world import World

FAST = ["--set", "participants=3", "--set", "models=[mlp]", "--set", "evaluation.every=50"]
ENDLESS = ["--share-imports", "--quiet", *FAST, "--set", "rounds=100000"]


def all_are_gone(out: Path) -> None:
    wait_for(f"no process left of {processes(out)}", lambda: not processes(out), 5)


def running(out: Path, mpi: Mpi, ranks: int = 3) -> subprocess.Popen[str]:
    """A job that goes on until it is ended, and that has finished a round."""
    process = start([mpi.mpirun, "-n", str(ranks), mpi.python, "-m", "fedh2l_mpi", *ENDLESS, "--out", str(out)])
    try:
        wait_for("the rounds", lambda: process.poll() is not None or metrics_rounds(out) > 0)
        assert process.poll() is None, process.communicate()
    except BaseException:
        kill(process)
        raise
    return process


def metrics_rounds(out: Path) -> int:
    return metrics.look(out / "metrics.h5").rounds if (out / "metrics.h5").exists() else 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, str]:
    """A run of one process, and what it printed of its end: the numbers depend neither on the ranks nor on the MPI."""
    out = tmp_path_factory.mktemp("alone") / "run"
    ended = launch([*SHORT, "--out", str(out)])
    assert ended.code == 0, ended.err
    return out, table(ended.out)


SHORT = ["--set", "participants=3", "--set", "rounds=3", "--set", "evaluation.every=2"]


def table(printed: str) -> str:
    # Open MPI gives rank 0 a terminal: with colours, and with its line ends.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed).replace("\r", "")
    return plain[plain.index("after 3 rounds; accuracies on test data") : plain.index("metrics:")]


def test_the_numbers_and_the_table_are_those_without_the_option(tmp_path, any_mpi, alone):
    out = tmp_path / "run"
    ended = launch([*SHORT, "--share-imports", "--out", str(out)], ranks=3, mpi=any_mpi)
    assert (ended.code, ended.err) == (0, "")
    assert_same(alone[0] / "metrics.h5", out / "metrics.h5")
    assert table(ended.out) == alone[1]
    for rank in range(3):
        assert SHARES in (out / "log" / f"rank-000{rank}.log").read_text()
    all_are_gone(out)


@pytest.mark.parametrize("wrong", [["--bogus"], ["--set", "optimizer.lr=-1"]])
def test_a_mistake_is_told_once_and_all_leave(tmp_path, wrong):
    mpi, out = openmpi() if wrong == ["--bogus"] else mpich(), tmp_path / "run"
    if mpi is None:
        pytest.skip("one of the two MPIs is missing")
    ended = launch(["--share-imports", *wrong, "--out", str(out)], ranks=3, mpi=mpi)
    assert ended.code == 2
    assert ended.err.count("fedh2l_mpi: error:") == 1
    assert "--bogus" in ended.err or "optimizer.lr: got -1" in ended.err
    all_are_gone(out)


@pytest.mark.parametrize("victim", ["a rank", "a proxy", "the server"])
def test_whoever_is_killed_takes_all_along(tmp_path, any_mpi, victim):
    out = tmp_path / "run"
    process = running(out, any_mpi)
    try:
        names = processes(out)
        assert list(names.values()).count("fedh2l-proxy") == 3, names
        assert list(names.values()).count("fedh2l-imports") == 1, names
        told = (out / "log" / "rank-0001.log").read_text()
        pid = {
            "a rank": int(told.split("pid ")[1].split(")")[0]),
            "a proxy": int(told.split(SHARES)[1].split()[0]),
            "the server": next(pid for pid, name in names.items() if name == "fedh2l-imports"),
        }[victim]
        os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    finally:
        kill(process)
    assert process.returncode != 0
    assert "Traceback" not in said
    if victim == "the server":
        assert "the import server of this node has ended, and pid" in said
    all_are_gone(out)
    assert status.read(out / "status").state == "failed"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_signals_to_the_launcher_reach_the_ranks(tmp_path, any_mpi, number):
    out = tmp_path / "run"
    process = running(out, any_mpi)
    try:
        process.send_signal(number)
        process.communicate(timeout=20)
    finally:
        kill(process)
    all_are_gone(out)
    said = status.read(out / "status")
    if number == signal.SIGUSR1:
        assert (process.returncode, said.state, said.reason) == (0, "stopped", "USR1")
        assert said.checkpoint == said.round > 0
    else:
        assert process.returncode != 0
        assert said.state in ("failed", "stopped")


# Docker's default. 16 ranks of MPICH take 82 MiB, and die in most attempts; 4 ranks take 21 MiB.
SMALL_SHM = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'


@pytest.mark.parametrize("ranks", [4, 16])
def test_too_little_shared_memory_for_mpi_is_told_before_mpi_dies_of_it(tmp_path, ranks):
    mpi, alone = mpich(), ["unshare", "--mount", "sh", "-c"]
    if mpi is None or subprocess.run([*alone, SMALL_SHM, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs mpirun, and root for a /dev/shm of its own")
    run = ["-m", "fedh2l_mpi", "--share-imports", "--quiet", *SHORT, "--set", f"participants={ranks}"]
    rank = [mpi.python, *run, "--set", "data.partition.samples_per_participant=80", "--out", str(tmp_path / "run")]
    process = start([*alone, SMALL_SHM, "sh", mpi.mpirun, "-n", str(ranks), *rank])
    try:
        _, said = process.communicate(timeout=60)
    finally:
        kill(process)
    # Ranks that are faster than the one that looks have taken some of the 64 MiB.
    warnings = re.findall(r"/dev/shm has \d+ MiB free on this node, but its 16 ranks take 83 MiB of it", said)
    assert len(warnings) == (ranks == 16)
    assert process.returncode == 0 or warnings
    all_are_gone(tmp_path / "run")


def test_ranks_whose_launcher_was_killed_stop_in_order(tmp_path):
    mpi, out = openmpi(), tmp_path / "run"
    if mpi is None:
        pytest.skip("MPICH's ranks are killed with their launcher; there is no Open MPI here")
    process = running(out, mpi)
    try:
        os.kill(process.pid, signal.SIGKILL)
        wait_for("the end", lambda: status.read(out / "status").state != "running")
        all_are_gone(out)
    finally:
        kill(process)
    said = status.read(out / "status")
    assert (said.state, said.reason) == ("stopped", "launcher gone")


# As a user's wrapper does: it gives each rank another GPU, other CPU settings, and becomes the rank.
WRAPPER = """#!/bin/sh
local=${OMPI_COMM_WORLD_LOCAL_RANK:-$MPI_LOCALRANKID}
export CUDA_VISIBLE_DEVICES=$((local + 4)) CUDA_MPS_PIPE_DIRECTORY=/mps-$local SLURM_LOCALID=$local OWN=$local
[ "$local" = 1 ] || export ONLY_OTHERS=yes
exec "$@"
"""
# A user's model. It writes what PyTorch, the C library (of which CUDA's driver asks) and Python tell this rank.
LOOKS = """
import ctypes, json, os, torch
from torch import nn
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
class Model(nn.Sequential):
    def __init__(self, channels, side, classes):
        super().__init__(nn.Flatten(), nn.Linear(channels * side * side, classes))
        names = ["CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "SLURM_LOCALID", "ONLY_OTHERS"]
        seen = {
            "torch": torch.cuda._parse_visible_devices(),
            "count": [torch.cuda._cached_device_count, torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork()],
            "C": [(getenv(name.encode()) or b"").decode() for name in names],
            "python": [os.environ.get(name, "") for name in names],
        }
        with open(f"seen-{os.environ['OWN']}.json", "w") as file:
            json.dump(seen, file)
"""


def test_ranks_that_see_other_gpus_share_imports_and_each_has_its_own_environment(tmp_path, any_mpi):
    (tmp_path / "looks.py").write_text(LOOKS)
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    run = ["-m", "fedh2l_mpi", "--share-imports", "--quiet", *SHORT, "--set", "models=[looks:Model]", "--out", "run"]
    process = start([any_mpi.mpirun, "-n", "3", str(wrapper), any_mpi.python, *run], cwd=tmp_path)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        kill(process)
    assert (process.returncode, said) == (0, "")
    for rank in range(3):
        assert SHARES in (tmp_path / "run" / "log" / f"rank-000{rank}.log").read_text()
        seen = json.loads((tmp_path / f"seen-{rank}.json").read_text())
        own = [str(rank + 4), f"/mps-{rank}", str(rank), "" if rank == 1 else "yes"]
        assert seen == {"torch": [rank + 4], "count": [None, False, False], "C": own, "python": own}
    all_are_gone(tmp_path / "run")


@pytest.mark.mpi(ranks=2)
def test_ranks_that_do_not_write_load_neither_hdf5_nor_the_terminal(comm, shared_folder):
    before = set(sys.modules)
    commands.execute(commands.parse(["--quiet", "--set", "rounds=1", "--out", str(shared_folder / "run")]), World(comm))
    loaded = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not loaded & {"rich", "networkx", "scipy", "sklearn"}
    assert "torch._dynamo" not in sys.modules
    assert ("h5py" in sys.modules) == (comm.rank == 0)
