"""Codecs: sizes by arithmetic, errors within their bounds, posteriors that stay posteriors."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import ArraySpec, Exchange, codecs
from fedh2l_mpi.exchange.array_spec import ROW_SUM_TOLERANCE
from fedh2l_mpi.exchange.message import Message
from fedh2l_mpi.exchange.row_skipping import WholeRows
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph

ALL = [
    ("float32", None), ("float16", None), ("bfloat16", None), ("uint8", None), ("top_k", 1), ("top_k", 2), ("top_k", 3),
]  # fmt: skip


def spec(codec: str, top_k: int | None, rows: int, columns: int) -> ArraySpec:
    array = ArraySpec("posteriors", rows, columns, sums_to_one=True)
    return array.coded(ExchangeConfig(codec=codec, top_k=top_k))


def hard_rows(classes: int, seed: int = 0) -> np.ndarray:
    """Posteriors of every kind, each as far from a sum of 1 as may be sent, too."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(60, classes)) * np.repeat([0.0, 0.1, 1.0, 5.0, 20.0, 200.0], 10)[:, None]
    rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    one_hot = np.eye(classes)[draw.integers(classes, size=4)]
    even_in_half = np.tile(np.arange(classes) < (classes + 1) // 2, (1, 1))
    tiny = np.full((4, classes), [[1e-45], [1e-30], [1e-8], [1e-5]])
    tiny[:, -1] = 1.0
    ties = np.tile(np.arange(classes) % 2 + 1.0, (1, 1))
    rows = np.concatenate([rows, one_hot, even_in_half, tiny, ties])
    rows /= rows.sum(axis=1, keepdims=True)
    scaled = [rows * scale for scale in (1.0, 1 - 0.99 * ROW_SUM_TOLERANCE, 1 + 0.99 * ROW_SUM_TOLERANCE)]
    return np.concatenate(scaled).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3, 10, 65, 256, 257, 1000])
@pytest.mark.parametrize(("name", "k"), ALL)
def test_whatever_may_be_sent_arrives_as_posteriors_within_the_bound_that_is_told(name, k, classes):
    rows = hard_rows(classes)
    array = spec(name, min(k, classes) if k else None, *rows.shape)
    array.check(rows[None], [0])
    encoded = array.encode(rows, 0)
    assert (encoded.dtype, encoded.ndim, encoded.flags.c_contiguous) == (np.uint8, 1, True)
    assert encoded.nbytes == array.codec.encoded_bytes(*rows.shape) == array.message_bytes() - 52
    got = array.decode(encoded)
    assert (got.dtype, got.shape) == (np.float32, rows.shape)
    array.check(got[None], [0])
    exact = rows.astype(np.float64) / rows.sum(axis=1, dtype=np.float64, keepdims=True)
    if name == "float32":
        assert np.array_equal(got, rows)
        return
    assert np.abs(got.sum(axis=1, dtype=np.float64) - 1).max() < 1e-6
    distance = np.abs(got - exact).sum(axis=1) / 2
    bound = array.codec.tv_bound(classes)
    if name == "top_k":
        not_kept = np.sort(exact, axis=1)[:, : classes - array.codec.k].sum(axis=1)
        assert (not_kept <= 1 - array.codec.k / classes + 1e-6).all()
        bound = not_kept + 2.0**-11 + array.codec.k * 2.0**-25
    # Sums that differ from 1 by a thousandth scale what is absolute in a bound; float32 rounds at the end.
    assert (distance <= 1.002 * bound + classes * 2.0**-24).all()
    assert np.array_equal(got, array.decode(array.encode(rows.copy(), 0)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("name", "k"), ALL[1:])
def test_random_arrays_of_random_shapes_keep_the_bound(name, k, seed):
    draw = np.random.default_rng(seed)
    classes = int(draw.integers(3, 400))
    rows = draw.dirichlet(np.full(classes, 10.0 ** draw.uniform(-2, 1)), size=int(draw.integers(1, 40)))
    # dirichlet with small concentrations may give rows of NaN
    rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float32)
    array = spec(name, k, max(1, len(rows)), classes)
    got = array.decode(array.encode(rows, 0)) if len(rows) else rows
    array.check(got[None], [0])
    distance = np.abs(got - rows.astype(np.float64)).sum(axis=1) / 2
    assert (distance <= 1.002 * array.codec.tv_bound(classes) + classes * 2.0**-24).all()


def test_uint8_keeps_every_ratio_and_raises_what_is_under_its_floor():
    codec = codecs.build(ExchangeConfig(codec="uint8"))
    step, floor = codec.STEP, codec.FLOOR
    assert float(Decimal(-step).exp()) == codec.RATIO
    assert floor == pytest.approx(math.exp(-255 * step), rel=1e-12)
    p = np.exp(np.linspace(math.log(floor), 0, 10_001)).astype(np.float32)[None]
    q = codec.decode(codec.encode(p), *p.shape)
    assert np.abs(np.log(q / p.astype(np.float64))).max() <= step / 2 * 1.001
    below = np.array([[0.0, 1e-45, 1e-9, 1.001]], dtype=np.float32)
    assert codec.encode(below).tolist() == [255, 255, 255, 0]
    assert codec.decode(codec.encode(below), 1, 4)[0, 0] == pytest.approx(floor)


def test_top_k_by_hand():
    array = spec("top_k", 2, 2, 5)
    rows = np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625], [0.2, 0.2, 0.2, 0.2, 0.2]], dtype=np.float32)
    encoded = array.encode(rows, 0)
    # Two halves and two classes of a byte for each row; of equals the lower classes.
    assert encoded.nbytes == 2 * 2 * (2 + 1)
    assert encoded[8:].tolist() == [0, 1, 0, 1]
    got = array.decode(encoded)
    assert got[0] == pytest.approx([0.5, 0.25, 0.25 / 3, 0.25 / 3, 0.25 / 3], rel=1e-6)
    assert got[1] == pytest.approx([0.2] * 5, rel=1e-3)
    encoded[-1] = 7
    with pytest.raises(ValueError, match="got class 7. Allowed: 0 to 4"):
        array.decode(encoded)
    assert [codecs.TopK(2).encoded_bytes(3, columns) for columns in (256, 257, 65_536, 65_537)] == [18, 24, 24, 36]


def test_half_precisions_are_those_of_torch_for_every_kind_of_number():
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values, np.float32([0.0, -0.0, 1e-45, 65504.0, -65504.0, 1 + 2**-8, 1 + 3 * 2**-8])])
    for name, kind in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        codec = codecs.build(ExchangeConfig(codec=name))
        fitting = values[np.abs(values) <= codec.largest][None]
        assert codec.largest == torch.finfo(kind).max
        assert fitting.shape[1] > 10_000
        expected = torch.from_numpy(fitting).to(kind).float().numpy()
        assert np.array_equal(codec.decode(codec.encode(fitting), *fitting.shape), expected)


def test_rows_of_which_nothing_is_left_become_even():
    assert codecs.as_distributions(np.zeros((2, 4), np.float32)).tolist() == [[0.25] * 4] * 2


@pytest.mark.parametrize(
    ("codec", "value", "says"),
    [("float16", 65_536.0, "to 65504, but logits of participant 1, row 2, contain 65536. Fix: use float32 or bfloat16"),
     ("float16", -7e4, "contain -70000"), ("bfloat16", 3.4e38, r"up to 3.38953e+38, .* use float32\.$")],
)  # fmt: skip
def test_a_number_that_is_too_large_is_refused_and_never_an_infinity(codec, value, says):
    array = ArraySpec("logits", 3, 2).coded(ExchangeConfig(codec=codec))
    exchange = Exchange(World(None), Hosting(2, 1), array, 1.0)
    published = {index: torch.zeros(3, 2) for index in range(2)}
    published[1][2, 1] = value
    with pytest.raises(UserError, match=f"exchange.codec: got '{codec}'.*{says}".replace("+38", r"\+38")):
        exchange.start(0, Graph(2, [(0, 1)]), published)


def test_codecs_of_posteriors_are_for_posteriors():
    with pytest.raises(
        UserError, match="exchange.codec: got 'uint8', .* exchanges logits.* float32, float16, bfloat16"
    ):
        ArraySpec("logits", 3, 2).coded(ExchangeConfig(codec="uint8"))
    with pytest.raises(UserError, match="exchange.top_k: got 3, but there are 2 classes. Allowed: 1 to 2"):
        spec("top_k", 3, 3, 2)


@pytest.mark.parametrize(("name", "k"), ALL)
def test_what_is_handed_over_on_a_rank_is_what_a_message_would_have_brought(name, k):
    array, graph = spec(name, k, 7, 10), Graph(2, [(0, 1)])
    published = {i: torch.randn(7, 10, generator=torch.Generator().manual_seed(i)).softmax(dim=1) for i in range(2)}
    exchange = Exchange(World(None), Hosting(2, 1), array, 1.0)
    exchange.start(3, graph, published)
    theirs = exchange.finish()
    sent = Message([0, 1], array)
    sent.fill({index: array.encode(published[index].numpy(), index) for index in range(2)})
    sent.seal(3)
    for index, arrived in enumerate(sent.open(3, sent.buffer.nbytes, WholeRows(sent.array))):
        assert np.array_equal(theirs[1 - index][0].numpy(), arrived)
    assert exchange.ledger.sent == dict.fromkeys((0, 1), array.message_bytes())
    other = Message([0, 1], spec("bfloat16" if name != "bfloat16" else "float16", None, 7, 10))
    room = min(sent.buffer.nbytes, other.buffer.nbytes)
    other.buffer[:room] = sent.buffer[:room]
    with pytest.raises(RuntimeError, match=f"codec: got '{name}', expected 'b?float16'"):
        other.open(3, sent.buffer.nbytes, WholeRows(other.array))


def test_float32_is_passed_on_without_a_copy():
    array = spec("float32", None, 3, 2)
    values = np.full((3, 2), 0.5, np.float32)
    assert np.shares_memory(array.decode(array.encode(values, 0)), values)
