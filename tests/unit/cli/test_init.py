"""`init`: the ready files, from a checkout and from an installed package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import ROOT

from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.sweep import sweep_file
from fedh2l_mpi.runtime.world import World

FOLDERS = ("configs", "configs/sweeps", "jobs")


def init(directory: Path) -> None:
    assert commands.execute(commands.parse(["init", str(directory)]), World(None)) == 0


def files(root: Path) -> dict[str, bytes]:
    paths = (path for folder in FOLDERS for path in (root / folder).iterdir() if path.is_file())
    # A site's own settings are not shipped.
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.name != "env.sh"}


def test_the_ready_files_are_written_and_work_where_they_are(tmp_path, capsys, monkeypatch):
    init(tmp_path / "my study")
    assert files(tmp_path / "my study") == files(ROOT)
    monkeypatch.chdir(tmp_path / "my study")
    for path in Path("configs").glob("*.yaml"):
        loading.load(str(path))
    for path in Path("configs/sweeps").glob("*.yaml"):
        assert sweep_file.load(path).elements
    named = {
        name for job in Path("jobs").glob("*.sbatch") for name in re.findall(r":-(configs/\S+?)}", job.read_text())
    }
    assert len(named) >= 2
    assert all(Path(name).is_file() for name in named)
    next_lines = capsys.readouterr().out.partition("Next:\n")[2].splitlines()
    assert next_lines[0].strip() == f"cd '{tmp_path / 'my study'}'"
    for line in next_lines[1:3]:
        words = re.split(r"\s{2,}", line.strip())[0].removeprefix("python -m fedh2l_mpi ").split()
        assert Path(words[-1] if words[0] == "sweep" else words[0]).is_file()
        commands.parse(words)


def test_an_existing_file_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "cpu_node.sbatch").write_text("mine")
    with pytest.raises(UserError, match=r"jobs/cpu_node.sbatch: exists already, so nothing was written. Fix: choose"):
        init(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["jobs", "cpu_node.sbatch"]
    assert (tmp_path / "jobs" / "cpu_node.sbatch").read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_a_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*: cannot be written: Not a directory"):
        init(tmp_path / "file" / "study")


def test_an_installed_package_has_the_ready_files_and_a_console_script(tmp_path):
    pytest.importorskip("setuptools")
    copy = tmp_path / "source"
    for name in ("fedh2l_mpi", "configs", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "env.sh"))
    for path in ROOT.iterdir():
        if path.suffix in (".cfg", ".toml", ".md") or path.name == "LICENSE":
            shutil.copy(path, copy)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run(wheel, cwd=copy, check=True, timeout=300)
    (built,) = tmp_path.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(built)], check=True, timeout=300
    )
    environ = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    program = [sys.executable, str(tmp_path / "site" / "bin" / "fedh2l-mpi")]
    ended = subprocess.run(
        [*program, "init", "study"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert files(tmp_path / "study") == files(ROOT)
    assert "  fedh2l-mpi configs/digits_ring.yaml --out runs/a " in ended.stdout
    helped = subprocess.run([*program, "init", "--help"], env=environ, capture_output=True, text=True, timeout=60)
    assert helped.stdout.endswith("  # Write them into the current directory\n  fedh2l-mpi init .\n")
