"""Messages and hand-over without MPI; what crosses ranks is tested in tests/mpi."""

import numpy as np
import pytest
import torch

from fedh2l_mpi.exchange import ArraySpec, Exchange
from fedh2l_mpi.exchange.message import Message
from fedh2l_mpi.exchange.row_skipping import WholeRows
from fedh2l_mpi.exchange.wire_format import HEADER
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph

POSTERIORS = ArraySpec("posteriors", 5, 10, sums_to_one=True)
SMALL = ArraySpec("posteriors", 3, 2, sums_to_one=True)


def sealed(round_index: int = 3) -> Message:
    message = Message([1, 4], POSTERIORS)
    message.fill(dict.fromkeys((1, 4), POSTERIORS.encode(np.full((5, 10), 0.1, np.float32), 1)))
    message.seal(round_index)
    return message


def test_a_message_that_arrives_as_it_was_sent_is_accepted():
    sent, received = sealed(), Message([1, 4], POSTERIORS)
    received.buffer[:] = sent.buffer
    opened = received.open(3, sent.buffer.nbytes, WholeRows(POSTERIORS))
    assert np.array_equal(opened, np.full((2, 5, 10), 0.1, np.float32))
    assert sent.buffer.nbytes == POSTERIORS.message_bytes(2) == HEADER.size + 2 * 4 + 2 * 5 * 10 * 4


@pytest.mark.parametrize("byte", range(0, POSTERIORS.message_bytes(2), 7))
def test_any_flipped_byte_is_noticed(byte):
    message = sealed()
    message.buffer[byte] ^= 0x10
    with pytest.raises(RuntimeError, match="got|not finite"):
        message.open(3, message.buffer.nbytes, WholeRows(message.array))


def test_a_message_of_another_round_size_or_sender_is_refused():
    message = sealed()
    with pytest.raises(RuntimeError, match="round: got 3, expected 4"):
        message.open(4, message.buffer.nbytes, WholeRows(message.array))
    with pytest.raises(RuntimeError, match=r"size: got 10 bytes, expected"):
        message.open(3, 10, WholeRows(message.array))
    other = Message([1, 5], POSTERIORS)
    other.buffer[:] = message.buffer
    with pytest.raises(RuntimeError, match=r"senders: got \[1, 4\], expected \[1, 5\]"):
        other.open(3, message.buffer.nbytes, WholeRows(other.array))
    shape = Message([1, 4], ArraySpec("posteriors", 10, 5, sums_to_one=True))
    shape.buffer[:] = message.buffer
    with pytest.raises(RuntimeError, match="shape: got"):
        shape.open(3, message.buffer.nbytes, WholeRows(shape.array))
    logits = Message([1, 4], ArraySpec("logits", 5, 10))
    logits.buffer[:] = message.buffer
    with pytest.raises(RuntimeError, match="array: got b'posteriors', expected b'logits'"):
        logits.open(3, message.buffer.nbytes, WholeRows(logits.array))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.3])
def test_rows_must_be_finite_and_sum_to_one(value):
    payload = np.full((2, 5, 10), 0.1, dtype=np.float32)
    POSTERIORS.check(payload, [1, 4])
    payload[1, 2, 3] = value
    with pytest.raises(
        RuntimeError, match="participant 4, row 2: .* is not finite, is negative somewhere, or does not sum to 1"
    ):
        POSTERIORS.check(payload, [1, 4])


def test_hosted_participants_hand_over_directly_in_participant_order():
    graph = Graph(4, [(0, 2), (0, 1), (1, 2)])
    exchange = Exchange(World(None), Hosting(4, 1), SMALL, deadline_s=1.0)
    published = {i: torch.tensor([[i / 4, 1 - i / 4]] * 3) for i in range(4)}
    exchange.start(0, graph, published)
    theirs = exchange.finish()
    assert theirs[0][:, 0, 0].tolist() == [0.25, 0.5]
    assert theirs[2][:, 0, 0].tolist() == [0.0, 0.25]
    assert tuple(theirs[3].shape) == (0, 3, 2)
    edge = SMALL.message_bytes()
    assert exchange.ledger.sent == exchange.ledger.received == {0: 2 * edge, 1: 2 * edge, 2: 2 * edge, 3: 0}
    assert exchange.mpi_sent == 0


def test_what_stays_on_a_rank_is_checked_like_what_leaves_it():
    # Otherwise a diverged participant would end a run or not, depending on the number of ranks.
    exchange = Exchange(World(None), Hosting(2, 1), SMALL, deadline_s=1.0)
    diverged = torch.full((3, 2), torch.nan)
    with pytest.raises(RuntimeError, match="posteriors of participant 1, row 0: .* is not finite"):
        exchange.start(0, Graph(2, []), {0: torch.full((3, 2), 0.5), 1: diverged})


def test_finishing_what_was_not_started_is_a_fault():
    with pytest.raises(RuntimeError, match="before start"):
        Exchange(World(None), Hosting(1, 1), SMALL, 1.0).finish()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_any_other_array_must_be_finite_however_large_its_numbers(value):
    parameters = ArraySpec("parameters", 1, 1000)
    payload = np.full((2, 1, 1000), 3e38, dtype=np.float32)
    parameters.check(payload, [0, 3])
    payload[1, 0, 999] = value
    with pytest.raises(RuntimeError, match="parameters of participant 3, row 0: .* is not finite"):
        parameters.check(payload, [0, 3])


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (torch.zeros(3, 2, dtype=torch.float64), r"torch.float64 \(3, 2\) on cpu"),
        (torch.zeros(2, 3), r"torch.float32 \(2, 3\) on cpu"),
        (torch.zeros(3, 2, device="meta"), r"torch.float32 \(3, 2\) on meta"),
        (torch.zeros(3, 2, requires_grad=True), r"torch.float32 \(3, 2\) on cpu, with gradients"),
    ],
)
def test_only_the_announced_shape_and_type_is_published_from_host_memory(array, got):
    exchange = Exchange(World(None), Hosting(1, 1), ArraySpec("logits", 3, 2), deadline_s=1.0)
    says = rf"logits of participant 0: got {got}, expected torch.float32 \(3, 2\) on cpu"
    with pytest.raises(RuntimeError, match=says):
        exchange.start(0, Graph(1, []), {0: array})


def test_an_array_has_a_short_name_and_is_not_empty():
    with pytest.raises(ValueError, match="Allowed: 1 to 16 bytes"):
        ArraySpec("a name that is far too long", 1, 1)
    with pytest.raises(ValueError, match="Allowed: 1 x 1 or more"):
        ArraySpec("logits", 0, 10)


def test_a_round_without_exchange_has_an_empty_ledger():
    exchange = Exchange(World(None), Hosting(2, 1), SMALL, deadline_s=1.0)
    exchange.start(0, Graph(2, [(0, 1)]), {i: torch.full((3, 2), 0.5) for i in range(2)})
    exchange.finish()
    assert exchange.close_round().sent == {0: SMALL.message_bytes(), 1: SMALL.message_bytes()}
    assert exchange.close_round().sent == {}


def test_a_row_that_sums_to_one_with_a_negative_number_is_no_posterior():
    payload = np.full((2, 5, 10), 0.1, dtype=np.float32)
    payload[0, 3, :2] = -0.1, 0.3
    with pytest.raises(RuntimeError, match="posteriors of participant 1, row 3: .* is negative"):
        POSTERIORS.check(payload, [1, 4])
