"""Fixtures of all unit tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _width_of_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    # The readline library sets these for child processes, such as the workers of pytest-xdist.
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    # Random inputs without a seed made rare failures that nobody could repeat. Tests without torch stay without it.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
