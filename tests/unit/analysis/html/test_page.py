"""The report's page, without a browser: one file, nothing from elsewhere, nothing of the runs' names taken as HTML."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import compared_runs
from helpers.four_rounds import THREE, write

from fedh2l_mpi.analysis import html, summary
from fedh2l_mpi.analysis import run as runs
from fedh2l_mpi.analysis.figures import method_looks
from fedh2l_mpi.analysis.html import matrix
from fedh2l_mpi.errors import UserError


def built(tmp_path, *folders, baseline=None):
    looked = [runs.load_run(folder) for folder in folders]
    against = runs.load_run(baseline) if baseline else None
    html.build(looked, [summary.summarise(run, against) for run in looked], tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


@pytest.fixture
def no_plots(monkeypatch):
    """Faster, where a test is about something else."""
    monkeypatch.setattr(html, "PLOTS", ())


class Tags(HTMLParser):
    """Raises AssertionError where an element is closed that is not the innermost open one."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Of SVG: closed at once."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    text = built(tmp_path, write(tmp_path / "a", THREE), write(tmp_path / "b", THREE), baseline=tmp_path / "a")
    assert "default-src 'none'" in text
    assert not re.findall(r"<(?:link|iframe|object|embed)\b|<script[^>]*\bsrc=", text)
    # Names of XML's own vocabularies are no addresses to fetch from.
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {"http://www.w3.org/1999/xlink"}
    assert addresses <= {"http://www.w3.org/2000/svg"}
    # Every figure but calibration, of which these files know nothing.
    assert text.count("<svg") == 2 * 6
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    # Every link within the page has its target.
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("no_plots")
def test_names_are_text_and_never_markup(tmp_path):
    evil = "<script>alert(1)</script>&é_"
    text = built(tmp_path, write(tmp_path / "a&b", THREE, architecture=evil))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;é_" in text
    assert "a&amp;b" in text


@pytest.mark.usefixtures("no_plots")
def test_the_slider_has_every_evaluated_round_as_long_as_there_is_room(tmp_path):
    text = built(tmp_path, write(tmp_path / "run", THREE))
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    (run,) = json.loads(embedded)["runs"].values()
    assert run["after"] == [2, 4]
    assert run["cells"] == [[450, 250, 300, 400, 350, 250], [900, 500, 600, 800, 700, 500]]
    rows = np.arange(7, 107)
    assert matrix.thinned(rows, 20)[[0, -1]].tolist() == [7, 106]
    assert len(set(matrix.thinned(rows, 20))) == 20
    assert matrix.thinned(rows[:3], 20).tolist() == [7, 8, 9]


def test_the_matrix_has_the_digits_that_the_tables_have():
    values = np.array([0.0, 0.0005, 0.0625, 0.1235, 0.9995, 1.0, np.nan])
    shown = [html._permille(cell) for cell in matrix.per_mille(values).tolist()]
    assert shown == [*(f"{value:.3f}" for value in values[:-1]), "–"]


def test_every_colour_is_told_apart_from_its_number():
    for colour in matrix.palette():
        ink = {"#000": "#000000", "#fff": "#ffffff"}[matrix.ink_on(colour)]
        assert matrix.contrast(colour, ink) >= 4.5, colour
    assert matrix.contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.usefixtures("no_plots")
def test_many_participants_are_a_picture_sorted_by_own_domain_with_quantiles_and_extremes(tmp_path):
    from PIL import Image

    accuracy_PD = np.linspace(0.1, 1, 200).reshape(100, 2)
    text = built(tmp_path, write(tmp_path / "many", accuracy_PD))
    (encoded,) = re.findall(r'<img src="data:image/png;base64,([^"]+)"', text)
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as png:
        levels_PD = np.asarray(png)
    # The participants of even number hold domain 0. Colours go from 0 to 1, since the first round has 0.05.
    sorted_PD = accuracy_PD[[*range(0, 100, 2), *range(1, 100, 2)]]
    assert levels_PD.tolist() == np.minimum(63, np.floor(sorted_PD.round(3) * 64)).tolist()
    assert "Lowest 5 in all-domain accuracy" in text
    # Of 0.1 to 1 in equal steps, on the first domain.
    assert re.search(r'<th scope="row">median</th><td>0\.548</td>', text)


