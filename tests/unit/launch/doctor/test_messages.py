"""Messages around the ring of ranks, and the ranks' clocks."""

from fedh2l_mpi.launch.doctor import messages
from fedh2l_mpi.launch.doctor.findings import Level
from fedh2l_mpi.launch.doctor.messages import Load


def test_the_ring_is_told_by_its_median_and_its_slowest_rank():
    told = messages.ring_finding(Load("posteriors of 320 x 10", 12_852), [1e-3, 2e-3, 3e-3, 50e-3], [0] * 4)
    assert told.level is Level.GOOD
    assert "(12,852 bytes)" in told.text
    assert "2.50 ms (5 MB/s), at the slowest rank (3) 50.00 ms" in told.text


def test_a_message_that_arrives_changed_is_a_failure():
    told = messages.ring_finding(Load("posteriors", 100), [1e-3] * 3, [0, 0, 2])
    assert told.level is Level.FAILURE
    assert "2 of 69 arrived changed, the first at rank 2" in told.text


def test_every_rank_and_round_sends_other_bytes():
    sent = {bytes(messages._pattern(rank, number, 100)) for rank in range(10) for number in range(-3, 20)}
    assert len(sent) == 230
    assert {len(message) for message in sent} == {100}


def test_clocks_far_apart_are_warned_of():
    near = messages.clocks(["n2", "n3"], [(0.002, 0.0001), (-0.004, 0.0001)])
    assert (near.level, "of 3 hosts, that of n3 differs most from rank 0's: -4.0 ms" in near.text) == (Level.GOOD, True)
    assert messages.clocks(["n2"], [(3.0, 0.0001)]).level is Level.WARNING
    assert messages.clocks([], []).level is Level.FACT


def test_messages_are_as_large_as_a_runs_would_be():
    from fedh2l_mpi.config.loading import load

    # Two views of each seed sample, and one byte a posterior.
    assert messages.load_of(load(None).resolved(1, False)) == Load("posteriors of 576 x 10", 48 + 4 + 576 * 10)
    classic = load(None, ["recipe=classic"]).resolved(1, False)
    assert messages.load_of(classic) == Load("posteriors of 288 x 10", 48 + 4 + 4 * 288 * 10)
    assert messages.load_of(load(None, ["method.name=independent"]).resolved(1, False)) is None
