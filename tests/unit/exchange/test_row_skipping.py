"""Rows that are not sent again: which, what stands for them, and what that takes on the wire."""

import numpy as np
import pytest
import torch
from helpers.runs_in_process import run

from fedh2l_mpi import methods, metrics
from fedh2l_mpi.analysis import summary
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.config import ExchangeConfig, MethodConfig, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import ArraySpec, Exchange
from fedh2l_mpi.exchange.message import Message
from fedh2l_mpi.exchange.row_skipping import CachedRows, WholeRows
from fedh2l_mpi.exchange.wire_format import HEADER, SKIPPING, VERSION
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph

PAIR = Graph(2, [(0, 1)])
CODECS = [("float32", None), ("float16", None), ("bfloat16", None), ("uint8", None), ("top_k", 2)]


def posteriors(rows: int, columns: int, **settings: object) -> ArraySpec:
    return ArraySpec("posteriors", rows, columns, sums_to_one=True).coded(ExchangeConfig(**settings))


def alone(array: ArraySpec, participants: int = 2) -> Exchange:
    return Exchange(World(None), Hosting(participants, 1), array, deadline_s=1.0)


def holding(array: ArraySpec, held: dict[int, np.ndarray]) -> CachedRows:
    rows = CachedRows(array, held)
    rows.resume_from(held)
    return rows


def drifting(participant: int, rounds: int, rows: int, columns: int) -> list[torch.Tensor]:
    """Posteriors of a participant that learns: half of the rows move in every round, and ever less."""
    draw = torch.Generator().manual_seed(participant)
    scores, found = torch.randn(rows, columns, generator=draw), []
    for round_index in range(rounds):
        steps = torch.randn(rows, columns, generator=draw) / (1 + round_index)
        scores = scores + steps * (torch.rand(rows, 1, generator=draw) < 0.5)
        found.append(scores.softmax(dim=1))
    return found


def test_bits_bytes_and_rows_are_those_worked_out_by_hand():
    exchange = alone(ArraySpec("logits", 9, 2, skip_below=0.25))
    # Two bytes of bits for nine rows.
    first = HEADER.size + 4 + 2 + 9 * 8
    values = {0: torch.zeros(9, 2), 1: torch.ones(9, 2)}
    exchange.start(0, PAIR, values)
    exchange.finish()
    assert exchange.close_round().sent == {0: first, 1: first}
    moved = torch.zeros(9, 2)
    # Just as far as it may, further, and in the last row below.
    moved[1, 0], moved[3, 1], moved[8] = 0.25, -0.5, 1.0
    exchange.start(1, PAIR, {0: moved, 1: values[1]})
    theirs = exchange.finish()
    assert holding(exchange._array, {0: np.zeros((9, 2), np.float32)}).encode(0, moved.numpy()).tolist() == [
        *(0b00010000, 0b10000000),
        *np.float32([0.0, -0.5, 1.0, 1.0]).view(np.uint8).tolist(),
    ]
    arrived = torch.zeros(9, 2)
    arrived[3, 1], arrived[8] = -0.5, 1.0
    assert torch.equal(theirs[1][0], arrived)
    assert torch.equal(theirs[0][0], values[1])
    ledger = exchange.close_round()
    assert ledger.sent == {0: HEADER.size + 4 + 2 + 2 * 8, 1: HEADER.size + 4 + 2}
    assert ledger.received == {0: ledger.sent[1], 1: ledger.sent[0]}


def test_a_row_that_creeps_is_sent_again_once_it_is_too_far_from_what_was_sent():
    exchange = alone(ArraySpec("logits", 1, 1, skip_below=0.25))
    got = []
    for round_index in range(8):
        exchange.start(round_index, PAIR, {0: torch.full((1, 1), 0.125 * round_index), 1: torch.zeros(1, 1)})
        got.append(exchange.finish()[1].item())
    assert got == [0.0, 0.0, 0.0, 0.375, 0.375, 0.375, 0.75, 0.75]


