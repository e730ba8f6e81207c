"""What a node's ranks take of /dev/shm, compared with what is free there."""

import pytest

from fedh2l_mpi.runtime import shared_memory

MPICH = {"MPI_LOCALNRANKS": "16", "MPI_LOCALRANKID": "0", "PMI_SIZE": "32"}
SRUN = {"SLURM_STEP_TASKS_PER_NODE": "16(x2)", "SLURM_NODEID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "32"}
OPEN_MPI = {"OMPI_COMM_WORLD_LOCAL_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "32"}


# 16 ranks of MPICH take 16 x 5.2 = 83.2 MiB, and those of Open MPI 6.4 MiB.
@pytest.mark.parametrize(
    ("environ", "free_mib", "says"),
    [
        (MPICH, 64, "64 MiB free on this node, but its 16 ranks take 83 MiB"),
        (MPICH, 64, "start at most 12 ranks a node"),
        (MPICH, 3, "start at most 1 rank a node"),
        (MPICH, 84, ""),
        (MPICH | {"MPI_LOCALRANKID": "3"}, 64, ""),
        (SRUN | {"PMI_FD": "7"}, 64, "its 16 ranks take 83 MiB"),
        # Nothing says which MPI it is.
        (SRUN, 64, ""),
        (OPEN_MPI, 64, ""),
        (OPEN_MPI, 6, "its 16 ranks take 6 MiB"),
        (MPICH, None, ""),
        ({}, 1, ""),
    ],
)
def test_the_first_rank_of_a_node_warns_if_its_ranks_do_not_fit(monkeypatch, environ, free_mib, says):
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free_mib if free_mib is None else free_mib * 2**20)
    said = shared_memory.caution(environ)
    assert says in said
    assert bool(said) == bool(says)


def test_a_machine_without_the_folder_has_no_size(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    assert shared_memory.total_bytes() >= shared_memory.free_bytes() > 0
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "missing")
    assert (shared_memory.total_bytes(), shared_memory.free_bytes()) == (None, None)
