"""Data sets that need no file: the tables of scikit-learn, digits as series, and sentences of a grammar."""

import time

import numpy as np
import pytest
from sklearn import datasets

from fedh2l_mpi.config import DataConfig, loading
from fedh2l_mpi.data import bundled
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.data.statistics import training_rows
from fedh2l_mpi.errors import UserError


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_a_table_is_scikit_learns_and_is_standardised_by_the_rows_for_training(name):
    source, theirs = open_source(DataConfig(name=name, test_share=0.3)), getattr(datasets, f"load_{name}")()
    assert source.train.labels.tolist() == theirs.target.tolist()
    assert source.class_names == tuple(theirs.target_names)
    assert np.array_equal(source.train.samples(np.arange(len(theirs.data))), theirs.data.astype(np.float32))
    rows = training_rows(theirs.target, None, 0.3)
    assert source.test is None
    assert source.mean == pytest.approx(theirs.data[rows].mean(axis=0), rel=1e-5)
    assert source.std == pytest.approx(theirs.data[rows].std(axis=0), rel=1e-4)


def test_digits_as_series_have_the_rows_of_pixels_as_channels():
    source, images = open_source(DataConfig(name="digits_series")), digits()
    rows = np.array([5, 0])
    assert source.form.kind == "series"
    assert np.array_equal(source.train.samples(rows), images.train.samples(rows)[:, 0])
    assert source.test.labels.tolist() == images.test.labels.tolist()


def test_the_grammars_sentences_are_made_quickly_and_alike_with_shared_words_and_words_of_a_dialect():
    bundled.grammar_text(0.2)
    began = time.process_time()
    source, again = bundled.grammar_text(0.2), bundled.grammar_text(0.2)
    assert time.process_time() - began < 2.0
    everything = np.arange(2400)
    ids = source.train.samples(everything)
    assert np.array_equal(ids, again.train.samples(everything))
    assert source.class_names == bundled.TOPICS
    assert set(source.domains.names) == set(bundled.DIALECTS)
    # 150 of each pair.
    assert np.unique(source.domains.of_row * 4 + source.train.labels, return_counts=True)[1].tolist() == [150] * 16
    in_domain = [set(np.unique(ids[source.domains.of_row == domain])) for domain in range(4)]
    # Padding, the shared nouns, verbs, openings, "and", "with" and the point.
    assert len(set.intersection(*in_domain)) == 1 + 6 + 5 + 5 + 3
    # 16 nouns and 4 adjectives of its own, and nothing unknown.
    assert all(
        len(one - set.union(*(set() if one is other else other for other in in_domain))) == 20 for one in in_domain
    )
    assert 1 not in ids


def test_a_data_set_that_needs_no_file_refuses_a_root():
    with pytest.raises(UserError, match="data.root: got '/data', but wine needs no file. Fix: set it to null"):
        loading.load(None, ["data.name=wine", "data.root=/data"])
