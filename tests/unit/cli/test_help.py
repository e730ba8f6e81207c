"""The commands and their help: a list that is generated, and examples that work."""

import re
import shlex
from pathlib import Path

import pytest
from helpers.launching import ROOT, launch

from fedh2l_mpi import __version__
from fedh2l_mpi.cli import commands, run
from fedh2l_mpi.config.keys import json_schema
from fedh2l_mpi.errors import UserError

ALL = (run.COMMAND, *commands.COMMANDS.values())
PROGRAM = "python -m fedh2l_mpi"


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        commands.parse([*name.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name or "run")
def test_a_help_ends_with_two_examples_that_can_be_parsed(command, capsys):
    text, _, block = help_of(command.name, capsys).partition("\nExamples:\n")
    assert "\nExit codes: 0 " in text
    purpose_1, line_1, purpose_2, line_2 = block.removesuffix("\n").split("\n")
    assert all(purpose.startswith("  # ") for purpose in (purpose_1, purpose_2))
    for line in (line_1, line_2):
        launcher, _, rest = line.strip().partition(PROGRAM)
        assert re.fullmatch(r"|mpirun -n \d+ ", launcher)
        words = shlex.split(rest)
        assert commands.parse(words).command is command
        # Photographs are the user's own.
        for word in words if command.name != "pack" else ():
            if Path(word).suffix == ".yaml":
                assert (ROOT / word).is_file(), word
            elif "/" in word and not word.endswith("/s"):
                assert re.fullmatch(r"runs/\w+", word), word


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name or "run")
def test_a_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text, _, examples = help_of(command.name, capsys).partition("\nExamples:\n")
    assert examples
    assert max(map(len, text.splitlines())) <= 80


def test_the_main_help_lists_every_command_with_its_summary(capsys):
    lines = help_of("", capsys).splitlines()
    for command in commands.COMMANDS.values():
        assert any(line.split() == f"{command.name} {command.arguments} {command.summary}".split() for line in lines)


def test_a_misspelt_command_gets_a_hint():
    with pytest.raises(UserError, match=r"reprt: neither a command nor a config file \(did you mean 'report'"):
        commands.parse(["reprt"])
    with pytest.raises(UserError, match=r"zzz: neither a command nor a config file\. Commands: init, report, plot"):
        commands.parse(["zzz"])


def test_the_version_is_printed():
    ended = launch(["--version"])
    assert (ended.code, ended.out, ended.err) == (0, f"fedh2l_mpi {__version__}\n", "")


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    request = commands.parse(words)
    assert not commands.needs_world(request)
    assert commands.execute(request, commands.world_of(request)) == 0
    return capsys.readouterr().out


def test_keys_are_printed_all_or_those_of_a_section_or_with_a_word(capsys):
    def names(*words: str) -> list[str]:
        return re.findall(r"^(\S+): ", printed(["--keys", *words], capsys), re.MULTILINE)

    partition = names("data.partition")
    assert partition
    assert all(name.startswith("data.partition.") for name in partition)
    assert set(partition) < set(names("data")) < set(names())
    assert "method.temperature" in names("temperature")
    with pytest.raises(UserError, match=r"--keys: no key contains 'topologi'.* \(did you mean 'topology'"):
        printed(["--keys", "topologi"], capsys)


def test_the_schema_is_printed_as_json(capsys):
    import json

    assert json.loads(printed(["--schema"], capsys)) == json_schema()


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"], ["--nonsense"], ["report"], ["--set", "rounds=0"]])
def test_help_and_mistakes_import_nothing_heavy(words):
    import subprocess
    import sys

    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from fedh2l_mpi.cli.main import main\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'matplotlib', 'rich', 'h5py'} & set(sys.modules), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert ended.stderr.splitlines()[-1] == "set()", ended.stderr
