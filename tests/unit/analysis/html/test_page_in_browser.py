"""The report's page as a person meets it: a real Chromium without a network, keyboard only, phone, dark, paper."""

import re
import shutil

import numpy as np
import pytest
from helpers.four_rounds import THREE, write

from fedh2l_mpi.analysis import html, summary
from fedh2l_mpi.analysis import run as runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# The upper left one, as red, green, blue: of a copy, since Chromium complains of a canvas that is read.
PIXEL = """canvas => {
  const copy = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian's package chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run, baseline = (runs.load_run(write(folder / name, THREE)) for name in ("run", "alone"))
    html.build([run], [summary.summarise(run, baseline)], folder / "page.html")
    return (folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def address_of_two(tmp_path_factory):
    """Two runs, one of 100 participants and a long name."""
    folder = tmp_path_factory.mktemp("two")
    many = np.linspace(0.1, 1, 400).reshape(100, 4)
    looked = [runs.load_run(write(folder / name, values)) for name, values in (("few", THREE), ("many_&<" * 12, many))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "PLOTS", ())  # the other page has them
        html.build(looked, [summary.summarise(run, looked[0]) for run in looked], folder / "page.html")
    return (folder / "page.html").as_uri()


def opened(browser, address, **options):
    context = browser.new_context(offline=True, **options)
    shown, said = context.new_page(), []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: said.append(request.url) if request.url != address else None)
    shown.goto(address)
    return shown, said


def numbers(shown):
    return [float(text) for text in shown.locator("table.numbers tbody td").all_text_contents()]


def test_the_slider_shows_the_accuracies_of_each_round_by_keyboard_alone(browser, address):
    shown, said = opened(browser, address)
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "skip"
    assert numbers(shown) == [0.9, 0.5, 0.6, 0.8, 0.7, 0.5]
    for _ in range(40):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.type") == "range":
            break
    shown.keyboard.press("ArrowLeft")
    assert numbers(shown) == [0.45, 0.25, 0.3, 0.4, 0.35, 0.25]
    assert shown.locator("output").text_content() == "after 2 rounds"
    shown.keyboard.press("End")
    assert numbers(shown) == [0.9, 0.5, 0.6, 0.8, 0.7, 0.5]
    assert said == []


def test_buttons_step_and_play_and_pause(browser, address):
    shown, _ = opened(browser, address)
    shown.get_by_role("button", name="Previous").press("Enter")
    assert shown.locator("output").text_content() == "after 2 rounds"
    shown.get_by_role("button", name="Play").press("Enter")
    shown.get_by_role("button", name="Pause").wait_for()
    # It ends by itself at the last round.
    shown.get_by_role("button", name="Play").wait_for()
    assert shown.locator("output").text_content() == "after 4 rounds"


def test_many_participants_colours_and_quantiles_follow_the_slider(browser, address_of_two):
    shown, said = opened(browser, address_of_two)
    block = shown.locator(".matrix", has=shown.locator("canvas"))
    quantiles = block.locator(".summary tr", has_text=re.compile("lowest|highest")).locator("td")
    seen = []
    for key in ("End", "Home"):
        block.locator("input").press(key)
        seen.append(([float(text) for text in quantiles.all_text_contents()], block.locator("canvas").evaluate(PIXEL)))
    (last, colour_of_last), (first, colour_of_first) = seen
    # By the table's three digits, everything was half as good.
    assert first == pytest.approx([value / 2 for value in last], abs=0.001)
    assert (last[0], last[-1]) == (0.1, 1.0)
    assert sum(colour_of_first) < sum(colour_of_last), "the colour map is darker where accuracy is lower"
    assert said == []


def test_a_phone_scrolls_down_and_never_sideways(browser, address, address_of_two):
    for one in (address, address_of_two):
        shown, _ = opened(browser, one, viewport={"width": 360, "height": 740})
        assert shown.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_dark_is_dark_and_light_is_light(browser, address):
    grounds = []
    for scheme in ("light", "dark"):
        shown, _ = opened(browser, address, color_scheme=scheme)
        canvas = "getComputedStyle(document.body).backgroundColor"
        ink = "getComputedStyle(document.querySelector('svg text, svg')).fill"
        grounds.append((shown.evaluate(canvas), shown.evaluate(ink)))
    assert grounds[0][0] != grounds[1][0]
    assert grounds[0][1] != grounds[1][1], "the figures do not follow"


def test_without_scripts_the_last_round_is_there_and_on_paper_too(browser, address):
    shown, _ = opened(browser, address, java_script_enabled=False)
    assert numbers(shown) == [0.9, 0.5, 0.6, 0.8, 0.7, 0.5]
    assert not shown.locator("input[type=range]").is_visible()
    assert len(shown.pdf()) > 20_000
