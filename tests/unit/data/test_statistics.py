"""Mean and deviation in pieces, against NumPy's of the whole array."""

import numpy as np
import pytest

from fedh2l_mpi.data import statistics
from fedh2l_mpi.data.sources import ArrayTable, NaturalDomains
from fedh2l_mpi.sample_form import SampleForm


@pytest.mark.parametrize("piece", [1, 64, 1 << 20])
@pytest.mark.parametrize(("kind", "shape"), [("image", (3, 4, 5)), ("series", (2, 7)), ("vector", (6,))])
def test_they_are_those_of_the_whole_array_of_the_rows(kind, shape, piece, monkeypatch):
    monkeypatch.setattr(statistics, "PIECE_VALUES", piece)
    values = np.random.default_rng(0).normal(1e4, 3.0, (50, *shape)).astype(np.float32)
    values[:, 0] = 7.0
    rows = np.arange(3, 40)
    table = ArrayTable(np.zeros(50, dtype=np.int64), values)
    mean, deviation = statistics.of_rows(table, rows, SampleForm(kind, shape), full_scale=2.0)
    whole, axes = values[rows].astype(np.float64) / 2.0, (0, *range(2, values.ndim))
    np.testing.assert_allclose(mean, whole.mean(axis=axes), rtol=1e-12)
    expected = whole.std(axis=axes)
    # A constant channel is only shifted.
    expected[0] = 1.0
    np.testing.assert_allclose(deviation, expected, rtol=1e-9)


def test_rows_for_testing_do_not_count():
    labels, domains = np.arange(40) % 2, NaturalDomains(("a", "b"), np.arange(40) // 20)
    assert statistics.training_rows(labels, domains, None).tolist() == list(range(40))
    rows = statistics.training_rows(labels, domains, 0.2)
    assert np.bincount(labels[rows] + 2 * domains.of_row[rows]).tolist() == [8, 8, 8, 8]
