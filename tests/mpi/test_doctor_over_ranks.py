"""The doctor under a real mpirun of each MPI."""

import pytest
from helpers.launching import Mpi, launch, mpich, openmpi

from fedh2l_mpi.launch.doctor import messages
from fedh2l_mpi.launch.doctor.messages import Load
from fedh2l_mpi.runtime.world import World


def test_ranks_that_meet_get_one_page_with_timed_messages(any_mpi: Mpi, tmp_path):
    ended = launch(["doctor", "configs/digits_ring.yaml", "--out", str(tmp_path)], ranks=2, mpi=any_mpi, timeout=60)
    assert ended.code == 0, ended
    words = " ".join(ended.out.split())
    assert "mpirun started 2 ranks: 2 on " in words
    assert "the same on all 2 ranks" in words
    assert "ranks 0-1, 1 thread each, on " in words
    assert "posteriors of 576 x 10 (5,812 bytes) from every rank to the next: median of 20 rounds" in words
    assert "all ranks see each other's files" in words
    assert ended.out.count("a run would work here") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_nobody_can_write_is_a_failure_on_all_ranks():
    ended = launch(["doctor", "--out", "/proc"], ranks=2, timeout=60)
    assert ended.code == 1, ended
    assert ended.out.count("FAIL") == 1
    assert "/proc cannot be written" in ended.out
    assert ended.out.count("a run would not work here: 1 failure") == 1


def test_ranks_of_another_mpi_than_the_launchers_are_a_failure_with_the_fix(tmp_path):
    launcher, other = mpich(), openmpi()
    if launcher is None or other is None:
        pytest.skip("needs both MPIs; make test installs them")
    mixed = Mpi("mixed", launcher.mpirun, other.python)
    ended = launch(["doctor", "--out", str(tmp_path)], ranks=2, mpi=mixed, timeout=60)
    assert ended.code == 1, ended
    words = " ".join(ended.out.split())
    assert "so each would run alone. Use the mpirun of Open MPI" in words
    assert ended.out.count("a run would not work here: 1 failure") == 1


@pytest.mark.mpi(ranks=2)
def test_clocks_of_two_ranks_of_one_host_agree_and_messages_arrive_whole(comm):
    world = World(comm)
    offsets = messages.clock_offsets(world, [1], deadline_s=20.0)
    assert len(offsets) == (1 if world.rank == 0 else 0)
    for offset, unsure in offsets:
        # A read of the clock may lie anywhere in the fastest ping.
        assert abs(offset) <= unsure + 1e-3
        assert 0 < unsure < 1.0
    for size in (1, 100, 1_000_000):
        seconds, broken = messages.ring(world, size, deadline_s=20.0)
        assert seconds > 0
        assert broken == 0
    (line, *_) = messages.examine(world, Load("posteriors of 3 x 2", 76), 20.0)
    assert "76 bytes" in line.text
