"""What every rank pays for at start-up."""

import sys

import pytest

from fedh2l_mpi.cli import commands
from fedh2l_mpi.runtime.world import World


@pytest.mark.mpi(ranks=2)
def test_ranks_that_do_not_write_load_neither_hdf5_nor_the_terminal(comm, shared_folder):
    before = set(sys.modules)
    commands.execute(commands.parse(["--quiet", "--set", "rounds=1", "--out", str(shared_folder / "run")]), World(comm))
    loaded = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not loaded & {"rich", "networkx", "scipy", "sklearn"}
    assert "torch._dynamo" not in sys.modules
    assert ("h5py" in sys.modules) == (comm.rank == 0)