@pytest.mark.parametrize(("codec", "k"), CODECS)
@pytest.mark.parametrize("bound", [0.0, 0.01, 0.1])
def test_what_stands_for_a_row_is_within_the_bound_in_every_round(codec, k, bound):
    whole = posteriors(37, 10, codec=codec, top_k=k)
    skipping = posteriors(37, 10, codec=codec, top_k=k, skip_below=bound)
    rounds, sent = 30, []
    published = [drifting(participant, rounds, 37, 10) for participant in range(2)]
    usual, exchange = alone(whole), alone(skipping)
    for round_index in range(rounds):
        now = {participant: published[participant][round_index] for participant in range(2)}
        for one in (usual, exchange):
            one.start(round_index, PAIR, now)
        theirs, expected = exchange.finish(), usual.finish()
        for participant in range(2):
            gap = theirs[participant].double() - expected[participant].double()
            assert gap.abs().max() <= bound
            # Without a bound, to the last bit.
            assert bound > 0 or theirs[participant].numpy().tobytes() == expected[participant].numpy().tobytes()
        sent.append(exchange.close_round().sent[0])
    assert sent[0] == max(sent) == skipping.message_bytes() == whole.message_bytes() + 5
    assert all((size - HEADER.size - 4 - 5) % skipping.codec.encoded_bytes(1, 10) == 0 for size in sent)
    # Half of the rows move, and where the bound is large, the last steps are too small for any.
    assert np.mean(sent[1:]) < 0.7 * sent[0]
    assert bound < 0.1 or sent[-1] < 0.3 * sent[0]


def test_another_graph_means_that_everything_is_sent_and_the_same_one_does_not():
    exchange, triple = alone(ArraySpec("logits", 8, 2, skip_below=0.0), 3), {i: torch.full((8, 2), i) for i in range(3)}
    triple = {index: array.float() for index, array in triple.items()}
    whole, nothing = exchange._array.message_bytes(), HEADER.size + 4 + 1
    sent = []
    for round_index, edges in enumerate([[(0, 1)], [(0, 1)], [(0, 1), (1, 2)], [(0, 1), (1, 2)], [(0, 1)]]):
        graph = Graph(3, edges)
        exchange.start(round_index, graph, triple)
        for participant, arrays in exchange.finish().items():
            assert [array[0, 0].item() for array in arrays] == list(graph.neighbours[participant])
        sent.append(exchange.close_round().sent)
    assert sent == [
        {0: whole, 1: whole, 2: 0},
        {0: nothing, 1: nothing, 2: 0},
        {0: whole, 1: 2 * whole, 2: whole},
        {0: nothing, 1: 2 * nothing, 2: nothing},
        {0: whole, 1: whole, 2: 0},
    ]


SPEC = ArraySpec("posteriors", 5, 10, sums_to_one=True, skip_below=0.0)


def sealed() -> tuple[Message, CachedRows]:
    """A message of two senders of whom rows 1 and 4, and no row, are new; what is held of them."""
    held = {1: np.full((5, 10), 0.1, np.float32), 4: np.full((5, 10), 0.1, np.float32)}
    new = {index: array.copy() for index, array in held.items()}
    new[1][[1, 4]] = np.eye(10, dtype=np.float32)[[2, 3]]
    message = Message([1, 4], SPEC)
    rows = holding(SPEC, held)
    message.fill({index: rows.encode(index, new[index]) for index in new})
    message.seal(3)
    return message, rows


def test_a_message_of_changed_rows_says_which_and_is_as_long_as_they_take():
    sent, held = sealed()
    assert sent.wire.nbytes == sent.nbytes == HEADER.size + 2 * (4 + 1) + 2 * 40
    assert HEADER.unpack_from(sent.wire)[1:3] == (VERSION, SKIPPING)
    received = Message([1, 4], SPEC)
    received.buffer[: sent.nbytes] = sent.wire
    # What an earlier, longer message has left in the buffer is no part of this one.
    received.buffer[sent.nbytes :] = 255
    first, second = received.open(3, sent.nbytes, held)
    assert first.argmax(axis=1).tolist() == [0, 2, 0, 0, 3]
    assert np.array_equal(second, np.full((5, 10), 0.1, np.float32))
    assert received.part_bytes == sent.part_bytes == [81, 1]


