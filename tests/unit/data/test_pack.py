"""Packs: photographs to one file and back, and a federation whose domains are the data's own."""

import gzip
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from fedh2l_mpi import api, config, metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import loading
from fedh2l_mpi.data import federated, pack_writer, photo_decoding
from fedh2l_mpi.data.pack_reader import open_pack
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

CPU = torch.device("cpu")
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe")
SIDE = 16


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """Blocks of colours, unlike for every number."""
    draw = np.random.default_rng(number)
    blocks = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return blocks.resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures in the layout of PACS: 4 domains of 3 classes of 10, but no giraffe among the sketches."""
    number = 0
    for domain in DOMAINS:
        for label in CLASSES[: 2 if domain == "sketch" else 3]:
            folder = tmp_path / "PACS" / domain / label
            folder.mkdir(parents=True)
            for index in range(10):
                picture(number, 20 + number % 23, 18 + number % 17).save(folder / f"pic_{index:03d}.jpg")
                number += 1
    return tmp_path / "PACS"


@pytest.fixture
def packed(tree: Path, tmp_path: Path) -> Path:
    pack_writer.pack(tree, tmp_path / "pack.h5", side=SIDE, workers=1)
    return tmp_path / "pack.h5"


def arrays(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: dataset[()] for name, dataset in file.items()}


def expected(path: Path, side: int = SIDE) -> np.ndarray:
    """The pixels of a picture, by Pillow's own way of fitting it into a square."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def settings(path: Path, *overrides: str) -> config.Config:
    given = ["data.name=pack", f"data.root={path}", *overrides]
    return loading.load(None, given).resolved(1, launched=False)


def all_rows(plan: federated.Plan) -> np.ndarray:
    return np.concatenate([part.rows for s in plan.shares for part in (s.private, s.validation, s.seed)])


# The file.


def test_every_row_is_the_picture_it_says(tree, packed):
    table, content = open_pack(str(packed)).train, arrays(packed)
    sources = [source.decode() for source in content["source"]]
    assert sources == sorted(str(path.relative_to(tree)) for path in tree.rglob("*.jpg"))
    pixels = table.images(np.arange(len(sources)))
    for row, source in enumerate(sources):
        domain, label, _ = source.split("/")
        assert np.array_equal(pixels[row], expected(tree / source)), source
        assert DOMAINS[content["domain"][row]] == domain
        assert CLASSES[content["label"][row]] == label
        assert content["source_sha256"][row].decode() == hashlib.sha256((tree / source).read_bytes()).hexdigest()


def test_rows_come_in_the_order_asked_for(packed):
    table = open_pack(str(packed)).train
    everything = arrays(packed)["image"]
    for rows in ([3, 4, 5], [109, 0, 7, 8, 9, 7, 8, 2], [5], []):
        rows = np.array(rows, dtype=np.int64)
        assert np.array_equal(table.images(rows), everything[rows])


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


def test_the_number_of_workers_does_not_change_a_byte(tree, tmp_path, monkeypatch):
    # Batches of 7, so that both workers have some.
    monkeypatch.setattr(photo_decoding, "BATCH_BYTES", 7 * 3 * SIDE * SIDE)
    (tree / "photo" / "dog" / "pic_004.jpg").write_bytes(b"no picture")
    results = [pack_writer.pack(tree, tmp_path / f"{n}.h5", side=SIDE, workers=n) for n in (1, 2)]
    one, two = (arrays(result.path) for result in results)
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.tobytes() == two[name].tobytes(), name
    assert results[0].digest == results[1].digest
    assert len(one["image"]) == 109


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


