"""What the doctor says of NVIDIA's MPS, of which stand-ins of its program and its pid file stand here."""

import os

import pytest

from fedh2l_mpi.launch.doctor import mps
from fedh2l_mpi.launch.doctor.findings import Level
from fedh2l_mpi.launch.doctor.mps import Mps
from fedh2l_mpi.runtime.devices import RankSlot


def test_the_daemon_is_found_by_its_pid_file_and_the_program_on_the_path(tmp_path):
    pipes, programs = tmp_path / "pipes", tmp_path / "bin"
    pipes.mkdir()
    programs.mkdir()
    environ = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "PATH": str(programs)}
    assert mps.state(environ) is Mps.MISSING
    program = programs / mps.CONTROL
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert mps.state(environ) is Mps.STOPPED
    own = pipes / f"{mps.CONTROL}.pid"
    own.write_text(f"{os.getpid()}\n")
    assert mps.state(environ) is Mps.RUNNING
    # It was killed, and its file is left.
    own.write_text(str(2**22 + 1))
    assert mps.state(environ) is Mps.STOPPED
    own.write_text("")
    assert mps.state(environ) is Mps.STOPPED


TWO_NODES = [RankSlot(rank, f"n{rank // 2}", (0, 1) if rank < 2 else (2, 3), 1) for rank in range(4)]


@pytest.mark.parametrize(
    ("uuids", "states", "level", "says"),
    [
        (["a", "b", "c", "d"], [Mps.MISSING] * 4, None, ""),
        (["", "", "", ""], [Mps.MISSING] * 4, None, ""),
        # One UUID on two nodes would be a mistake of the driver's, and no sharing.
        (["a", "b", "a", "b"], [Mps.MISSING] * 4, None, ""),
        (["a", "a", "b", "c"], [Mps.MISSING] * 4, Level.WARNING, "2 ranks share a GPU on n0, and MPS is not installed"),
        (["a", "a", "b", "b"], [Mps.RUNNING] * 2 + [Mps.STOPPED] * 2, Level.WARNING, "on n1, and MPS does not run"),
        (["a", "a", "b", "b"], [Mps.RUNNING] * 4, Level.GOOD, "on n0, and MPS runs there, so they can compute at"),
    ],
)
def test_ranks_that_share_a_gpu_are_told_of_mps(uuids, states, level, says):
    told = mps.use(TWO_NODES, uuids, states)
    assert [line.level for line in told] == ([level] if level else [])
    assert all(says in line.text for line in told)
    if level is Level.WARNING:
        assert "Fix: start one rank for each GPU (each can host several participants)" in told[0].text
        assert ("nvidia-cuda-mps-control -d" in told[0].text) == (Mps.STOPPED in states)
