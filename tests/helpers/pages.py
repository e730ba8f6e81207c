"""The fenced blocks of a page of documentation, and running them.

The blocks of a page run in order, in one folder. A comment on the line above a block changes that:

- `<!-- test: skip, REASON -->`: the block does not run.
- `<!-- test: with WORDS -->`: every run that the block starts gets these words, such as `--set rounds=2`.
- `<!-- test: file NAME -->`: the block is the content of this file.
- `<!-- test: output -->`: the shell block before it prints these lines, apart from their numbers.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.launching import OPENMPI_ENVIRONMENT, ROOT, mpich, own_launcher_folder

LANGUAGES_THAT_RUN = ("sh", "python")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and what the comment above it asks."""

    language: str
    text: str
    asked: str

    def runs(self) -> bool:
        return self.language in LANGUAGES_THAT_RUN and not self.asked.startswith(("skip", "file"))


def blocks(page: Path) -> Iterator[Block]:
    fenced = r"(?:^<!-- test: (?P<asked>.*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    for found in re.finditer(fenced, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield Block(found["language"], found["text"], found["asked"] or "")


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in a folder that has `configs/`, as in the repository."""
    (folder / "configs").symlink_to(ROOT / "configs")
    printed, session = "", ""
    for block in [*blocks(page), Block("end", "", "")]:
        # Python blocks that follow each other are the cells of one session.
        if session and block.language != "python":
            run_command([sys.executable, "-c", session], folder)
            session = ""
        if block.asked.startswith("file "):
            (folder / block.asked.removeprefix("file ")).write_text(block.text)
        elif block.asked == "output":
            missing = [line for line in shape(block.text) if line not in shape(printed)]
            assert not missing, f"{page.name} shows lines that are not printed: {missing}\n{printed}"
        elif block.runs() and block.language == "python":
            session += block.text
        elif block.runs():
            printed = run_command(["bash", "-e", "-c", shell(block)], folder)


def shell(block: Block) -> str:
    """The commands of a block, with the words asked for, and without mpirun where there is none."""
    text = block.text
    if block.asked.startswith("with "):
        a_run = r"python -m fedh2l_mpi (?=-|\S+\.yaml|\\\n)"
        text = re.sub(a_run, lambda found: found[0] + block.asked.removeprefix("with ") + " ", text)
    return text if mpich() else re.sub(r"^mpirun .*$", "", text, flags=re.MULTILINE)


def shape(text: str) -> list[str]:
    """Lines of a table without their numbers, sizes and rules."""
    plain = [re.sub(r"[KMG]iB", "B", re.sub(r"[\d.,]+", "#", line)) for line in text.splitlines()]
    return [" ".join(line.split()) for line in plain if re.search(r"\w", line)]


def run_command(command: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, **OPENMPI_ENVIRONMENT, **own_launcher_folder(), "MPLBACKEND": "Agg", "PATH": path}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder)])
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, f"{command[-1]}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout
