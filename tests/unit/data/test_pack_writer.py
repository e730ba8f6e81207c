"""Packs as they are written: every row, every refusal, and what the command prints."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.damage import failing_writes
from helpers.photographs import CLASSES, DOMAINS, SIDE, arrays, expected
from PIL import Image, ImageOps

from fedh2l_mpi.cli import commands
from fedh2l_mpi.data import pack_writer
from fedh2l_mpi.data.pack_reader import open_pack
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import hdf5_files
from fedh2l_mpi.runtime.world import World


def test_every_row_is_the_picture_it_says(tree, packed):
    table, content = open_pack(str(packed)).train, arrays(packed)
    sources = [source.decode() for source in content["source"]]
    assert sources == sorted(str(path.relative_to(tree)) for path in tree.rglob("*.jpg"))
    pixels = table.samples(np.arange(len(sources)))
    for row, source in enumerate(sources):
        domain, label, _ = source.split("/")
        assert np.array_equal(pixels[row], expected(tree / source)), source
        assert DOMAINS[content["domain"][row]] == domain
        assert CLASSES[content["label"][row]] == label
        assert content["source_sha256"][row].decode() == hashlib.sha256((tree / source).read_bytes()).hexdigest()


def test_the_images_are_contiguous_and_the_file_says_what_it_holds(tree, packed):
    with h5py.File(packed) as file:
        assert file["image"].shape == (110, 3, SIDE, SIDE)
        assert (file["image"].chunks, file["image"].compression) == (None, None)
        attributes = dict(file.attrs)
        assert all(dataset.dtype.kind in "Siu" for dataset in file.values())
        assert all({"units", "long_name"} <= set(dataset.attrs) for dataset in file.values())
    numbers = {name: int(attributes[name]) for name in ("side", "channels", "images", "classes", "domains", "skipped")}
    assert numbers == {"side": SIDE, "channels": 3, "images": 110, "classes": 3, "domains": 4, "skipped": 0}
    assert attributes["root"] == str(tree).encode()
    assert attributes["layout"] == b"domains"
    assert re.fullmatch(rb"[0-9a-f]{64}", attributes["digest"])


def test_grey_packs_have_one_channel(tree, tmp_path):
    pack_writer.pack(tree, tmp_path / "grey.h5", side=SIDE, grey=True, workers=1)
    source = open_pack(str(tmp_path / "grey.h5"))
    grey = ImageOps.fit(Image.open(tree / "photo/dog/pic_000.jpg").convert("L"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    row = [path.decode() for path in arrays(tmp_path / "grey.h5")["source"]].index("photo/dog/pic_000.jpg")
    assert source.form.shape[0] == 1
    assert np.array_equal(source.train.samples(np.array([row]))[0, 0], np.asarray(grey))


def test_images_of_the_same_pixels_are_counted(tree, tmp_path):
    assert "repeat" not in pack_writer.pack(tree, tmp_path / "one.h5", side=SIDE, workers=1).report()
    for copy in ("photo/dog/copy.jpg", "sketch/elephant/copy.jpg"):
        (tree / copy).write_bytes((tree / "photo/dog/pic_000.jpg").read_bytes())
    result = pack_writer.pack(tree, tmp_path / "two.h5", side=SIDE, workers=1)
    assert (
        "2 repeat another image's pixels, 1 of them under another class. Copies may be in training and in test data"
        in result.report()
    )


def test_drawings_that_vanish_on_the_background_are_reported(tree, tmp_path):
    white = np.full((9, 9, 4), 255, np.uint8)
    white[:4, :, 3] = 0
    Image.fromarray(white).save(tree / "sketch/dog/white_on_nothing.png")
    reports = {}
    for background in ("white", "black"):
        out = tmp_path / f"{background}.h5"
        result = pack_writer.pack(tree, out, side=SIDE, workers=1, background=background)
        assert f"1 had transparent parts, which are {background} in the pack" in result.report()
        with h5py.File(out) as file:
            said = {name: file.attrs[name] for name in ("background", "transparent", "flat", "several_frames")}
        flat = int(background == "white")
        assert said == {"background": background.encode(), "transparent": 1, "flat": flat, "several_frames": 0}
        reports[background] = result.report()
    lost = "1 are of one flat colour: sketch/dog/white_on_nothing.png. Drawings in the colour of the background need"
    assert lost in reports["white"]
    assert "flat" not in reports["black"]


def test_what_cannot_be_packed_is_refused(tree, tmp_path, monkeypatch):
    def refused(root: Path, out: Path, **options: object) -> str:
        with pytest.raises(UserError) as error:
            pack_writer.pack(root, out, **{"side": SIDE, "workers": 1, **options})
        assert not os.path.isfile(out) or out.read_bytes() == b"mine"
        return str(error.value)

    out = tmp_path / "out.h5"
    assert "nothing: must be a folder of <domain>/<class>/<picture>" in refused(tmp_path / "nothing", out)
    assert "It does not exist" in refused(tmp_path / "nothing", out)
    assert "It is a file" in refused(tree / "photo/dog/pic_000.jpg", out)
    assert "30 pictures lie higher up" in refused(tree / "photo", out)
    (tmp_path / "empty").mkdir()
    assert "It has none there" in refused(tmp_path / "empty", out)
    assert "its folder" in refused(tree, tmp_path / "nowhere" / "out.h5")
    assert "cannot look at" in refused(tree, tmp_path / ("a" * 300) / "out.h5")
    assert "File name too long" in refused(tmp_path / ("a" * 300), out)
    # The name would do, but not with what a file is called until it is complete.
    assert "cannot be written: " in refused(tree, tmp_path / ("o" * 250))
    assert "--side: got 0. Allowed: 1 to 4096" in refused(tree, out, side=0)
    assert "--workers: got 0" in refused(tree, out, workers=0)
    assert "--background: got 'red'. Known: white, grey, black" in refused(tree, out, background="red")
    assert "--layout: got 'coco'. Known: domains" in refused(tree, out, layout="coco")
    for path in (tree / "sketch").rglob("*.jpg"):
        path.write_bytes(b"")
    assert "sketch: no picture can be read. The first is sketch/dog/pic_000.jpg: an empty file" in refused(tree, out)
    out.write_bytes(b"mine")
    assert "exists already" in refused(tree, out)
    with monkeypatch.context() as patched:
        patched.setattr(pack_writer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        assert re.search(r"needs about [\d,]+ bytes, but its disk has 1,000 free", refused(tree, tmp_path / "b.h5"))
    with monkeypatch.context() as patched:
        patched.setattr(pack_writer.importlib.util, "find_spec", lambda name: None)
        assert "install the extra [vision], as in pip install '.[vision]' from a checkout" in refused(
            tree, tmp_path / "b.h5"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PACS", "empty", "out.h5"]


IN_HDF5 = "Can't write (file write failed: filename = 'x', errno = {}, error message = '{}', buf = 0x55, offset = 0)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), r"no space left on the disk\. The pack needs about"),
        (RuntimeError(IN_HDF5.format(28, "No space left on device")), r"no space left on the disk\."),
        (RuntimeError(IN_HDF5.format(27, "File too large")), r"cannot be written: File too large\."),
        (OSError(IN_HDF5.format(5, "Input/output error")), r"cannot be written: Input/output error\."),
    ],
)
def test_a_failed_write_is_told_and_nothing_is_left(tree, tmp_path, monkeypatch, error, reason):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(hdf5_files.atomic_files, "sync_file", fail)
    with pytest.raises(UserError, match=f"out.h5: {reason}"):
        pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PACS"]


def test_images_whose_write_fails_are_told_and_nothing_is_left(tree, tmp_path, monkeypatch):
    create = hdf5_files.create
    with contextlib.ExitStack() as stack:

        def create_on_a_failing_disk(path, mode="x", **options):
            file = create(path, mode, **options)
            stack.enter_context(failing_writes(file, path))
            return file

        monkeypatch.setattr(hdf5_files, "create", create_on_a_failing_disk)
        with pytest.raises(UserError, match=r"out\.h5: cannot be written: Bad file descriptor\.$"):
            pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PACS"]


def test_the_command_makes_a_pack_and_tells_of_it(tree, tmp_path, capsys):
    words = ["pack", str(tree), str(tmp_path / "out.h5"), "--layout", "domains", "--side", "16", "--workers", "1"]
    command = commands.parse(words)
    assert not commands.needs_world(command)
    commands.execute(command, World(None))
    said = capsys.readouterr().out
    assert "110 images of 3 x 16 x 16, 3 classes" in said
    assert "4 domains: art_painting 30, cartoon 30, photo 30, sketch 20" in said
    assert "1 pairs of a domain and a class have no image" in said
    assert "\x1b" not in said
    commands.execute(commands.parse([*words[:2], str(tmp_path / "quiet.h5"), *words[3:], "--quiet"]), World(None))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="--help lists the options"):
        commands.parse(["pack", str(tree)])
