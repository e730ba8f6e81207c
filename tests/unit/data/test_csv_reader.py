"""Tables of a CSV file: features by hand, columns and cells that do not fit, each refused in one line."""

import numpy as np
import pytest

from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.statistics import training_rows
from fedh2l_mpi.errors import UserError

TRAIN = "label,age,colour,id\n" + "".join(
    f"{label},{age},{colour},x{age}\n"
    for age, (label, colour) in enumerate([("yes", "red"), ("no", "blue"), ("no", "red"), ("yes", "green")] * 3)
)
TEST = 'id,colour,age,label\ny1,"yel\nlow",20,no\ny2,red,21,yes\n'


def opened(root, **keys):
    return open_source(DataConfig(name="csv", root=str(root), **keys))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    # A byte-order mark, and lines as Windows ends them.
    (tmp_path / "test.csv").write_bytes(b"\xef\xbb\xbf" + TEST.replace("\n", "\r\n").encode())
    return tmp_path


def test_numbers_are_standardised_and_texts_are_one_feature_per_value_of_the_training_rows(folder):
    source = opened(folder, drop=("id",))
    assert str(source.form) == "vectors of 4"
    assert source.class_names == ("no", "yes")
    # age, then blue, green, red. The ages are 0 to 11: mean 5.5, variance (12^2 - 1) / 12.
    assert source.mean == pytest.approx((5.5, 0, 0, 0))
    assert source.std == pytest.approx((np.sqrt(143 / 12), 1, 1, 1))
    assert source.train.samples(np.array([3, 1])).tolist() == [[3, 0, 1, 0], [1, 1, 0, 0]]
    assert source.train.labels[:4].tolist() == [1, 0, 0, 1]
    # A colour that the training rows lack, over two lines, has zeros only.
    assert source.test.samples(np.arange(2)).tolist() == [[20, 0, 0, 0], [21, 0, 0, 1]]
    assert source.test.labels.tolist() == [0, 1]
    details = dict(source.details)
    assert details["columns used"] == "numbers: age; colour: one feature for each of 3 values"
    assert details["not used"] == "id (data.drop)"


def test_one_file_keeps_rows_for_testing_and_takes_its_statistics_and_values_from_the_others(tmp_path):
    rows = "".join(f"{index % 2};{index};{'rare' if index == 0 else 'usual'};d{index % 3}\n" for index in range(60))
    (tmp_path / "a.csv").write_text(f"target;x;kind;site\n{rows}")
    source = opened(tmp_path / "a.csv", label="target", domain="site", test_share=0.5)
    assert source.test is None
    assert source.domains.names == ("d0", "d1", "d2")
    assert source.class_names == ()
    trained = training_rows(source.train.labels, source.domains, 0.5)
    assert len(trained) == 30
    assert source.mean[0] == pytest.approx(trained.mean())
    assert source.form.shape == (3 if 0 in trained else 2,)


@pytest.mark.parametrize(("missing", "filled"), [("mean", 2.0), ("zero", 0.0)])
def test_empty_cells_are_filled_as_asked(tmp_path, missing, filled):
    (tmp_path / "train.csv").write_text("label,a,b,c\n0,1,u,\n1,,v,\n0,3,?,NA\n")
    (tmp_path / "test.csv").write_text("label,a,b,c\n0,nan,u,\n1,5,,2\n")
    source = opened(tmp_path, missing=missing)
    assert source.train.samples(np.arange(3)).tolist() == [[1, 1, 0], [filled, 0, 1], [3, 0, 0]]
    assert source.test.samples(np.arange(2)).tolist() == [[filled, 1, 0], [5, 0, 0]]
    assert dict(source.details)["not used"] == "c (empty)"
    with pytest.raises(UserError, match=r"line 2: column c has 3 empty cells. Fix: set data.missing to mean or zero"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("", {}, "is empty"),
        ("label,a\n", {}, "has a header, but no row"),
        ("label,a\n0,1\n1\n", {}, "line 3 has 1 cells, but the header has 2"),
        ("label,a,a\n0,1,2\n", {}, "two columns are called 'a'"),
        (",label,a\n0,1,2\n", {}, "column 1 has no name in the header.*index=False"),
        ("Label,a\n0,1\n", {}, "data.label: .* has no column 'label' .did you mean 'Label'.*It has Label, a"),
        ("label,a\n0,1\n1,2\n", {"domain": "site"}, "data.domain: .* has no column 'site'"),
        ("label,a\n0,1\n1,2\n", {"drop": ("b",)}, "data.drop: .* has no column 'b'"),
        ("label\n0\n1\n", {}, "has no column of features"),
        ("label,a\n0,1\n,2\n", {}, "line 3: column label is empty"),
        ("label,a\n0,1\n0,2\n", {}, "column label has 1 different values"),
        ("label,a\n0,1\n1,2\n0,3\n1,tow\n", {}, "column a: line 5 has 'tow', but 3 cells are numbers"),
        ("label,a\n0,1\n1,1e39\n", {}, "line 3: column a has '1e39'. It must be a number of 32 bits"),
        ("label,a\n" + "".join(f"{i % 2},t{i}\n" for i in range(1002)), {}, "more than 1,000 different texts"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", {}, "is no UTF-8 text .byte 0x89"),
        (b"label,a\n0,\x00\n", {}, "is no text, because it has bytes of value 0"),
        ("label,a\n0," + "x" * 200_000 + "\n", {}, "cannot be read as CSV: field larger than field limit"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, content, keys, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        opened(path, **keys)
    assert "\n" not in str(refused.value)


def test_a_test_file_with_other_columns_or_classes_or_a_folder_without_a_training_file_is_refused(folder):
    (folder / "test.csv").write_text("label,age,colour\nno,1,red\n")
    with pytest.raises(UserError, match="its columns differ from those of train.csv in 'id'"):
        opened(folder)
    (folder / "test.csv").write_text("label,age,colour,id\nmaybe,1,red,x1\n")
    with pytest.raises(UserError, match=r"test.csv: column label: row 0 .* has 'maybe', which does not occur in"):
        opened(folder, drop=("id",))
    (folder / "train.csv").unlink()
    with pytest.raises(UserError, match="has no train.csv"):
        opened(folder)
    with pytest.raises(UserError, match="there is no file .*nowhere.csv. It must be one CSV file"):
        opened(folder / "nowhere.csv")