def groups_of(text):
    """Cells of the table of groups, by the name of the group."""
    table = text[text.index('<section id="groups">') :].partition("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows}


def test_a_page_of_a_sweep_begins_with_its_groups_and_their_curves(tmp_path):
    for method, accuracies in {"independent": [0.5, 0.6, 0.55], "fedh2l": [0.72, 0.83, 0.70]}.items():
        for seed, accuracy in enumerate(accuracies):
            folder = tmp_path / "sweep" / f"{method},{seed}"
            compared_runs.write(
                folder, f"method.name={method}", seed=seed, accuracy=accuracy, sent=10 * (method != "independent")
            )
    text = built(tmp_path, *runs.find([str(tmp_path / "sweep")]))
    assert text.index('id="groups"') < text.index("Comparison of the runs") < text.index('id="run-1"')
    assert '<a href="#groups">' in text
    # Means 0.55 and 0.75, deviations 0.05 and 0.07; t of 2 degrees is 4.30265, over the root of 3 seeds: 2.48414.
    # The differences 0.22, 0.23, 0.15 have the mean 0.2 and the deviation 0.043589.
    assert groups_of(text) == {
        "fedh2l": ["3", "0.900 ± 0.000", "0.750 ± 0.174", "0.200 ± 0.000", "20 B", "+0.200 [+0.092, +0.308]"],
        "independent": ["3", "0.900 ± 0.000", "0.550 ± 0.124", "0.200 ± 0.000", "0 B", "-"],
    }
    for title in ("Accuracy over rounds", "Accuracy over bytes", "Lowest accuracy over rounds"):
        assert text.count(f"<b>{title}.</b>") == 1
    # A method's own colours, and why one is missing where bytes are the axis.
    assert method_looks.look_of("fedh2l").colour.lower() in text.lower()
    assert "not shown (sends nothing): independent" in re.sub(r"\s+", " ", text)


@pytest.mark.usefixtures("no_plots")
def test_runs_without_an_end_are_no_groups_and_what_is_left_out_is_said(tmp_path):
    folders = [compared_runs.write(tmp_path / name, seed=i, rounds=1, state="stopped") for i, name in enumerate("ab")]
    assert 'id="groups"' not in built(tmp_path, *folders)
    assert 'id="groups"' not in built(tmp_path, folders[0], compared_runs.write(tmp_path / "c"))
    folders += [tmp_path / "c", compared_runs.write(tmp_path / "d", seed=1)]
    text = built(tmp_path, *folders)
    assert groups_of(text)["fedh2l"][0] == "2"
    assert f"left out: {folders[0]}: stopped before round 1: 1 of 2 rounds finished" in text


def test_a_page_of_many_runs_has_the_groups_plots_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MOST_PLOTTED", 1)
    text = built(tmp_path, *(write(tmp_path / name, THREE, seed=i) for i, name in enumerate("ab")))
    assert text.count("<figure>") == 3
    assert text.count("A page of more than 1 runs has no plots of single runs.") == 2


def test_without_matplotlib_there_are_numbers_and_a_line_about_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = built(tmp_path, write(tmp_path / "run", THREE))
    assert "<svg" not in text
    assert text.count("matplotlib was not installed") == 1
    assert ">0.900</td>" in text
    text = built(tmp_path, tmp_path / "run", write(tmp_path / "other", THREE, seed=1))
    assert "There are no curves, because matplotlib was not installed" in text
    assert groups_of(text)["fedh2l"][2] == "0.667 ± 0.000"


def test_what_is_not_known_is_a_dash_and_said(tmp_path):
    nothing = np.full((2, 2), np.nan)
    text = built(tmp_path, write(tmp_path / "run", nothing, state="failed", planned=9))
    assert "no round of this run has been evaluated" in text
    assert "failed in round 4: 4 of 9 rounds finished" in text
    assert ">nan<" not in text.lower()


@pytest.mark.usefixtures("no_plots")
def test_a_page_that_cannot_be_written_is_told(tmp_path):
    run = runs.load_run(write(tmp_path / "run", THREE))
    for out, told in (
        (tmp_path / "no" / "page.html", "cannot be written: No such file"),
        (run.file / "page.html", "cannot be written: Not a directory"),
        (tmp_path / ("n" * 255), "cannot be written: File name too long"),
        (tmp_path, "is a directory. Choose the name of a file"),
        (Path(), "is a directory. Choose the name of a file"),
    ):
        with pytest.raises(UserError, match=f"--html: .* {told}"):
            html.build([run], [summary.summarise(run)], out)
