"""Run directories that tests of analysis share."""

import shutil
from pathlib import Path

import pytest
from helpers.written_runs import write


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any damage."""
    return write(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def run_path(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to change."""
    return shutil.copytree(sound, tmp_path / "run")
