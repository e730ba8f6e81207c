"""Hosting and launchers, from what a rank would see; no MPI is needed."""

import io
import os
import sys
import types

import pytest

from fedh2l_mpi.errors import EXIT_FAULT, UserError
from fedh2l_mpi.lifecycle import failure
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.world import World, connect


@pytest.mark.parametrize("participants", [1, 2, 3, 7, 16, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_every_participant_has_one_rank_in_contiguous_even_blocks(participants, ranks):
    hosting = Hosting(participants, ranks)
    blocks = [list(hosting.participants_of(rank)) for rank in range(ranks)]
    assert [index for block in blocks for index in block] == list(range(participants))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert all(hosting.rank_of(participant) == rank for rank, block in enumerate(blocks) for participant in block)


@pytest.mark.parametrize(
    ("environ", "size", "rank", "launched"),
    [
        ({}, 1, 0, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, 4, 2, True),
        ({"PMI_SIZE": "3", "PMI_RANK": "1"}, 3, 1, True),
        ({"PMI_SIZE": "1", "PMI_RANK": "0", "SLURM_NTASKS": "16"}, 1, 0, True),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16", "SLURM_PROCID": "5"}, 16, 5, True),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, 16, 0, True),
        ({"SLURM_NTASKS": "1"}, 1, 0, False),
        ({"PMI_SIZE": "nonsense"}, 1, 0, False),
    ],
)
def test_launchers_are_recognised(environ, size, rank, launched):
    launch = Launch.from_environment(environ)
    assert (launch.size, launch.rank, launch.launched) == (size, rank, launched)


def test_srun_that_speaks_pmi_is_told_from_an_mpirun_inside_a_job():
    srun = {"PMI_SIZE": "4", "PMI_RANK": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
    assert Launch.from_environment(srun) == Launch("srun", 4, 1)
    # Hydra starts one proxy a node through srun; its ranks inherit that step's variables.
    hydra = {**srun, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "MPI_LOCALRANKID": "1"}
    assert Launch.from_environment(hydra) == Launch("mpirun", 4, 1)


def test_a_batch_script_that_forgot_its_launcher_is_told():
    with pytest.raises(UserError, match=r"16 tasks .*without a launcher\. Start it with srun or mpirun"):
        connect({"SLURM_NTASKS": "16"})


def test_an_mpi_library_that_cannot_be_loaded_is_told_in_a_line(monkeypatch):
    class WithoutLibrary(types.ModuleType):
        @property
        def MPI(self) -> None:
            raise RuntimeError("cannot load MPI library\n/usr/lib/libmpi.so: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "mpi4py", WithoutLibrary("mpi4py"))
    with pytest.raises(
        UserError,
        match=r"started 2 processes, but .*\(cannot load MPI library\). Fix: install the extra \[mpi\], as",
    ):
        connect({"PMI_SIZE": "2", "PMI_RANK": "0"})


def test_a_single_process_needs_no_mpi():
    world = connect({})
    assert (world.rank, world.size, world.comm, world.mpi_library) == (0, 1, None, "none")
    assert world.collect("x") == ["x"]
    assert world.node_ranks() == [0]
    assert world.from_first(lambda: 5) == 5
    world.handshake({"anything": b"1"})
    with pytest.raises(UserError, match="wrong"):
        World(None).together(lambda: (_ for _ in ()).throw(UserError("wrong")))


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("I/O operation on closed file")])
def test_the_job_is_ended_also_where_nobody_can_be_told(monkeypatch, error):
    class Nobody(io.StringIO):
        def flush(self) -> None:
            raise error

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with monkeypatch.context() as streams:
        streams.setattr(sys, "stdout", Nobody())
        streams.setattr(sys, "stderr", Nobody())
        failure.end_job(RuntimeError("a fault"), World(None))
    assert codes == [EXIT_FAULT]
