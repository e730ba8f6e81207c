"""Names from files of anybody reach the terminal as visible characters."""

import ast
from pathlib import Path

import pytest

import fedh2l_mpi
from fedh2l_mpi.runtime import terminal

PACKAGE = Path(fedh2l_mpi.__file__).parent
# Modules that print texts of their own only, or what a program reads.
OWN_TEXTS = {"analysis/validation/contents.py"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("right \u202e to left", r"right \u202e to left"),
        ("two\u2028lines", r"two\u2028lines"),
        ("größe 数 🙂\ttab\nline", "größe 数 🙂\ttab\nline"),
    ],
)
def test_codes_for_a_terminal_are_shown_and_all_other_text_stays(text, shown, capsys):
    assert terminal.harmless(text) == shown
    terminal.say(text)
    assert capsys.readouterr().out == shown + "\n"
    assert terminal.rich_text(text).plain == shown
    assert terminal.harmless(text, one_line=True) == shown.replace("\t", r"\t").replace("\n", r"\n")


def test_commands_that_read_runs_print_in_one_way():
    for path in (*PACKAGE.glob("analysis/**/*.py"), PACKAGE / "cli/analysis.py", PACKAGE / "cli/pack.py"):
        name = path.relative_to(PACKAGE).as_posix()
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "print" not in calls or name in OWN_TEXTS, name
        assert "csv.writer" not in calls or name == "analysis/csv_lines.py", name
