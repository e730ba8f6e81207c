"""Folders of photographs: what counts as a picture, and what is skipped."""

import io
import os
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.photographs import SIDE, arrays, expected, picture

from fedh2l_mpi.data import pack_writer
from fedh2l_mpi.errors import UserError


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
    assert (reasons[1], reasons[3]) == ("an empty file", "No such file or directory")
    assert reasons[2].startswith("not a picture of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP")
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
    (tree / "@eaDir" / "photo").mkdir(parents=True)
    (tree / "photo" / "dog" / "LICENSE").write_text("yours")
    (tree / "splits").mkdir()
    (tree / "splits" / "photo_train.txt").write_text("list")
    (tree / "photo" / "dog" / "deeper").mkdir()
    (tree / "clip_art").symlink_to(tree / "cartoon", target_is_directory=True)
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert result.tree.domains == ["art_painting", "cartoon", "clip_art", "photo", "sketch"]
    assert result.tree.ignored == {
        "hidden": 3,
        ".txt": 2,
        ".db": 1,
        "files without a suffix": 1,
        "pictures not in <domain>/<class>": 1,
        "folders below <domain>/<class>": 1,
    }
    assert "ignored: 1 .db, 2 .txt, 1 files without a suffix, 1 folders below <domain>/<class>, 3 hidden" in (
        result.report()
    )
    assert result.tree.empty == ["splits"]


def test_names_that_are_no_text_are_reported_and_their_bytes_kept(tree, tmp_path):
    os.rename(tree / "photo", os.fsencode(tree) + b"/caf\xe9")
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9/dog/pic_\xe9.jpg")).write_bytes(b"")
    (tree / "sketch" / "dog" / "line\nbreak.jpg").write_bytes(b"")
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert "caf\ufffd 30" in result.report()
    assert "caf\ufffd/dog/pic_\ufffd.jpg: an empty file" in result.report()
    assert "line\\nbreak.jpg: an empty file" in result.report()
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
    assert result.tree.ignored == {".txt": 1, "files without a suffix": 1, "pipes and devices": 1}


def test_pictures_that_cannot_be_taken_are_counted_and_their_folders_are_named(tree, tmp_path):
    for name in ("photo/dog/new.HEIC", "photo/cat/1.heic", "web/dog/1.svg", "web/dog/2.svg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"?")
    for path in (tree / "cartoon" / "dog").iterdir():
        path.write_bytes(b"")
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert result.tree.other_pictures == {".heic": 2, ".svg": 2}
    assert "left out: 2 .heic, 2 .svg pictures. Convert them to PNG or JPEG." in result.report()
    assert "nothing was taken from cartoon/dog, photo/cat, web" in result.report()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["left_out"] == 4
    with pytest.raises(UserError, match="PACS: nothing was taken from photo/cat, web. Remove such folders, convert"):
        pack_writer.pack(tree, tmp_path / "strict.h5", side=SIDE, workers=1, strict=True)


def made(root: Path, *names: str) -> Path:
    """A folder of pictures of these names, each unlike the others."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, 9, 9).save(root / name)
    return root


def test_a_class_in_two_spellings_is_reported_and_strictly_refused(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    root = made(
        tmp_path / "root",
        f"a/{composed}/1.png",
        *("a/Alarm_Clock/1.png", "a/07/1.png", "a/x/1.png", "a/X/1.png", "a/1.10/1.png", "a/A+/1.png"),
        f"b/{decomposed}/1.png",
        *("b/alarm clock/1.png", "b/7/1.png", "b/x/1.png", "b/11.0/1.png", "b/a/1.png"),
    )
    result = pack_writer.pack(root, tmp_path / "out.h5", side=8, workers=1)
    # Accents that only look the same are one class; x and X are in one domain, so they are two.
    assert result.classes.count(composed) == 1
    assert decomposed not in result.classes
    assert result.tree.similar_classes() == [["07", "7"], ["Alarm_Clock", "alarm clock"]]
    said = "classes that differ in spelling only, and never in one domain: "
    assert f"{said}Alarm_Clock, alarm clock. If they are one, rename the folders." in result.report()
    with pytest.raises(UserError, match=f"{said}07, 7. Rename the folders, or omit --strict"):
        pack_writer.pack(root, tmp_path / "strict.h5", side=8, workers=1, strict=True)


def test_pictures_that_differ_in_their_suffix_only_are_counted(tmp_path):
    root = made(tmp_path / "root", "a/x/1.gif", "a/x/1-b.png", "a/x/1.png", "a/x/2.png", "b/y/1.png")
    result = pack_writer.pack(root, tmp_path / "out.h5", side=8, workers=1)
    assert "1 pairs of pictures differ in their suffix only, such as a/x/1.gif and a/x/1.png" in result.report()
    assert "no class is in two domains: check that ROOT holds <domain>/<class>/<picture>" in result.report()


def test_a_class_without_a_readable_picture_is_no_class(tmp_path):
    root = made(tmp_path / "root", *(f"{domain}/{label}/1.png" for domain in "ab" for label in ("cat", "eel", "owl")))
    for domain in "ab":
        (root / domain / "eel" / "1.png").write_bytes(b"")
    result = pack_writer.pack(root, tmp_path / "out.h5", side=8, workers=1)
    content = arrays(tmp_path / "out.h5")
    assert content["class_name"].tolist() == [b"cat", b"owl"]
    assert content["label"].tolist() == [0, 1, 0, 1]
    assert "2 classes" in result.report()
    assert "class 'eel' has no image that can be read, and is left out" in result.report()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("amazon/images/bike/1.jpg", "It has pictures such as amazon/images/bike/1.jpg. Fix: use the layout office31"),
        ("amazon/test/bike/1.jpg", "It has pictures such as amazon/test/bike/1.jpg. Fix: use the layout split_domains"),
        ("train/amazon/bike/1.jpg", "Pictures lie deeper, such as train/amazon/bike/1.jpg. Fix: give the folder"),
        ("amazon/1.jpg", "1 pictures lie higher up: a folder for their domain is missing"),
    ],
)
def test_pictures_in_another_layout_are_found(tmp_path, name, hint):
    with pytest.raises(UserError, match=f"It has none there. {hint}"):
        pack_writer.pack(made(tmp_path / "root", name), tmp_path / "out.h5", side=8, workers=1)
