"""What the README shows must work as it stands."""

import re
import subprocess
import sys
import textwrap

from helpers.four_rounds import THREE, write
from helpers.launching import ROOT, launch

from fedh2l_mpi import metrics


def block_after(heading: str) -> str:
    """The first indented block after a line of the README that contains `heading`."""
    text = (ROOT / "README.md").read_text().split(heading, 1)[1]
    block = re.search(r"(?:^ {4}.*\n|^\n)+", text[text.index("\n    ") + 1 :], re.MULTILINE)
    assert block is not None
    return textwrap.dedent(block.group()).strip() + "\n"


def test_the_example_of_a_method_of_ones_own_is_short_and_learns(tmp_path):
    example = block_after("`my_methods.py`")
    assert len(example.splitlines()) <= 30
    (tmp_path / "my_methods.py").write_text(example)
    settings = ["method.name=my_methods:Boldest", "method.options.weight=0.5", "rounds=12"]
    words = [word for setting in settings for word in ("--set", setting)]
    ended = launch([*words, "--quiet", "--out", "run"], cwd=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert ended.code == 0, ended.err
    run = metrics.read(tmp_path / "run" / "metrics.h5")
    assert (run["bytes_sent"] == 2 * (48 + 4 + 4 * 288 * 10)).all()
    # Alone, participants reach 0.58 in so many rounds.
    assert run["accuracy_all"][-1].mean() > 0.7


def test_the_example_of_a_model_of_ones_own_runs(tmp_path):
    (tmp_path / "my_models.py").write_text(block_after("`my_models.py`"))
    ended = launch(
        ["--set", "models=[my_models:Net, cnn]", "--set", "rounds=1", "--quiet", "--out", "run"],
        cwd=tmp_path,
        environ={"PYTHONPATH": str(ROOT)},
    )
    assert ended.code == 0, ended.err
    names = metrics.read(tmp_path / "run" / "metrics.h5")["architecture"].tolist()
    assert names == [b"my_models:Net", b"cnn"] * 2


def test_the_example_of_reading_runs_draws_and_compares(tmp_path):
    write(tmp_path / "runs" / "b", THREE)
    for method in ("fedh2l", "independent"):
        write(tmp_path / "runs" / "methods" / method, THREE, overrides=[f"method.name={method}"])
    example = block_after("a dash or NaN, and a line says what is wrong")
    assert "open_runs" in example
    ended = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "fedh2l         0.666667" in ended.stdout
    assert (tmp_path / "by_architecture.png").stat().st_size > 5_000


def test_every_path_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "results.md").read_text()
    for path in set(re.findall(r"\b(?:configs|benchmarks|tests|fedh2l_mpi)/[\w./]+\w", text)):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path
