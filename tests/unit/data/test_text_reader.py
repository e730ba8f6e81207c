"""Texts as token ids: ids by hand, from CSV and JSON Lines, and files that do not fit."""

import json

import numpy as np
import pytest

from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError

TRAIN = [("The cat, the CAT sat.", "animal"), ("A zebra sat.", "animal"), ("Ships sail; the sea", "sea")]
TEST = [("the unknown sea", "sea"), ("", "animal")]


def opened(root, **keys):
    return open_source(DataConfig(name="text", root=str(root), **keys))


@pytest.fixture(params=["csv", "jsonl"])
def folder(tmp_path, request):
    for part, rows in (("train", TRAIN), ("test", TEST)):
        if request.param == "csv":
            text = "label,text\n" + "".join(f'{label},"{words}"\n' for words, label in rows)
        else:
            text = "\n".join(json.dumps({"label": label, "text": words, "more": [1]}) for words, label in rows)
        (tmp_path / f"{part}.{request.param}").write_text(text)
    return tmp_path


def test_the_most_frequent_words_of_the_training_texts_have_ids(folder):
    source = opened(folder, vocabulary=5, length=7)
    assert str(source.form) == "sequences of token ids of 7 out of 7"
    assert source.class_names == ("animal", "sea")
    # the: 3; ".", cat, sat: 2 each; "," and others: 1 each, of which "," is the first.
    the, dot, cat, sat, comma = 2, 3, 4, 5, 6
    assert source.train.samples(np.arange(3)).tolist() == [
        [the, cat, comma, the, cat, sat, dot],
        [1, 1, sat, dot, 0, 0, 0],
        [1, 1, 1, the, 1, 0, 0],
    ]
    assert source.test.samples(np.arange(2)).tolist() == [[the, 1, 1, 0, 0, 0, 0], [0] * 7]
    details = dict(source.details)
    assert details["words"] == "5 have an id; 37.5% of the training tokens have none"
    assert details["length"] == "7 tokens; 1 of 3 texts have as many or more"


def test_a_long_text_is_cut_and_words_after_the_cut_have_no_id(folder):
    source = opened(folder, length=2)
    assert source.form.vocabulary == 2 + len({"the", "cat", "a", "zebra", "ships", "sail"})


def test_only_the_rows_for_training_give_the_words_and_names_of_columns_are_keys(tmp_path):
    rows = "".join(f"word{index} all,{index % 2},{'north' if index < 20 else 'south'}\n" for index in range(40))
    (tmp_path / "a.csv").write_text(f"review,stars,country\n{rows}")
    source = opened(tmp_path / "a.csv", text="review", label="stars", domain="country", test_share=0.2)
    assert source.domains.names == ("north", "south")
    assert source.form.vocabulary == 2 + 32 + 1
    assert (source.train.samples(np.arange(40))[:, 1] == 2).all()
    assert (source.train.samples(np.arange(40))[:, 0] == 1).sum() == 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,topic\na,b\n", "data.label: .* has no column 'label'"),
        ("a.csv", "text,label\n", "has no row of text"),
        ("a.csv", "text,label\na,\n", "line 2: column label is empty"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2 has no 'label'"),
        ("a.jsonl", '{"text": "a", "label": 1}\nb\n', "line 2 is no JSON object: Expecting value"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', r"line 2 is no JSON object, but \[1\]"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', r"line 1: label is \[1\]. It must be a text or a whole number"),
        ("a.jsonl", '{"a":' * 100_000, "line 1 is no JSON object"),
    ],
)
def test_texts_that_do_not_fit_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        opened(tmp_path / name)
    assert "\n" not in str(refused.value)
