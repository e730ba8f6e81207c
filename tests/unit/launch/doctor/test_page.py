"""The doctor's page: its verdict and its width."""

import pytest

from fedh2l_mpi.launch.doctor.findings import fact, failure, good, warning
from fedh2l_mpi.launch.doctor.page import Page


@pytest.mark.parametrize(
    ("lines", "verdict", "failed"),
    [
        ([good("a", "b"), fact("c", "d")], "a run would work here", False),
        ([warning("a", "b", "c")], "a run would work here: 1 warning", False),
        (
            [failure("a", "b", "c"), failure("d", "e", "f"), warning("g", "h", "i")],
            "a run would not work here: 2 failures, 1 warning",
            True,
        ),
    ],
)
def test_failures_and_warnings_are_told_apart_and_a_failure_decides(capsys, lines, verdict, failed):
    page = Page()
    page.show("section", lines)
    page.close()
    assert page.failed is failed
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "section"
    assert out[-1] == verdict
    for line, told in zip(lines, out[1:-1], strict=True):
        assert told.split() == [word for word in (line.level.value, line.what, *line.text.split()) if word]


def test_a_piped_page_is_80_columns_of_plain_text(capsys):
    page = Page()
    page.show("section", [failure("directory", "/a" * 100, "choose another"), good("[b]x[/b]", "word " * 40)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "[b]x[/b]" in out
