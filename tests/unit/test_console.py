"""What a person sees: the table at the end, and the lines on the way."""

import io
import logging

import numpy as np
import pytest
from rich.console import Console

from fedh2l_mpi import console, metrics
from fedh2l_mpi.config import Config


def finished(participants: int = 3, domains: int = 2) -> metrics.RunMetrics:
    rounds = 4
    shape = (rounds, participants)
    arrays = {
        "architecture": np.array([b"lenet5"] * participants),
        "parameters": np.full(participants, 11_173_962),
        "parameter_bytes": np.full(participants, 44_695_848),
        "bytes_sent": np.full(shape, 1000),
        "degree": np.full(shape, 2),
        "round": np.arange(rounds),
        "accuracy": np.full((*shape, domains), 0.5),
    }
    arrays |= {name: np.full(shape, 0.5) for name in ("accuracy_own", "accuracy_worst")}
    nan = np.nan
    arrays["accuracy_all"] = np.array([[nan] * 3, [0.8, 0.5, 0.5], [nan] * 3, [0.7, 0.6, 0.5]])[:, :participants]
    arrays["accuracy_validation"] = np.array([[nan] * 3, [0.9, 0.5, nan], [nan] * 3, [0.8, 0.5, nan]])[:, :participants]
    return metrics.RunMetrics({}, arrays, True)


def test_the_round_that_validation_chooses_is_the_best_or_the_first_of_equals():
    chosen = console.accuracy_at_best_validation(finished())
    assert chosen[:2].tolist() == [0.8, 0.5]
    assert np.isnan(chosen[2]), "without validation data no round is chosen"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_no_number(width):
    shown = io.StringIO()
    Console(width=width, file=shown).print(console.result_table(finished()))
    text = shown.getvalue()
    assert "…" not in text
    for cell in ("0 lenet5", "11,173,962", "0.700", "3.91 KiB", "341 MiB", "mean of 3"):
        assert cell in text, cell


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (29_557_547, "28.2 MiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(count, text):
    assert console.size(count) == text


def test_a_batch_log_has_a_line_for_each_evaluation(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedh2l_mpi"), "propagate", True)
    progress = console.Progress(Config(rounds=4).resolved(1, False), quiet=False)
    quiet_row = metrics.pack_row({"loss_private": 0.5, "seconds_local": 0.1}, [np.nan], [np.nan])
    row = metrics.pack_row({"loss_private": 0.5, "accuracy_all": 0.75, "seconds_local": 0.1}, [0.75], [1.0])
    with caplog.at_level(logging.INFO, "fedh2l_mpi"):
        progress.round(0, np.stack([quiet_row]))
        progress.round(1, np.stack([row]))
    (line,) = caplog.messages
    assert line.startswith("2 of 4 rounds: private 0.500 nats")
    assert "all-domain 0.750" in line
    assert "local 100 ms" in line
