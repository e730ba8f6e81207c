"""Shell completion: what a real bash offers with the printed script."""

import shutil
import subprocess

import pytest

from fedh2l_mpi.cli import completion

# Completes the last of the words as readline would.
DRIVE = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
spec=$(complete -p fedh2l-mpi) && [[ $spec =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(completion.script("bash"))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["swe"], ["sweep"]),
        (["--resu"], ["--resume"]),
        (["--resume", "re"], ["require"]),
        (["mine"], ["mine.yaml"]),
        (["report", "--base"], ["--baseline"]),
        (["report", "--format", "mark"], ["markdown"]),
        (["plan", "--no-"], ["--no-calibration"]),
        (["slurm", "--set", "x=1", "--gpus"], ["--gpus-per-node"]),
        (["plot", "min"], ["mine.yaml"]),
    ],
)
def test_bash_completes_commands_options_and_files(script, tmp_path, words, offered):
    (tmp_path / "mine.yaml").touch()
    ended = subprocess.run(
        ["bash", "-c", DRIVE, "bash", str(script), "fedh2l-mpi", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.stdout.split(), ended.stderr) == (offered, "")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_every_command(shell):
    text = completion.script(shell)
    for word in ("init", "report", "slurm", "print-completion", "share-imports"):
        assert word in text
