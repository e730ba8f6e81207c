"""Fixtures of all unit tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    # Random inputs without a seed made rare failures that nobody could repeat. Tests without torch stay without it.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
