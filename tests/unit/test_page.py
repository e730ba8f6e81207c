"""The report's page, without a browser: one file, nothing from elsewhere, nothing of the runs' names taken as HTML."""

import json
import re

import numpy as np
import pytest
from test_report import THREE, write

from fedh2l_mpi.analysis import page, runs, summary
from fedh2l_mpi.errors import UserError


def built(tmp_path, *folders, baseline=None):
    looked = [runs.look_at(folder) for folder in folders]
    against = runs.look_at(baseline) if baseline else None
    page.build(looked, [summary.summarise(run, against) for run in looked], tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    text = built(tmp_path, write(tmp_path / "a", THREE), write(tmp_path / "b", THREE), baseline=tmp_path / "a")
    assert "default-src 'none'" in text
    assert not re.findall(r"<(?:link|iframe|object|embed)\b|<script[^>]*\bsrc=", text)
    # Names of XML's own vocabularies are no addresses to fetch from.
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {"http://www.w3.org/1999/xlink"}
    assert addresses <= {"http://www.w3.org/2000/svg"}
    # Every figure but calibration, of which these files know nothing.
    assert text.count("<svg") == 2 * 5
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_names_are_text_and_never_markup(tmp_path):
    evil = "<script>alert(1)</script>&é_"
    text = built(tmp_path, write(tmp_path / "a&b", THREE, architecture=evil))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;é_" in text
    assert "a&amp;b" in text


def test_the_slider_has_every_evaluated_round_and_many_participants_only_some(tmp_path):
    text = built(tmp_path, write(tmp_path / "run", THREE))
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    (run,) = json.loads(embedded)["runs"].values()
    assert run["after"] == [2, 4]
    assert run["cells"] == [[450, 250, 300, 400, 350, 250], [900, 500, 600, 800, 700, 500]]
    many = built(tmp_path, write(tmp_path / "many", np.linspace(0.1, 1, 200).reshape(100, 2)))
    assert "<canvas" in many
    assert "median" in many


def test_what_is_not_known_is_a_dash_and_said(tmp_path):
    nothing = np.full((2, 2), np.nan)
    text = built(tmp_path, write(tmp_path / "run", nothing, state="failed", planned=9))
    assert "no round of this run has been evaluated" in text
    assert "failed in round 4: 4 of 9 rounds finished" in text
    assert ">nan<" not in text.lower()


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    run = runs.look_at(write(tmp_path / "run", THREE))
    with pytest.raises(UserError, match="cannot be written"):
        page.build([run], [summary.summarise(run)], tmp_path / "no" / "page.html")
