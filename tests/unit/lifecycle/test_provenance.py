"""Which code made a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedh2l_mpi
from fedh2l_mpi.lifecycle import provenance

PACKAGE = Path(fedh2l_mpi.__file__).parent
ASK = """
from fedh2l_mpi.lifecycle.provenance import git_revision, source_digest
print(git_revision(), source_digest().hex())
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def ask(folder: Path, **environ: str) -> list[str]:
    environ = {**os.environ, **environ}
    return subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, env=environ, capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_revision_is_that_of_our_own_checkout_only(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "fedh2l_mpi", ignore=shutil.ignore_patterns("__pycache__"))
    assert ask(tmp_path)[0] == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("fedh2l_mpi\n__pycache__\n")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-qm", "somebody else's project, with ours installed inside")
    assert ask(tmp_path)[0] == "unknown"
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "ours")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert ask(tmp_path)[0] == commit
    # As in a hook of another repository.
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-qm", "another", "--allow-empty")
    (tmp_path / ".git/info/exclude").write_text("other\n")
    theirs = {"GIT_DIR": ".git", "GIT_WORK_TREE": ".", "GIT_INDEX_FILE": ".git/none", "GIT_OBJECT_DIRECTORY": ".git"}
    for name, value in {**theirs, "GIT_CEILING_DIRECTORIES": "..", "GIT_CONFIG_PARAMETERS": "'core.bare'='x'"}.items():
        assert ask(tmp_path, **{name: str(other / value) if value.startswith(".") else value})[0] == commit, name
    (tmp_path / "fedh2l_mpi" / "errors.py").write_text("")
    assert provenance.source_digest().hex() != ask_digest_of_changed(tmp_path)


def ask_digest_of_changed(folder: Path) -> str:
    # errors.py is empty now: only provenance, which does not need it, can still be imported.
    revision, digest = ask(folder)
    assert revision.endswith("-dirty")
    return digest


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC ...\n",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)\n", "570.86.15"),
        ("another text", None),
        (None, None),
    ],
)
def test_the_driver_is_the_one_that_it_says_itself(tmp_path, text, version):
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert provenance.driver_version(tmp_path / "version") == version


@pytest.mark.parametrize(("cuda", "hip", "toolkit"), [("12.8", None, "cuda"), (None, "6.2", "rocm")])
def test_a_gpu_has_three_libraries_and_a_cpu_none(monkeypatch, cuda, hip, toolkit):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(provenance, "driver_version", lambda: None)
    more = {toolkit: cuda or hip, "cudnn": "91002", "driver": "unknown"}
    alone, with_gpu = (json.loads(provenance.versions("none", on_gpu)) for on_gpu in (False, True))
    assert with_gpu == alone | more
    assert len(with_gpu) == len(alone) + 3
