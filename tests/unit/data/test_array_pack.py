"""Packs of arrays and of folders in every layout: each row, each part, and each mistake."""

import re

import h5py
import numpy as np
import pytest
from PIL import Image

from fedh2l_mpi.cli import commands
from fedh2l_mpi.config.data_files import Npz
from fedh2l_mpi.config.loading import load
from fedh2l_mpi.data.array_pack import pack_arrays
from fedh2l_mpi.data.npz_reader import open_npz
from fedh2l_mpi.data.pack_reader import open_pack
from fedh2l_mpi.data.pack_writer import pack
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.world import World

N, M = 60, 12
Y = np.arange(N) % 3


def saved(path, x, **more):
    """Write an npz file with a test part."""
    np.savez(path, x_train=x, y_train=Y, x_test=x[:M] + 1, y_test=Y[:M], **more)
    return path


def values(*shape, dtype="f4"):
    return np.random.default_rng(0).integers(0, 99, (N, *shape)).astype(dtype)


def silent(done, total):
    assert 0 < done <= total == N + M


@pytest.mark.parametrize(
    "x",
    [values(7), values(2, 7), values(6, 7, 3, dtype="u1"), values(1, 6, 6), values(5, dtype="i8")],
    ids=["vectors", "series", "bytes", "images", "integers"],
)
@pytest.mark.parametrize("has_domains", [False, True])
def test_a_pack_of_an_npz_file_is_the_same_data(x, has_domains, tmp_path):
    domains = {"domain_train": Y % 2, "domain_test": Y[:M] % 2} if has_domains else {}
    path = saved(tmp_path / "a.npz", x, **domains)
    report = pack_arrays(str(path), tmp_path / "a.h5", silent).report()
    assert "60 samples for training, 12 for testing" in report
    before, packed = open_npz(Npz(name="npz", root=str(path))), open_pack(str(tmp_path / "a.h5"))
    assert (packed.form, packed.classes, packed.full_scale) == (before.form, before.classes, before.full_scale)
    np.testing.assert_array_equal(np.atleast_1d(packed.mean), np.atleast_1d(before.mean))
    np.testing.assert_array_equal(np.atleast_1d(packed.std), np.atleast_1d(before.std))
    for ours, theirs in zip(packed.tables, before.tables, strict=True):
        ours.verify()
        rows = np.array([3, 0, 3, 11])
        assert np.array_equal(ours.samples(rows), theirs.samples(rows))
        assert np.array_equal(ours.labels, theirs.labels)
    assert (packed.domains is None) == (not has_domains)
    if has_domains:
        assert packed.domains.names == before.domains.names
        assert np.array_equal(packed.domains.of_row, before.domains.of_row)
        assert np.array_equal(packed.domains.of_test_row, before.domains.of_test_row)
    # The digest is the content's, so a second pack has the same one.
    pack_arrays(str(path), tmp_path / "b.h5", silent)
    assert open_pack(str(tmp_path / "b.h5")).digest == packed.digest
    assert not list(tmp_path.glob("*partial*"))


