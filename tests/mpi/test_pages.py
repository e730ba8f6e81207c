"""The blocks of the pages run, learn, and print what the pages show."""

import numpy as np
import pytest
from helpers.launching import ROOT
from helpers.pages import blocks, run_page

from fedh2l_mpi import metrics

NAMES = ("quickstart", "notebook", "data", "network", "privacy", "robustness")
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run_and_print_what_it_shows(name, tmp_path):
    run_page(ROOT / name, tmp_path)


def test_the_examples_of_a_method_a_model_and_data_of_ones_own_are_short_and_learn(tmp_path):
    page = ROOT / "docs" / "extending.md"
    run_page(page, tmp_path)
    example = next(block for block in blocks(page) if block.asked == "file my_methods.py")
    assert len(example.text.splitlines()) <= 30
    views = next(block for block in blocks(page) if block.asked == "file my_views.py")
    assert len(views.text.splitlines()) < 60
    boldest = metrics.read(tmp_path / "runs" / "boldest" / "metrics.h5")
    # Two views of each of 288 samples.
    assert (boldest["bytes_sent"] == 2 * (48 + 4 + 4 * 2 * 288 * 10)).all()
    # Alone, participants reach 0.58 in this many rounds.
    assert boldest["accuracy_all"][-1].mean() > 0.7
    views = metrics.read(tmp_path / "runs" / "views" / "metrics.h5")
    assert (views["bytes_sent"] == 2 * (48 + 4 + 4 * 2 * 288 * 10)).all()
    # Alone, participants reach 0.40 here.
    assert views["accuracy_all"][-1].mean() > 0.58
    assert np.isnan(views["conflict_rate"]).all()
    for run in ("net", "warm"):
        names = metrics.read(tmp_path / "runs" / run / "metrics.h5")["architecture"].tolist()
        assert names == [b"my_models:Net", b"cnn"] * 2
    assert len(metrics.read(tmp_path / "runs" / "pictures" / "metrics.h5")["domain"]) == 2