def test_grey_packs_have_one_channel(tree, tmp_path):
    pack_writer.pack(tree, tmp_path / "grey.h5", side=SIDE, grey=True, workers=1)
    source = open_pack(str(tmp_path / "grey.h5"))
    grey = ImageOps.fit(Image.open(tree / "photo/dog/pic_000.jpg").convert("L"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    row = [path.decode() for path in arrays(tmp_path / "grey.h5")["source"]].index("photo/dog/pic_000.jpg")
    assert source.channels == 1
    assert np.array_equal(source.train.images(np.array([row]))[0, 0], np.asarray(grey))


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


def test_images_of_the_same_pixels_are_counted(tree, tmp_path):
    assert "repeat" not in pack_writer.pack(tree, tmp_path / "one.h5", side=SIDE, workers=1).report()
    for copy in ("photo/dog/copy.jpg", "sketch/elephant/copy.jpg"):
        (tree / copy).write_bytes((tree / "photo/dog/pic_000.jpg").read_bytes())
    result = pack_writer.pack(tree, tmp_path / "two.h5", side=SIDE, workers=1)
    assert "2 repeat another image's pixels. Copies may be in training and in test data" in result.report()


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


def test_a_full_disk_is_told_and_nothing_is_left(tree, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_writer.os, "fsync", full)
    with pytest.raises(UserError, match=r"out.h5: no space left on the disk\. The pack needs about"):
        pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PACS"]


def start_slowly(tree: Path, out: Path) -> subprocess.Popen[bytes]:
    """A pack that takes half a minute, begun; returns when its partial file is there and pictures have been done."""
    code = (
        "import signal, sys, time; from pathlib import Path; from fedh2l_mpi.data import pack_writer, photo_decoding\n"
        # A shell's background job begins with it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "photo_decoding.BATCH_BYTES = 1\n"
        "def slow(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(0.3)\n"
        "pack_writer.pack(Path(sys.argv[1]), Path(sys.argv[2]), side=16, workers=2, progress=slow)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tree, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    assert list(out.parent.glob("out.h5.partial-*"))
    return process


def children(pid: int) -> set[int]:
    """All descendants of a process that still run."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and fields[1] == str(pid):
            found |= {int(entry.name)} | children(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_kill_leaves_no_pack_and_no_worker(tree, tmp_path):
    process = start_slowly(tree, tmp_path / "out.h5")
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=30)
    assert not (tmp_path / "out.h5").exists()
    assert list(tmp_path.glob("out.h5.partial-*"))
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}/exe")]


def test_an_interrupt_removes_what_was_begun(tree, tmp_path):
    process = start_slowly(tree, tmp_path / "out.h5")
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
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


# Reading it.


def test_a_missing_pack_says_how_to_make_one(tmp_path, tree, monkeypatch):
    monkeypatch.delenv("FEDH2L_DATA", raising=False)
    with pytest.raises(UserError, match=r"data.root: got null, and FEDH2L_DATA is not set\. .*fedh2l_mpi pack FOLDER"):
        open_source("pack", None)
    with pytest.raises(UserError, match=r"PACS is a folder\. Make a pack of it: python -m fedh2l_mpi pack"):
        open_source("pack", str(tree))
    monkeypatch.setenv("FEDH2L_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"\$FEDH2L_DATA/pack.h5\): there is no file {tmp_path}/pack.h5"):
        open_source("pack", None)
    pack_writer.pack(tree, tmp_path / "pack.h5", side=8, workers=1)
    assert open_source("pack", None).side == 8


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
    assert "has schema 2, but this version reads schema 1" in says(lambda file: file.attrs.modify("schema_version", 2))
    assert "the pack is damaged: it has no label" in says(lambda file: file.pop("label"))
    assert "its digest does not match" in says(lambda file: file["label"].write_direct(np.full(110, 2)))
    assert "incomplete or damaged" in says(lambda file: file.attrs.pop("digest"))
    where = whole.index(arrays(packed)["image"][57].tobytes())
    flipped = whole[: where + 9] + bytes([whole[where + 9] ^ 1]) + whole[where + 10 :]
    assert "the image in row 57 is damaged" in says(None, flipped)


# Who holds what.


@pytest.mark.parametrize("kind", ["domains", "dirichlet", "shards", "quantity"])
@pytest.mark.parametrize("participants", [2, 4, 7])
def test_a_participant_holds_rows_of_its_own_domain_only(packed, kind, participants):
    source = open_pack(str(packed))
    plan = federated.plan(settings(packed, f"participants={participants}", f"data.partition.kind={kind}"), source)
    assert source.domains is not None
    of_row = source.domains.of_row
    assert (plan.domains, plan.domain_names) == (4, list(DOMAINS))
    for participant, share in enumerate(plan.shares):
        assert plan.own_domain(participant) == participant % 4
        for part in (share.private, share.validation, share.seed):
            assert set(part.domains.tolist()) <= {participant % 4}
            assert np.array_equal(part.domains, of_row[part.rows])
    rows = np.concatenate([all_rows(plan), *(test.rows for test in plan.tests)])
    assert len(np.unique(rows)) == len(rows)
    assert plan.label_histogram().shape == (participants, 3)


def test_domains_are_shared_out_whole_among_those_that_hold_them(packed):
    plan = federated.plan(settings(packed, "participants=6"), open_pack(str(packed)))
    held = [sum(len(part) for part in (share.private, share.validation, share.seed)) for share in plan.shares]
    # 24 training images of a domain, 16 of the sketches; domains 0 and 1 have two participants.
    assert held == [12, 12, 24, 16, 12, 12]


def test_iid_mixes_all_domains_and_every_row_keeps_its_own(packed):
    source = open_pack(str(packed))
    plan = federated.plan(settings(packed, "data.partition.kind=iid", "participants=2"), source)
    assert source.domains is not None
    for participant, share in enumerate(plan.shares):
        assert plan.own_domain(participant) == -1
        assert set(share.private.domains.tolist()) == {0, 1, 2, 3}
        assert np.array_equal(share.private.domains, source.domains.of_row[share.private.rows])
    assert len(np.unique(all_rows(plan))) == 88


def test_the_test_part_is_stratified_and_the_same_for_every_seed(packed):
    source = open_pack(str(packed))
    plans = [federated.plan(settings(packed, f"seed={seed}"), source) for seed in (0, 1)]
    for domain in range(4):
        one, other = (plan.tests[domain] for plan in plans)
        assert np.array_equal(one.rows, other.rows)
        assert set(one.domains.tolist()) == {domain}
        # A fifth of the ten images of every class.
        assert np.bincount(source.train.labels[one.rows]).tolist() == ([2, 2] if domain == 3 else [2, 2, 2])
        assert not np.isin(all_rows(plans[0]), one.rows).any()
    assert not np.array_equal(plans[0].shares[0].private.rows, plans[1].shares[0].private.rows)


def test_small_classes_are_on_both_sides_and_a_lone_image_is_for_training(tmp_path):
    for label, count in (("one", 1), ("two", 2), ("many", 20)):
        folder = tmp_path / "root" / "only" / label
        folder.mkdir(parents=True)
        for index in range(count):
            picture(index).save(folder / f"{index}.png")
    pack_writer.pack(tmp_path / "root", tmp_path / "p.h5", side=8, workers=1)
    source = open_pack(str(tmp_path / "p.h5"))
    rows = federated.plan(settings(tmp_path / "p.h5", "participants=1"), source).tests[0].rows
    # In the order of the names: many, one, two.
    assert np.bincount(source.train.labels[rows], minlength=3).tolist() == [4, 0, 1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["evaluation.test_samples_per_domain=5"], "got 5, but domain 'sketch' has 4 test samples"),
        (["participants=100"], "participants: got 25 of domain 'art_painting', but there are only 24"),
        (
            ["participants=8", "data.partition.samples_per_participant=9"],
            "2 participants with 9 samples each need 18, but the training data of domain 'sketch' have 16",
        ),
        (["data.partition.domains=2"], "data.partition.domains: got 2, but a pack brings its own domains"),
    ],
)
def test_a_pack_that_does_not_suffice_is_refused_by_the_domain(packed, overrides, says):
    with pytest.raises(UserError, match=says):
        federated.plan(settings(packed, *overrides), open_pack(str(packed)))


def test_the_test_samples_of_a_domain_are_capped(packed):
    plan = federated.plan(settings(packed, "evaluation.test_samples_per_domain=4"), open_pack(str(packed)))
    assert [len(test) for test in plan.tests] == [4, 4, 4, 4]


# What a model sees.


def test_photographs_stay_bytes_and_become_normalised_floats(packed):
    source = open_pack(str(packed))
    plan = federated.plan(settings(packed, "participants=2"), source)
    private = federated.load(plan, [1], CPU).private[1]
    assert private.images.dtype == torch.uint8
    assert private.images[0].nbytes == plan.image_bytes() == 3 * SIDE * SIDE
    rows = torch.tensor([5, 0, 3])
    seen = private.inputs(rows)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)
    pixels = torch.from_numpy(source.train.images(plan.shares[1].private.rows[[5, 0, 3]])).double()
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    torch.testing.assert_close(seen.double(), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(private.labels, torch.from_numpy(source.train.labels[plan.shares[1].private.rows]))
    assert torch.equal(private.inputs()[rows], seen)
    # Seeing is not changing.
    assert private.images.dtype == torch.uint8
    assert torch.equal(private.inputs(rows), seen)


def test_a_rank_reads_the_rows_of_its_participants_and_nothing_else(packed, monkeypatch):
    source = open_pack(str(packed))
    plan, read = federated.plan(settings(packed), source), []
    original = type(source.train).images

    def watched(table: object, rows: np.ndarray) -> np.ndarray:
        read.extend(rows.tolist())
        return original(table, rows)

    monkeypatch.setattr(type(source.train), "images", watched)
    federated.load(plan, [2], CPU)
    share = plan.shares[2]
    parts = [share.private, share.validation, plan.seed, *plan.tests]
    assert sorted(read) == sorted(row for part in parts for row in part.rows.tolist())


def test_check_tells_of_a_pack(packed, capsys):
    words = ["--check", "--set", "data.name=pack", "--set", f"data.root={packed}", "--set", "models=[mlp, cnn]"]
    commands.execute(commands.parse(words), World(None))
    said = capsys.readouterr().out
    assert "pack, 3 x 16 x 16, 3 classes, 4 domains, domains" in said
    assert "art_painting, cartoon, photo, sketch" in said
    assert re.search(r"test samples +4 to 6 in each domain", said)


# Whole runs.


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
