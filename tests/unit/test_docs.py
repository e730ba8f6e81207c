"""README and docs name paths, links and keys that exist, and agree with the program.

Their blocks are run in `tests/mpi/test_pages.py`.
"""

import ast
import json
import re
import sys

import pytest
import yaml
from helpers.four_rounds import THREE, write
from helpers.launching import ROOT
from helpers.pages import blocks, run_command

import fedh2l_mpi
from fedh2l_mpi import metrics
from fedh2l_mpi.config import Config
from fedh2l_mpi.config.keys import as_page, describe_keys

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
# Made by the reader, or a placeholder.
NOT_IN_THE_REPOSITORY = {"jobs/env.sh"}


def test_the_example_of_reading_runs_draws_and_compares(tmp_path):
    write(tmp_path / "runs" / "b", THREE)
    for method in ("fedh2l", "independent"):
        write(tmp_path / "runs" / "methods" / method, THREE, overrides=[f"method.name={method}"])
    example = next(block.text for block in blocks(ROOT / "docs" / "analysis.md") if block.language == "python")
    assert "open_runs" in example
    assert "fedh2l         0.666667" in run_command([sys.executable, "-c", example], tmp_path)
    assert (tmp_path / "by_architecture.png").stat().st_size > 5_000


def test_the_example_of_a_partition_file_is_checked(tmp_path):
    section = (
        (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("## Your own partition")[1].split("\n## ")[0]
    )
    code, command = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    run_command([sys.executable, "-c", code], tmp_path)
    arguments = command.removeprefix("python").split()
    assert "4 domains, file" in run_command([sys.executable, *arguments], tmp_path)


def test_the_recipe_of_the_method_page_is_a_config():
    (shown,) = [block.text for block in blocks(ROOT / "docs" / "method.md") if block.language == "yaml"]
    optimizer = fedh2l_mpi.load_config(yaml.safe_load(shown)).resolved(1, launched=False).optimizer
    assert [optimizer.for_model(name).weight_decay for name in ("cnn", "mlp", "lenet5")] == [0.05, 0.1, 0.05]


def test_the_commands_for_a_paper_and_for_other_programs_write_what_the_page_says(tmp_path):
    for method in ("fedh2l", "independent"):
        for seed in range(2):
            write(
                tmp_path / "runs" / "methods" / f"{method}{seed}", THREE, seed=seed, overrides=[f"method.name={method}"]
            )
    page = ROOT / "docs" / "analysis.md"
    commands = [
        block.text
        for block in blocks(page)
        if block.language == "sh" and re.search("runs/methods --(order|to)", block.text)
    ]
    for command in commands:
        run_command(["bash", "-e", "-c", command], tmp_path)
    text = (tmp_path / "methods.tex").read_text()
    assert text.index("FedH2L & 80.0") < text.index("independent & 80.0")
    assert r"\label{tab:methods-differences}" in text
    assert (tmp_path / "worst.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "tables" / "rounds.csv").read_text().startswith("run,method.name,")
    assert len(list((tmp_path / "logs").glob("*/events.out.tfevents.*"))) == 4


# What the trackers' own packages do with the calls of the page, in memory.
STAND_INS = """
import contextlib, json, types

def note(values, step):
    print(json.dumps([step, values.get("accuracy_all"), values["bytes_sent"]]))

def log_params(config):
    assert config["rounds"] == 10

log_metrics = note

@contextlib.contextmanager
def start_run():
    yield

@contextlib.contextmanager
def init(project, config, mode):
    assert mode == "offline"
    yield types.SimpleNamespace(log=note)
"""


def test_the_lines_for_trackers_give_them_every_round(tmp_path):
    for name in ("mlflow", "wandb"):
        (tmp_path / f"{name}.py").write_text(STAND_INS)
    texts = [block.text for block in blocks(ROOT / "docs" / "notebook.md") if block.language == "python"]
    (first,) = (text for text in texts if "import fedh2l_mpi" in text)
    setting = first[: first.index("ring =")]
    printed = run_command([sys.executable, "-c", setting + "\n".join(texts[-3:])], tmp_path)
    told = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    assert [step for step, _, _ in told] == [*range(1, 11)] * 2
    read = metrics.read(tmp_path / "runs" / "wandb" / "metrics.h5")
    for step, accuracy, sent in told:
        expected = read["accuracy_all"][step - 1].mean()
        assert accuracy == (None if step % 2 else pytest.approx(expected))
        assert sent == read["bytes_sent"][step - 1].mean()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:benchmarks|configs|docs|fedh2l_mpi|jobs|tests)/[\w./-]*\w", text)
    for path in {name for name in named if not re.search(r"[A-Z]{3}", name)} - NOT_IN_THE_REPOSITORY:
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path
    for module in set(re.findall(r"python -m (benchmarks\.\w+)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


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
    # A word in place of a section is its kind, as in topology=ring.
    kinds = {name for name, field in Config.model_fields.items() if getattr(field.annotation, "kind_key", "")}
    known |= kinds | {"data.partition", "faults.participation"}
    named = re.findall(r"--set ([\w.]+)=", text)
    named += re.findall(rf"`((?:{sections})\.(?!py\b)[\w.]+)[`=:]", text)
    assert not [
        name for name in named if name not in known and not name.startswith(("method.options.", "data.options."))
    ]


def test_the_page_of_the_keys_is_fresh():
    stored = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert stored == as_page(), "run: python -m fedh2l_mpi.config.keys > docs/configuration.md"


def test_the_order_of_rooms_is_the_one_that_imports_keep():
    source = (ROOT / "tests" / "unit" / "test_layers.py").read_text(encoding="utf-8")
    order = re.search(r"^ROOMS = (\(.*?^\))", source, re.MULTILINE | re.DOTALL)
    shown = [block.text for block in blocks(ROOT / "docs" / "architecture.md") if block.text.startswith("__main__")]
    assert order is not None
    assert [" ".join(text.split()) for text in shown] == [ast.literal_eval(order[1])]


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
