"""Data in one NumPy file: any form, read by row, never executed, refused in one line."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError

DRAW = np.random.default_rng(0)
VECTORS = DRAW.normal(3.0, 2.0, size=(60, 5))
LABELS = np.arange(60) % 3


def arrays(x=VECTORS, y=LABELS, **others):
    """A training part of 40 rows and a test part of 20."""
    parts = {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:]}
    return {name: value for name, value in {**parts, **others}.items() if value is not None}


def opened(path, **keys):
    return open_source(DataConfig(name="npz", root=str(path), **keys))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("shape", "dtype", "keys", "words"),
    [
        ((5,), "float64", {}, "vectors of 5"),
        ((5,), "int16", {}, "vectors of 5"),
        ((7, 6), "uint8", {}, "images of 1 x 7 x 6"),
        ((7, 6), "float32", {}, "series of 7 x 6"),
        ((7, 6), "float32", {"channels": "last"}, "series of 6 x 7"),
        ((7, 6, 3), "uint8", {}, "images of 3 x 7 x 6"),
        ((3, 7, 6), "float16", {}, "images of 3 x 7 x 6"),
        ((7, 6, 2), "uint8", {"channels": "last"}, "images of 2 x 7 x 6"),
        ((9,), "uint16", {"samples": "tokens"}, "sequences of token ids of 9 out of 200"),
    ],
)
def test_rows_come_in_the_order_asked_for_in_the_form_of_the_arrays(tmp_path, save, shape, dtype, keys, words):
    x = DRAW.integers(0, 200, size=(60, *shape)).astype(dtype)
    x[0] = 199
    save(tmp_path / "a.npz", **arrays(x))
    source = opened(tmp_path / "a.npz", **keys)
    assert str(source.form) == words
    if words.startswith("images of 1 "):
        x = x[:, None]
    elif keys.get("channels") == "last" or shape == (7, 6, 3):
        x = np.moveaxis(x, -1, 1)
    rows, expected = np.array([39, 2, 2, 0, 17, 16]), x[:40]
    assert np.array_equal(source.train.samples(rows), expected[rows])
    assert np.array_equal(source.test.samples(rows % 20), x[40:][rows % 20])
    for table in source.tables:
        table.verify()
    if source.form.kind != "tokens":
        axes = (0, *range(2, expected.ndim))
        assert source.mean == pytest.approx((expected / source.full_scale).mean(axis=axes, dtype=np.float64))
        assert source.std == pytest.approx((expected / source.full_scale).std(axis=axes, dtype=np.float64))


def test_labels_and_domains_are_numbered_in_their_order_and_test_rows_are_kept_without_a_test_part(tmp_path):
    names = np.array(["cat", "dog", "ant"])
    np.savez(tmp_path / "a.npz", x=VECTORS, y=names[LABELS], domain=np.arange(60) // 30 * 10 + 9)
    source = opened(tmp_path / "a.npz")
    assert source.class_names == ("ant", "cat", "dog")
    assert source.domains.names == ("9", "19")
    assert [source.class_names[label] for label in source.train.labels] == names[LABELS].tolist()
    assert source.test is None
    # The mean is that of 0.8 of the rows, those for training.
    assert source.mean != pytest.approx(VECTORS.mean(axis=0))
    assert source.mean == pytest.approx(VECTORS.mean(axis=0), abs=0.6)
    np.savez(tmp_path / "b.npz", **arrays(y=LABELS * 2.0 - 2))
    assert opened(tmp_path / "b.npz").class_names == ("-2", "0", "2")
    np.savez(tmp_path / "c.npz", **arrays(y=LABELS[:, None]))
    assert opened(tmp_path / "c.npz").class_names == ()


def test_a_table_of_a_compressed_array_reads_its_stream_once_for_rows_in_order(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    source, opening = opened(tmp_path / "a.npz"), []
    theirs = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *words, **keys: opening.append(words) or theirs(*words, **keys))
    for first in range(0, 40, 10):
        rows = np.arange(first, first + 10)
        assert np.array_equal(source.train.samples(rows), VECTORS[rows].astype(np.float32))
    # A piece holds the whole array, so the stream is opened again for each of these few.
    assert len(opening) == 4
    monkeypatch.setattr("fedh2l_mpi.data.npz_reader.PIECE_BYTES", 5 * 8 * 10)
    opening.clear()
    for first in range(0, 40, 10):
        source.train.samples(np.arange(first, first + 10))
    assert len(opening) == 1


class Bomb:
    """An object whose pickle makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def member(header: bytes, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def objects() -> bytes:
    return member(b"{'descr': '|O', 'fortran_order': False, 'shape': (40,), }\n", pickle.dumps(Bomb()))


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


NAN = np.where(np.arange(60)[:, None] == 7, np.nan, VECTORS)
HUGE = member(b"{'descr': '<f8', 'fortran_order': False, 'shape': (40, 10000000), }\n", b"\0" * 64)


@pytest.mark.parametrize(
    ("given", "keys", "message"),
    [
        (b"no zip", {}, "cannot be read as a .npz file: File is not a zip file"),
        ({"X": VECTORS, "Y": LABELS}, {}, "has X, Y.*did you mean 'x'"),
        (arrays(y_test=None), {}, "has x_train, y_train, x_test, but not y_test. Without a test part"),
        ({"x": VECTORS}, {}, "has x, but not y"),
        (arrays(y_train=LABELS[:39]), {}, "x_train has 40 rows, but y_train has 39"),
        (arrays(domain_train=LABELS[:40]), {}, "has domain_train, but not domain_test"),
        (arrays(x_test=VECTORS[40:, :4]), {}, r"samples of x_train and x_test differ: float64 \(5,\) and float64 \(4,"),
        (arrays(x=NAN), {}, r"x_train: row 7 \(from 0\) has the value nan"),
        (arrays(y=LABELS + 0.5), {}, r"y_train: row 0 \(from 0\) has 0.5. Allowed: whole numbers"),
        (arrays(y=LABELS * 0), {}, "y_train has 1 different values. Allowed: 2 to 10,000"),
        (arrays(y_test=np.full(20, 3)), {}, r"y_test: row 0 \(from 0\) has '3', which does not occur"),
        (arrays(y=LABELS.astype(complex)), {}, "y_train is of type complex128"),
        (arrays(y_train=np.ones((40, 2))), {}, r"y_train has the shape \(40, 2\). Allowed: one value for each row"),
        (arrays(x=VECTORS.reshape(60, 5, 1, 1, 1)), {}, r"x_train has samples of shape \(5, 1, 1, 1\)"),
        (arrays(x=VECTORS > 3), {}, "x_train is of type bool. Allowed: integers and floats"),
        (arrays(), {"samples": "tokens"}, "x_train is of type float64, but data.samples is tokens"),
        (arrays(x=-np.ones((60, 4), int)), {"samples": "tokens"}, r"x_train: row 0 \(from 0\) has a negative token id"),
        (arrays(), {"test_share": 0.5}, "data.test_share: got 0.5, but npz has its own test part of 20"),
        (arrays(x=VECTORS[:0]), {}, r"x_train.npy has the shape \(0, 5\). It must have at least one row"),
        (arrays(x_train=objects()), {}, "x_train.npy has Python objects .type object.*can execute code"),
        (arrays(x_train=HUGE), {}, "its header claims 3200000000 bytes of .40, 10000000. float64, but it has 64"),
        (arrays(x_train=member(b"__import__('os').mkdir('executed')")), {}, "x_train.npy is damaged: its header is"),
        (arrays(x_train=b"text"), {}, "x_train.npy is no NumPy array"),
        (arrays(x_train=npy(VECTORS[:40])[:-9]), {}, "its header claims 1600 bytes .* but it has 1591"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line_and_nothing_in_it_runs(
    tmp_path, monkeypatch, given, keys, message
):
    monkeypatch.chdir(tmp_path)
    if isinstance(given, bytes):
        (tmp_path / "a.npz").write_bytes(given)
    else:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
            for name, value in given.items():
                file.writestr(f"{name}.npy", value if isinstance(value, bytes) else npy(value))
    with pytest.raises(UserError, match=message) as refused:
        opened(tmp_path / "a.npz", **keys)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_a_compressed_file_that_claims_more_than_it_can_hold_is_refused_before_it_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        info = file.getinfo("x_train.npy")
    # The sizes in the central directory are those that a reader believes; the header of the array must agree.
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (3_000_000_000).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"its header claims {info.file_size - 128} bytes"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_found_and_fortran_order_is_read_where_rows_can_be_sought(tmp_path, save):
    save(tmp_path / "f.npz", **arrays(x_train=np.asfortranarray(VECTORS[:40])))
    if save is np.savez:
        rows = np.array([30, 1])
        assert np.array_equal(opened(tmp_path / "f.npz").train.samples(rows), VECTORS[rows].astype(np.float32))
    else:
        with pytest.raises(UserError, match="compressed in Fortran order"):
            opened(tmp_path / "f.npz")
    save(tmp_path / "a.npz", **arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[400] ^= 1
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(UserError, match="cannot be read.*Bad CRC-32"):
        opened(tmp_path / "a.npz").train.verify()
