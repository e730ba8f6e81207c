"""CIFAR's pickles are read without executing anything in them."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, size=(60, 3072), dtype=np.uint8)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def batch(first, count, key=b"labels", classes=10):
    labels = [int(index % classes) for index in range(first, first + count)]
    return {b"data": IMAGES[first : first + count], key: labels, b"batch_label": b"some"}


def write(path, content, protocol=2):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10 with 10 images in each of its six files."""
    own = tmp_path / "cifar-10-batches-py"
    own.mkdir()
    for number in range(5):
        write(own / f"data_batch_{number + 1}", batch(10 * number, 10))
    write(own / "test_batch", batch(50, 10))
    write(own / "batches.meta", {b"label_names": [f"class{label}".encode() for label in range(10)]})
    return tmp_path


def opened(root, name="cifar10"):
    return open_source(DataConfig(name=name, root=str(root)))


def test_images_come_in_the_order_asked_for_from_all_files(folder):
    source = opened(folder)
    assert str(source.form) == "images of 3 x 32 x 32"
    assert source.is_compact
    assert source.class_names[9] == "class9"
    rows = np.array([49, 0, 10, 9, 0])
    assert np.array_equal(source.train.samples(rows), IMAGES[rows].reshape(-1, 3, 32, 32))
    assert np.array_equal(source.test.samples(np.array([3])), IMAGES[53:54].reshape(-1, 3, 32, 32))
    for table in source.tables:
        table.verify()


def test_cifar100_has_fine_labels(tmp_path):
    write(tmp_path / "train", batch(0, 40, b"fine_labels", 100))
    write(tmp_path / "test", batch(40, 20, b"fine_labels", 100))
    source = opened(tmp_path, "cifar100")
    assert (source.classes, source.train.labels.tolist()) == (100, list(range(40)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_batch_2", Bomb(), "data_batch_2: is refused: it asks for .*mkdir, which could execute code"),
        ("data_batch_1", {b"data": IMAGES[:1], b"labels": [0], b"x": Bomb()}, "which could execute code"),
        ("batches.meta", pickle.dumps(Bomb()), "which could execute code"),
        ("data_batch_3", b"\x80\x02cbuiltins\neval\n.", "it asks for .*builtin.*eval"),
        ("data_batch_3", b"no pickle", "data_batch_3: is refused"),
        ("data_batch_3", pickle.dumps(batch(0, 10), 2)[:-900], "data_batch_3: is refused"),
        ("data_batch_3", [1], "is no file of this data set: it has a list"),
        ("data_batch_3", {b"data": IMAGES[:2], b"labels": [0]}, "labels must be a whole number from 0 to 9"),
        ("data_batch_3", {b"data": IMAGES[:1], b"labels": [10]}, "labels must be a whole number from 0 to 9"),
        ("data_batch_3", {b"data": IMAGES[:1].astype(float), b"labels": [0]}, "array of unsigned bytes with 3072"),
        ("data_batch_3", {b"data": IMAGES[:1, 1:], b"labels": [0]}, "array of unsigned bytes with 3072"),
        ("data_batch_3", {b"labels": [0]}, "array of unsigned bytes with 3072"),
        ("batches.meta", {b"label_names": [b"a"]}, "label_names must be 10 names"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line_and_nothing_in_it_runs(
    folder, monkeypatch, file, content, message
):
    monkeypatch.chdir(folder)
    write(folder / "cifar-10-batches-py" / file, content)
    with pytest.raises(UserError, match=message) as refused:
        opened(folder)
    assert "\n" not in str(refused.value)
    assert not (folder / "executed").exists()


def test_a_command_refuses_a_pickle_with_code_with_exit_code_2(folder):
    write(folder / "cifar-10-batches-py" / "test_batch", Bomb())
    words = ["--check", "--set", "data.name=cifar10", "--set", f"data.root={folder}"]
    command = [sys.executable, "-m", "fedh2l_mpi", *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "which could execute code" in ended.stderr
    assert not (folder / "executed").exists()


def test_a_missing_folder_or_file_says_where_to_get_the_data(folder):
    (folder / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UserError, match=r"has no test_batch.*www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"):
        opened(folder)
    (folder / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.tar.gz is not a folder. Unpack it first"):
        opened(folder / "a.tar.gz")
