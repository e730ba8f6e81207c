"""Messages and hand-over without MPI; what crosses ranks is tested in tests/mpi."""

import numpy as np
import pytest
import torch

from fedh2l_mpi.exchange import HEADER, Exchange, Message, check_posteriors, message_bytes
from fedh2l_mpi.topology import Graph
from fedh2l_mpi.world import Hosting, World


def sealed(round_index: int = 3) -> Message:
    message = Message([1, 4], samples=5, classes=10)
    message.payload[:] = 0.1
    message.seal(round_index)
    return message


def test_a_message_that_arrives_as_it_was_sent_is_accepted():
    sent, received = sealed(), Message([1, 4], 5, 10)
    received.buffer[:] = sent.buffer
    received.check(3, sent.buffer.nbytes)
    assert np.array_equal(received.payload, sent.payload)
    assert sent.buffer.nbytes == message_bytes(2, 5, 10) == HEADER.size + 2 * 4 + 2 * 5 * 10 * 4


@pytest.mark.parametrize("byte", range(0, message_bytes(2, 5, 10), 7))
def test_any_flipped_byte_is_noticed(byte):
    message = sealed()
    message.buffer[byte] ^= 0x10
    with pytest.raises(RuntimeError, match="got|not finite"):
        message.check(3, message.buffer.nbytes)


def test_a_message_of_another_round_size_or_sender_is_refused():
    message = sealed()
    with pytest.raises(RuntimeError, match="round: got 3, expected 4"):
        message.check(4, message.buffer.nbytes)
    with pytest.raises(RuntimeError, match=r"size: got 10 bytes, expected"):
        message.check(3, 10)
    other = Message([1, 5], 5, 10)
    other.buffer[:] = message.buffer
    with pytest.raises(RuntimeError, match=r"senders: got \[1, 4\], expected \[1, 5\]"):
        other.check(3, message.buffer.nbytes)
    shape = Message([1, 4], 10, 5)
    shape.buffer[:] = message.buffer
    with pytest.raises(RuntimeError, match="shape: got"):
        shape.check(3, message.buffer.nbytes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.3])
def test_rows_must_be_finite_and_sum_to_one(value):
    payload = np.full((2, 5, 10), 0.1, dtype=np.float32)
    check_posteriors(payload, [1, 4])
    payload[1, 2, 3] = value
    with pytest.raises(RuntimeError, match="participant 4, seed sample 2: .* is not finite or does not sum to 1"):
        check_posteriors(payload, [1, 4])


def test_hosted_participants_hand_over_directly_in_participant_order():
    graph = Graph(4, [(0, 2), (0, 1), (1, 2)])
    exchange = Exchange(World(None), Hosting(4, 1), samples=3, classes=2, deadline_s=1.0)
    published = {i: torch.tensor([[i / 4, 1 - i / 4]] * 3) for i in range(4)}
    exchange.start(0, graph, published)
    theirs = exchange.finish()
    assert theirs[0][:, 0, 0].tolist() == [0.25, 0.5]
    assert theirs[2][:, 0, 0].tolist() == [0.0, 0.25]
    assert tuple(theirs[3].shape) == (0, 3, 2)
    edge = message_bytes(1, 3, 2)
    assert exchange.ledger.sent == exchange.ledger.received == {0: 2 * edge, 1: 2 * edge, 2: 2 * edge, 3: 0}
    assert exchange.ledger.mpi_sent == 0


def test_what_stays_on_a_rank_is_checked_like_what_leaves_it():
    # Otherwise a diverged participant would end a run or not, depending on the number of ranks.
    exchange = Exchange(World(None), Hosting(2, 1), samples=3, classes=2, deadline_s=1.0)
    diverged = torch.full((3, 2), torch.nan)
    with pytest.raises(RuntimeError, match="posteriors of participant 1, seed sample 0: .* is not finite"):
        exchange.start(0, Graph(2, []), {0: torch.full((3, 2), 0.5), 1: diverged})


def test_finishing_what_was_not_started_is_a_fault():
    with pytest.raises(RuntimeError, match="before start"):
        Exchange(World(None), Hosting(1, 1), 3, 2, 1.0).finish()