@pytest.mark.parametrize("byte", range(HEADER.size + 2 * (4 + 1) + 2 * 40))
def test_any_flipped_byte_of_it_is_noticed(byte):
    message, held = sealed()
    message.buffer[byte] ^= 0x10
    with pytest.raises(RuntimeError, match="got"):
        message.open(3, message.nbytes, held)


def test_a_message_of_another_length_layout_or_with_wrong_rows_is_refused():
    message, held = sealed()
    for received_bytes in (0, 10, message.nbytes - 1, message.nbytes + 1, message.buffer.nbytes):
        with pytest.raises(RuntimeError, match=f"size: got {received_bytes} bytes, expected {message.nbytes}"):
            message.open(3, received_bytes, held)
    usual = Message([1, 4], ArraySpec("posteriors", 5, 10, sums_to_one=True))
    usual.buffer[: message.nbytes] = message.wire
    with pytest.raises(RuntimeError, match="codec: got 'float32, skipping rows', expected 'float32'"):
        usual.open(3, message.nbytes, WholeRows(usual.array))
    part = np.concatenate([np.packbits([0, 0, 1, 0, 0]), np.full(10, 0.3, np.float32).view(np.uint8)])
    message.fill({1: part, 4: part})
    message.seal(3)
    with pytest.raises(RuntimeError, match="posteriors of participant 1, row 2: .* does not sum to 1"):
        message.open(3, message.nbytes, held)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"seed_set.views: got 'affine', must be 'none' .*exchange.skip_below=0.1.*set seed_set.views=none, or"),
        (
            ["seed_set.views=none", "seed_set.samples_per_round=64"],
            r"seed_set.samples_per_round: got 64, must be null .*exchange.skip_below=null",
        ),
    ],
)
def test_rows_that_are_of_other_inputs_in_every_round_are_refused(overrides, says):
    config = loading.load(None, ["exchange.skip_below=0.1", *overrides]).resolved(1, launched=False)
    with pytest.raises(UserError, match=says):
        methods.build(config)
    parameters = config.model_copy(update={"method": MethodConfig(name="d_psgd"), "models": ("cnn",)})
    assert methods.build(parameters).shares_parameters
    baseline = config.model_copy(update={"method": MethodConfig(name="independent")})
    assert methods.build(baseline).array(None, 1, 1) is None


def test_with_a_bound_of_zero_a_run_is_the_run_that_sends_everything(tmp_path):
    settings = ["models=[mlp]", "participants=3", "rounds=4", "evaluation.every=2", "seed_set.views=none"]
    # So small a step that some rows are the same after it, to 1/16 nat.
    settings += ["exchange.codec=uint8", "optimizer.lr=0.00001"]
    runs = []
    for name, bound in (("off", "null"), ("zero", "0.0")):
        run(tmp_path / name, *settings, f"exchange.skip_below={bound}")
        runs.append(metrics.read(tmp_path / name / "metrics.h5"))
    off, zero = runs
    for name in off.arrays:
        if name not in (*metrics.TIMINGS, "bytes_sent", "bytes_received"):
            assert off[name].tobytes() == zero[name].tobytes(), name
    assert (zero["bytes_sent"][1:] < off["bytes_sent"][1:]).all()
    facts = summary.summarise(load_run(tmp_path / "zero")).facts
    assert facts["rows not sent"] == "rows within 0 of the neighbours' copies"
    assert zero["bytes_sent"].sum(axis=1).tolist() == zero["bytes_received"].sum(axis=1).tolist()
