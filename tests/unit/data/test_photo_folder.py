"""Folders of photographs: what counts as a picture, and what is skipped."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.photographs import SIDE, arrays, expected, picture
from PIL import Image

from fedh2l_mpi.data import pack_writer
from fedh2l_mpi.errors import UserError


def test_pictures_of_every_kind_become_rgb(tmp_path):
    folder = tmp_path / "root" / "some" / "thing"
    folder.mkdir(parents=True)
    upright = picture(0, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    upright.save(folder / "a_turned.jpg", exif=exif, quality=95)
    upright.convert("L").save(folder / "b_grey.PNG")
    upright.convert("P").save(folder / "c_palette.png")
    upright.convert("RGBA").save(folder / "d_alpha.webp", lossless=True)
    upright.convert("CMYK").save(folder / "e_cmyk.JPEG")
    upright.save(folder / "f.bmp")
    deep = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    Image.fromarray(deep).save(folder / "g_16_bits.png")
    picture(1, 300, 1).save(folder / "h_a_line.png")
    result = pack_writer.pack(tmp_path / "root", tmp_path / "out.h5", side=SIDE, workers=1)
    assert (result.skipped, result.enlarged) == ([], 1)
    images = arrays(tmp_path / "out.h5")["image"]
    assert np.array_equal(images[0], expected(folder / "a_turned.jpg"))
    turned = np.rot90(images[5].astype(float), -1, (1, 2))
    assert np.abs(turned - images[0]).mean() < 5  # but for JPEG's losses
    assert np.abs(images[3].astype(float) - images[5]).mean() < 5
    # Sixteen bits of grey are scaled, not clipped: a ramp stays one.
    assert 100 < images[6].mean() < 155
    assert images[6].min() < 50


def damage(tree: Path) -> list[str]:
    """Spoil three pictures; their paths, sorted."""
    whole = tree / "art_painting" / "dog" / "pic_000.jpg"
    buffer = io.BytesIO()
    picture(7, 200, 200).save(buffer, "JPEG")
    whole.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    (tree / "cartoon" / "dog" / "pic_009.jpg").write_bytes(b"")
    (tree / "sketch" / "elephant" / "pic_005.jpg").write_text("a text that calls itself a picture")
    (tree / "sketch" / "elephant" / "pic_006.jpg").unlink()
    (tree / "sketch" / "elephant" / "pic_006.jpg").symlink_to("nowhere.jpg")
    return [
        "art_painting/dog/pic_000.jpg",
        "cartoon/dog/pic_009.jpg",
        "sketch/elephant/pic_005.jpg",
        "sketch/elephant/pic_006.jpg",
    ]


def test_unreadable_pictures_are_skipped_and_listed(tree, tmp_path):
    spoilt = damage(tree)
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert [source for source, _ in result.skipped] == spoilt
    reasons = [reason for _, reason in result.skipped]
    assert "truncated" in reasons[0]
    assert reasons[1:] == ["an empty file", "not a picture of BMP, GIF, JPEG, PNG, WEBP", "No such file or directory"]
    content = arrays(tmp_path / "out.h5")
    assert [source.decode() for source in content["skipped"]] == spoilt
    assert [reason.decode() for reason in content["skipped_reason"]] == reasons
    assert len(content["image"]) == len(content["label"]) == 106
    assert not set(spoilt) & {source.decode() for source in content["source"]}
    # The rows after a gap are still those of their pictures.
    assert np.array_equal(content["image"][-1], expected(tree / content["source"][-1].decode()))
    # Nothing of the skipped ones is left in the file.
    assert (tmp_path / "out.h5").stat().st_size < content["image"].nbytes + 106 * pack_writer.EXTRA
    assert "skipped 4 unreadable" in result.report()
    assert f"{spoilt[1]}: an empty file" in result.report()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PACS", "out.h5"]


def test_strict_refuses_the_first_unreadable_picture_and_leaves_no_file(tree, tmp_path):
    damage(tree)
    with pytest.raises(UserError, match="art_painting/dog/pic_000.jpg: cannot be read as a picture: .*truncated"):
        pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=2, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PACS"]


def test_what_is_no_picture_is_ignored_and_counted(tree, tmp_path):
    (tree / "README.txt").write_text("about")
    (tree / "photo" / "stray.jpg").write_bytes(b"")
    (tree / "photo" / "dog" / ".hidden.jpg").write_bytes(b"")
    (tree / "photo" / "dog" / "Thumbs.db").write_bytes(b"")
    (tree / ".cache").mkdir()
    (tree / "splits").mkdir()
    (tree / "splits" / "photo_train.txt").write_text("list")
    (tree / "photo" / "dog" / "deeper").mkdir()
    (tree / "clip_art").symlink_to(tree / "cartoon", target_is_directory=True)
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert result.tree.domains == ["art_painting", "cartoon", "clip_art", "photo", "sketch"]
    assert result.tree.ignored == {
        "hidden": 2,
        "other files": 3,
        "pictures not in <domain>/<class>": 1,
        "folders below <domain>/<class>": 1,
    }
    assert "ignored: 1 folders below <domain>/<class>, 2 hidden, 3 other files, 1 pictures not in" in result.report()


def test_names_that_are_no_text_are_reported_and_their_bytes_kept(tree, tmp_path):
    os.rename(tree / "photo", os.fsencode(tree) + b"/caf\xe9")
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9/dog/pic_\xe9.jpg")).write_bytes(b"")
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert "caf\ufffd 30" in result.report()
    assert "caf\ufffd/dog/pic_\ufffd.jpg: an empty file" in result.report()
    assert b"caf\xe9" in arrays(tmp_path / "out.h5")["domain_name"].tolist()


def test_links_that_lead_nowhere_are_unreadable_pictures_and_pipes_are_none(tree, tmp_path):
    folder = tree / "photo" / "dog"
    for name in ("loop.jpg", "loop.txt"):
        (folder / name).symlink_to(name)
    (tree / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (folder / "pipe.jpg").symlink_to(tmp_path / "pipe")
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert result.skipped == [("photo/dog/loop.jpg", "Too many levels of symbolic links")]
    assert result.tree.ignored == {"other files": 2}
