"""Packs as they are read: rows in any order, damaged files, and a run on a pack."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.photographs import arrays, settings
from PIL import Image
from sklearn.datasets import load_digits

from fedh2l_mpi import api, metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import DataConfig
from fedh2l_mpi.data import pack_writer
from fedh2l_mpi.data.pack_reader import digest, open_pack
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World


def test_rows_come_in_the_order_asked_for(packed):
    table = open_pack(str(packed)).train
    everything = arrays(packed)["image"]
    for rows in ([3, 4, 5], [109, 0, 7, 8, 9, 7, 8, 2], [5], []):
        rows = np.array(rows, dtype=np.int64)
        assert np.array_equal(table.samples(rows), everything[rows])


def test_a_missing_pack_says_how_to_make_one(tmp_path, tree, monkeypatch):
    monkeypatch.delenv("FEDH2L_DATA", raising=False)
    with pytest.raises(UserError, match=r"data.root: got null, and FEDH2L_DATA is not set\. .*fedh2l_mpi pack FOLDER"):
        open_source(DataConfig(name="pack"))
    with pytest.raises(UserError, match=r"PACS is a folder\. Make a pack of it: python -m fedh2l_mpi pack"):
        open_source(DataConfig(name="pack", root=str(tree)))
    monkeypatch.setenv("FEDH2L_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"\$FEDH2L_DATA/pack.h5\): there is no file {tmp_path}/pack.h5"):
        open_source(DataConfig(name="pack"))
    pack_writer.pack(tree, tmp_path / "pack.h5", side=8, workers=1)
    assert open_source(DataConfig(name="pack")).form.shape == (3, 8, 8)


def test_a_foreign_or_damaged_file_is_refused(packed, tmp_path):
    def says(change: object, content: bytes | None = None) -> str:
        path = tmp_path / "changed.h5"
        path.write_bytes(packed.read_bytes() if content is None else content)
        if change is not None:
            with h5py.File(path, "r+") as file:
                change(file)
        with pytest.raises(UserError, match="changed.h5: ") as error:
            open_pack(str(path)).train.verify()
        return str(error.value)

    whole = packed.read_bytes()
    assert "cannot be read as a pack" in says(None, b"no HDF5")
    assert "truncated" in says(None, whole[: len(whole) // 2])
    assert "not a pack: it has no attribute `format`" in says(lambda file: file.attrs.pop("format"))
    assert "its format is 'fedh2l_mpi metrics'" in says(
        lambda file: file.attrs.create("format", np.bytes_(metrics.FORMAT.encode()))
    )
    assert "has schema 3, but this version reads schema 1 and 2" in says(
        lambda file: file.attrs.modify("schema_version", 3)
    )
    assert "the pack is damaged: it has no label" in says(lambda file: file.pop("label"))
    assert "its digest does not match" in says(lambda file: file["label"].write_direct(np.full(110, 2)))
    assert "incomplete or damaged" in says(lambda file: file.attrs.pop("digest"))

    def sealed(change: Callable[[h5py.File], object]) -> str:
        def change_and_seal(file: h5py.File) -> None:
            change(file)
            file.attrs["digest"] = np.bytes_(digest(file).encode())

        return says(change_and_seal)

    def replace(name: str, **array: object) -> str:
        return sealed(lambda file: (file.pop(name), file.create_dataset(name, **array)))

    # Another program can make a digest, too.
    assert "label has a number that is no index into class_name" in replace("label", data=np.full(110, 3))
    assert "domain has a number that is no index into domain_name" in replace("domain", data=np.full(110, -1))
    assert "label is int64 (109,)" in replace("label", data=np.zeros(109, np.int64))
    assert "image is uint8 (110, 2, 16, 16)" in replace("image", data=np.zeros((110, 2, 16, 16), np.uint8))
    outside = [(str(packed), 0, 110 * 8)]
    assert "stored outside the file" in replace("label", shape=(110,), dtype="i8", external=outside)
    assert "declares 800,000,000,000 bytes" in says(
        lambda file: (file.pop("label"), file.create_dataset("label", (10**11,), "i8", chunks=(1000,)))
    )
    assert "it is a link to another place" in says(
        lambda file: (file.pop("label"), file.__setitem__("label", h5py.ExternalLink(str(packed), "domain")))
    )
    where = whole.index(arrays(packed)["image"][57].tobytes())
    flipped = whole[: where + 9] + bytes([whole[where + 9] ^ 1]) + whole[where + 10 :]
    assert "the image in row 57 is damaged" in says(None, flipped)


def test_check_tells_of_a_pack(packed, capsys):
    words = ["--check", "--set", "data.name=pack", "--set", f"data.root={packed}", "--set", "models=[mlp, cnn]"]
    commands.execute(commands.parse(words), World(None))
    said = capsys.readouterr().out
    assert "pack, images of 3 x 16 x 16, 3 classes, 4 domains, domains" in said
    assert "art_painting, cartoon, photo, sketch" in said
    assert re.search(r"test samples +4 to 6 in each domain", said)


def write_pngs(root: Path, domain: str, images: np.ndarray, labels: np.ndarray) -> None:
    for label in range(10):
        (root / domain / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(root / domain / str(label) / f"{number:04d}.png")


def test_two_natural_domains_of_digits_are_learned(mnist, tmp_path):

    small = load_digits()
    write_pngs(tmp_path / "tree", "eight_pixels", (small.images[:500] * 15.9375).astype(np.uint8), small.target[:500])
    pixels = gzip.decompress((mnist / "train-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 500 * 784]
    labels = gzip.decompress((mnist / "train-labels-idx1-ubyte.gz").read_bytes())[8 : 8 + 500]
    write_pngs(
        tmp_path / "tree", "mnist", np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)
    )
    pack_writer.pack(tmp_path / "tree", tmp_path / "digits.h5", side=28, grey=True, workers=1)
    given = settings(tmp_path / "digits.h5", "participants=3", "rounds=8", "models=[mlp, lenet5]", "seed_set.share=0.2")
    directory = RunDirectory(tmp_path / "run")
    api.assemble(given, World(None), RunReservation(directory)).run()
    result = metrics.read(directory.metrics)
    assert [name.decode() for name in result["domain_name"]] == ["eight_pixels", "mnist"]
    assert result["own_domain"].tolist() == [0, 1, 0]
    # Chance is 0.1; every participant knows the other's domain from the seed set and from its neighbours only.
    assert result["accuracy_all"][-1].min() > 0.6
    assert result["accuracy"][-1].min() > 0.4
