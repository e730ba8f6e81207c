"""README and docs: their blocks run, their paths, links and keys exist, and they print what they show.

The fenced blocks of a page run in order, in one folder. A comment on the line above a block changes that:

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

import pytest
import yaml
from helpers.four_rounds import THREE, write
from helpers.launching import OPENMPI_ENVIRONMENT, ROOT, mpich, own_launcher_folder

import fedh2l_mpi
from fedh2l_mpi import metrics
from fedh2l_mpi.config.keys import as_page, describe_keys

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
LANGUAGES_THAT_RUN = ("sh", "python")
# Made by the reader, or a placeholder.
NOT_IN_THE_REPOSITORY = {"jobs/env.sh"}
needs_api = pytest.mark.skipif(not hasattr(fedh2l_mpi, "run"), reason="fedh2l_mpi.run is not there yet")


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
            _run([sys.executable, "-c", session], folder)
            session = ""
        if block.asked.startswith("file "):
            (folder / block.asked.removeprefix("file ")).write_text(block.text)
        elif block.asked == "output":
            missing = [line for line in shape(block.text) if line not in shape(printed)]
            assert not missing, f"{page.name} shows lines that are not printed: {missing}\n{printed}"
        elif block.runs() and block.language == "python":
            session += block.text
        elif block.runs():
            printed = _run(["bash", "-e", "-c", shell(block)], folder)


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


def _run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, **OPENMPI_ENVIRONMENT, **own_launcher_folder(), "MPLBACKEND": "Agg", "PATH": path}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder)])
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, f"{command[-1]}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@needs_api
@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/notebook.md"])
def test_the_blocks_of_a_page_run_and_print_what_it_shows(name, tmp_path):
    run_page(ROOT / name, tmp_path)


@needs_api
def test_the_examples_of_a_method_a_model_and_data_of_ones_own_are_short_and_learn(tmp_path):
    page = ROOT / "docs" / "extending.md"
    run_page(page, tmp_path)
    example = next(block for block in blocks(page) if block.asked == "file my_methods.py")
    assert len(example.text.splitlines()) <= 30
    boldest = metrics.read(tmp_path / "runs" / "boldest" / "metrics.h5")
    assert (boldest["bytes_sent"] == 2 * (48 + 4 + 4 * 288 * 10)).all()
    # Alone, participants reach 0.58 in this many rounds.
    assert boldest["accuracy_all"][-1].mean() > 0.7
    for run in ("net", "warm"):
        names = metrics.read(tmp_path / "runs" / run / "metrics.h5")["architecture"].tolist()
        assert names == [b"my_models:Net", b"cnn"] * 2
    assert len(metrics.read(tmp_path / "runs" / "pictures" / "metrics.h5")["domain"]) == 2


def test_the_example_of_reading_runs_draws_and_compares(tmp_path):
    write(tmp_path / "runs" / "b", THREE)
    for method in ("fedh2l", "independent"):
        write(tmp_path / "runs" / "methods" / method, THREE, overrides=[f"method.name={method}"])
    example = next(block.text for block in blocks(ROOT / "docs" / "analysis.md") if block.language == "python")
    assert "open_runs" in example
    assert "fedh2l         0.666667" in _run([sys.executable, "-c", example], tmp_path)
    assert (tmp_path / "by_architecture.png").stat().st_size > 5_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:benchmarks|configs|docs|fedh2l_mpi|jobs|tests)/[\w./-]*\w", text)
    for path in {name for name in named if not re.search(r"[A-Z]{3}", name)} - NOT_IN_THE_REPOSITORY:
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path
    for module in set(re.findall(r"python -m (benchmarks\.\w+)", text)):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, f"{target}: known are {slugs}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_sets_is_one(page):
    text = page.read_text(encoding="utf-8").replace("section.key=", "")
    known = {key.name for key in describe_keys()}
    sections = "|".join(sorted({name.partition(".")[0] for name in known if "." in name} - {"run"}))
    named = re.findall(r"--set ([\w.]+)=", text)
    named += re.findall(rf"`((?:{sections})\.(?!py\b)[\w.]+)[`=:]", text)
    assert not [name for name in named if name not in known and not name.startswith("method.options.")]


def test_the_page_of_the_keys_is_fresh():
    stored = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert stored == as_page(), "run: python -m fedh2l_mpi.config.keys > docs/configuration.md"


def test_the_tutorial_is_short():
    assert len((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS if f"docs/{page.name})" not in text]


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fedh2l_mpi.__version__
    assert citation["license"] == "MIT"


def test_the_commit_hooks_run_what_make_lint_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lint is not None
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in lint[1].splitlines()]