def test_a_pack_of_a_function_keeps_names_tokens_and_has_no_test_part(tmp_path, monkeypatch, capsys):
    (tmp_path / "packed_data.py").write_text(
        "import numpy as np, fedh2l_mpi as fh\n"
        "def load():\n    x = np.arange(120).reshape(30, 4) % 50\n"
        "    return fh.DataSet(x, ['cat', 'ant', 'bee'] * 10, vocabulary=50, domain_train=['p', 'q'] * 15)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "tokens.h5"
    command = commands.parse(["pack", "packed_data:load", str(out), "--layout", "arrays"])
    assert commands.execute(command, World(None)) == 0
    assert "30 sequences of token ids of 4 out of 50, 3 classes" in capsys.readouterr().out
    source = open_pack(str(out))
    assert (source.class_names, source.domains.names, source.test) == (("ant", "bee", "cat"), ("p", "q"), None)
    assert source.train.samples(np.array([29])).tolist() == [[16, 17, 18, 19]]
    assert open_source(load({"data": {"name": "pack", "root": str(out)}}).data).digest == source.digest


LAYOUTS = {
    "domains": "{domain}/{label}",
    "train_test": "{part}/{label}",
    "split_domains": "{domain}/{part}/{label}",
    "office31": "{domain}/images/{label}",
    "classes": "{label}",
}


def pictures(root, layout):
    """Write one picture for each domain, part, class and number of a layout; return (path, label, domain, part)."""
    rows = []
    for index, (domain, part, label, number) in enumerate(
        (d, p, c, n) for d in ("east", "west") for p in ("train", "test") for c in ("ant", "bee") for n in range(4)
    ):
        folder = root / LAYOUTS[layout].format(domain=domain, part=part, label=label)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{domain}_{part}_{number}.png"
        Image.new("L", (8, 8), 4 * index).save(path)
        rows.append((str(path.relative_to(root)), label, domain, part))
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_classes_domains_and_parts(layout, tmp_path):
    root, out = tmp_path / "root", tmp_path / "p.h5"
    rows = pictures(root, layout)
    packed = pack(root, out, layout, side=8, grey=True, workers=1)
    source = open_pack(str(out))
    with h5py.File(out) as file:
        assert file.attrs["layout"] == layout.encode()
        assert file.attrs["schema_version"] == (1 if layout in ("domains", "office31") else 2)
        paths = [path.decode() for path in file["source"]]
    assert sorted(paths) == sorted(row[0] for row in rows)
    has_parts, has_domains = "part}" in LAYOUTS[layout], "domain}" in LAYOUTS[layout]
    assert (source.test is not None, source.domains is not None) == (has_parts, has_domains)
    assert ("16 images for training, 16 for testing" in packed.report()) == has_parts
    of = {path: (label, domain, part) for path, label, domain, part in rows}
    for is_test, table in enumerate(source.tables):
        table.verify()
        for row in range(len(table.labels)):
            path = paths[row if table.in_file is None else table.in_file[row]]
            label, domain, part = of[path]
            assert source.class_names[table.labels[row]] == label
            assert not has_parts or (part == "test") == bool(is_test)
            if has_domains:
                numbers = source.domains.of_test_row if is_test else source.domains.of_row
                assert source.domains.names[numbers[row]] == domain
            grey = 4 * [row[0] for row in rows].index(path)
            assert (table.samples(np.array([row])) == grey).all()


def test_a_pack_without_domains_may_be_rotated_and_its_test_part_is_not_shared(tmp_path):
    pictures(tmp_path / "root", "train_test")
    pack(tmp_path / "root", tmp_path / "p.h5", "train_test", side=8, workers=1)
    keys = {"name": "pack", "root": str(tmp_path / "p.h5")}
    assert open_source(load({"data": keys}).data).is_compact
    assert not open_source(load({"data": {**keys, "partition": {"domains": 2}}}).data).is_compact
    with pytest.raises(UserError, match=re.escape("data.test_share: got 0.3, but pack has its own test part of 16")):
        open_source(load({"data": {**keys, "test_share": 0.3}}).data)


@pytest.mark.parametrize(
    ("folders", "layout", "message"),
    [
        (("train/ant", "test/ant"), None, "named like parts of a data set.* Use --layout train_test"),
        (("train/ant", "val/ant"), None, "its folders train, val are named like parts"),
        (("east/ant",), "tree", "--layout: got 'tree'"),
        (("train/ant",), "train_test", r"There is no picture in a folder test or val"),
        (("east/train/ant", "west/test/ant"), "split_domains", "There is no picture of 'east' in a folder test or val"),
        (("east/images/ant",), None, "Fix: use the layout office31"),
        (("east/train/ant", "east/test/ant"), None, "Fix: use the layout split_domains"),
        (("east/ant",), "office31", "none there"),
    ],
)
def test_folders_of_another_layout_are_refused(folders, layout, message, tmp_path):
    for folder in folders:
        (tmp_path / "root" / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "root" / folder / "1.png")
    with pytest.raises(UserError, match=message):
        pack(tmp_path / "root", tmp_path / "p.h5", layout, side=8, workers=1)
    assert not list(tmp_path.glob("p.h5*"))


def test_val_is_the_test_part_only_if_there_is_no_test(tmp_path):
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        (tmp_path / "root" / part / "ant").mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(tmp_path / "root" / part / "ant" / f"{number}.png")
    pack(tmp_path / "root", tmp_path / "p.h5", "train_test", side=8, workers=1)
    assert [len(table.labels) for table in open_pack(str(tmp_path / "p.h5")).tables] == [5, 1]


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("photos", "the layout arrays packs a .npz file, or a function"),
        ("a.npz", "a.npz"),
        ("no_such_module:load", "ROOT: 'no_such_module:load': cannot import no_such_module"),
    ],
)
def test_what_is_no_array_is_refused(root, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        pack_arrays(root, tmp_path / "p.h5", silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file["part"].write_direct(np.ones(N + M, np.uint8)), "its digest does not match"),
        (lambda file: file.attrs.modify("mean", np.full(7, 9.0)), "its digest does not match"),
        (lambda file: file["label"].write_direct(np.zeros(N + M, np.int64)), "its digest does not match"),
        (lambda file: file.attrs.modify("kind", np.bytes_("image")), "its digest does not match"),
        (lambda file: file.__delitem__("sample_sha256"), "it has no sample_sha256"),
        (lambda file: file.attrs.__delitem__("std"), "it has no attribute std"),
        (lambda file: file["sample"].write_direct(np.zeros((N + M, 7), "f4")), "the sample in row 0 is damaged"),
    ],
)
def test_a_damaged_pack_of_arrays_is_refused(damage, message, tmp_path):
    pack_arrays(str(saved(tmp_path / "a.npz", values(7))), tmp_path / "a.h5", silent)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=message):
        open_pack(str(tmp_path / "a.h5")).train.verify()
