"""Decoding in worker processes: same bytes for any number of them, and none left after a kill."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.photographs import SIDE, arrays

from fedh2l_mpi.data import pack_writer, photo_decoding, photo_pixels
from fedh2l_mpi.errors import UserError


def test_the_number_of_workers_does_not_change_a_byte(tree, tmp_path, monkeypatch):
    # A socket in a folder for temporary files of this length cannot be made.
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
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


def test_without_worker_processes_one_process_decodes(tree, tmp_path, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(photo_decoding, "ProcessPoolExecutor", refuse)
    monkeypatch.setattr(photo_decoding, "BATCH_BYTES", 7 * 3 * SIDE * SIDE)
    result = pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=2)
    assert len(arrays(tmp_path / "out.h5")["image"]) == 110
    assert "worker processes cannot be started ([Errno 30] Read-only file system), so one process" in result.report()


def test_a_script_without_a_guard_makes_one_pack(tree, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from fedh2l_mpi.data import pack_writer\n"
        "print(pack_writer.pack(Path(sys.argv[1]), Path(sys.argv[2]), side=150, workers=2).report())\n"
    )
    words = [sys.executable, script, tree, tmp_path / "out.h5"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert ended.stdout.count("110 images") == 1
    assert "so one process decodes all pictures" in ended.stdout
    assert "bootstrapping phase" in ended.stderr


def test_mistakes_of_decoding_are_not_said_to_be_those_of_the_file(tree, tmp_path, monkeypatch):
    def pack() -> pack_writer.Packed:
        return pack_writer.pack(tree, tmp_path / "out.h5", side=SIDE, workers=1)

    with monkeypatch.context() as patched:
        size = (tree / "photo/dog/pic_000.jpg").stat().st_size
        patched.setattr(photo_pixels, "LARGEST_BYTES", size - 1)
        reason = f"{size:,} bytes; at most {size - 1:,} are read"
        assert ("photo/dog/pic_000.jpg", reason) in pack().skipped
    (tmp_path / "out.h5").unlink()

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(photo_pixels, "decode", no_memory)
    with pytest.raises(UserError, match="pack: memory ran out while a picture was decoded. Use fewer --workers"):
        pack()


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
