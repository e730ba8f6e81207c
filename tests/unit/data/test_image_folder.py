"""Folders of pictures that are decoded when they are read."""

import numpy as np
import pytest
from PIL import Image

from fedh2l_mpi.config.loading import load
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError

SIZE = (10, 14)


def fill(root, parts, size=SIZE, count=5):
    """Write pictures of one colour of their own, `root/<part>/<class>/<number>.png`; return colours by path."""
    colours = {}
    for part in parts:
        for label in ("ant", "bee"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                colour = (len(colours), 7 * len(colours), 200)
                Image.new("RGB", size[::-1], colour).save(folder / f"{number}.png")
                colours[str((folder / f"{number}.png").relative_to(root))] = colour
    return colours


def source_of(root, **keys):
    return open_source(load({"data": {"name": "image_folder", "root": str(root), **keys}}).data)


@pytest.mark.parametrize(
    ("parts", "tested"),
    [([""], 0), (["train"], 0), (["train", "test"], 10), (["train", "val"], 10), (["Training", "test", "valid"], 10)],
)
def test_every_row_is_the_picture_of_its_path(tmp_path, parts, tested):
    colours = fill(tmp_path, parts)
    source = source_of(tmp_path)
    assert (str(source.form), source.classes, source.class_names) == ("images of 3 x 10 x 14", 2, ("ant", "bee"))
    assert source.is_compact
    assert (0 if source.test is None else len(source.test.labels)) == tested
    for table in source.tables:
        table.verify()
        rows = np.arange(len(table.labels))[::-1]
        for row, image in zip(rows, table.samples(rows), strict=True):
            path = table.paths[row]
            assert image.reshape(3, -1).T.tolist() == [list(colours[path])] * 140
            assert path.split("/")[-2] == ("ant", "bee")[table.labels[row]]
    if tested:
        assert {path.split("/")[0] for path in source.test.paths} == {parts[1]}
    assert sum(len(table.labels) for table in source.tables) == len(colours)


def test_pictures_of_any_size_are_resized_and_may_be_grey(tmp_path):
    fill(tmp_path, ["a"], count=2)
    fill(tmp_path, ["b"], size=(30, 20))
    Image.new("RGB", (5, 5), (255, 255, 255)).save(tmp_path / "a" / "ant" / "white.png")
    source = source_of(tmp_path / "a", size="6x8", grey=True)
    assert str(source.form) == "images of 1 x 6 x 8"
    source.train.verify()
    assert (source.train.samples(np.array([2])) == 255).all()
    assert str(source_of(tmp_path / "b", size=12).form) == "images of 3 x 12 x 12"


def test_the_middle_in_the_wanted_proportions_is_resized(tmp_path):
    (tmp_path / "c").mkdir()
    pixels = np.zeros((8, 20, 3), dtype=np.uint8)
    pixels[:, 8:12] = 255
    Image.fromarray(pixels).save(tmp_path / "c" / "1.png")
    # A picture of 8 x 20 has a middle of 8 x 4.
    assert (source_of(tmp_path, size="8x4").train.samples(np.array([0])) == 255).all()


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (lambda root: Image.new("RGB", (9, 9)).save(root / "bee" / "9.png"), {}, "9.png: is 9 x 9 .* data.size=10x14"),
        (lambda root: (root / "bee" / "9.png").write_bytes(b"no"), {}, "9.png: cannot be read as a picture: not a"),
        (lambda root: (root / "ant" / "0.png").write_bytes(b""), {}, "0.png: cannot be read as a picture: an empty"),
        (lambda root: None, {"root": "/no/such"}, "data.root: /no/such is not a folder"),
        (lambda root: (root / "train").mkdir(), {}, "must be a folder of train|test/<class>/<picture>.*none there"),
        (lambda root: (root / "ant").rename(root / "x") and (root / "bee").rename(root / "x/y"), {}, None),
        (lambda root: None, {"size": "6"}, "data.size"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path, change, keys, message):
    fill(tmp_path, [""])
    change(tmp_path)
    if message is None:
        # Folders below a class are left out.
        assert source_of(tmp_path).class_names == ("x",)
        return
    with pytest.raises(UserError, match=message) as caught:
        source_of(**{"root": tmp_path, **keys}).train.verify()
    assert "\n" not in str(caught.value)


def test_a_class_of_test_pictures_alone_is_refused(tmp_path):
    fill(tmp_path, ["train", "test"])
    (tmp_path / "test" / "bee").rename(tmp_path / "test" / "wasp")
    with pytest.raises(UserError, match="has test pictures of 'wasp', but no training picture of that class"):
        source_of(tmp_path)
