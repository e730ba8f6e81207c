"""A library that is not installed: each command that needs it names the extra, without a traceback."""

import pytest
from helpers.four_rounds import THREE, write
from helpers.launching import ROOT, launch

# Every Python process imports this file first, those that a sweep or a launcher starts, too.
BLOCK = "import os, sys; sys.modules.update(dict.fromkeys(os.environ['WITHOUT'].split()))\n"
RING, VIEWS = str(ROOT / "configs/digits_ring.yaml"), str(ROOT / "configs/sweeps/views_digits.yaml")
SLURM = ["slurm", RING, "--ranks-per-node", "2", "--time", "1h", "--mpi", "pmix"]
RANKS = ", or [mpi] to run on several ranks"


@pytest.fixture
def ended(tmp_path):
    """Run the program without some libraries."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    write(tmp_path / "run", THREE)

    def without(library, words, ranks=None, module="fedh2l_mpi"):
        path = f"{tmp_path}:{ROOT}"
        environ = {"WITHOUT": library, "PYTHONPATH": path}
        return launch(words, ranks=ranks, environ=environ, cwd=tmp_path, module=module)

    return without


@pytest.mark.parametrize(
    ("library", "extra", "words"),
    [
        ("torch", "run", ["--out", "new"]),
        ("torch", "run", ["--check"]),
        ("torch", "run", ["plan", "--ranks", "2"]),
        ("torch", "run", SLURM),
        ("torch", "run", ["sweep", VIEWS, "--out", "new"]),
        ("sklearn", "run", ["--out", "new"]),
        ("matplotlib", "analysis", ["plot", "run"]),
        ("matplotlib", "analysis", ["compare", "run", "--plot", "new.png"]),
        ("jinja2", "analysis", ["report", "run", "--html", "new.html"]),
        ("xarray", "analysis", ["export", "run", "--to", "netcdf"]),
        ("h5netcdf", "analysis", ["export", "run", "--to", "netcdf"]),
        ("pyarrow", "parquet", ["export", "run", "--to", "parquet"]),
        ("PIL", "vision", ["pack", "photos", "new.h5"]),
        ("torchvision", "vision", ["--set", "models=[torchvision:resnet18]", "--out", "new"]),
        ("shtab", "completion", ["--print-completion", "bash"]),
    ],
)
def test_the_extra_to_install_is_named(ended, tmp_path, library, extra, words):
    result = ended(library, words)
    fix = f"Fix: install the extra [{extra}], as in pip install '.[{extra}]' from a checkout"
    assert result.code == 2, result.err
    assert (
        f"is not installed. {fix}{RANKS if extra == 'run' else ''}.\n" in f"{result.err}\n"
        or "which ships" in result.err
    )
    assert fix in result.err
    assert result.err.startswith("fedh2l_mpi: error: ")
    assert result.err.count("\n") == 1
    # A sweep's directory has its lock; nothing else is left.
    assert not [path for path in tmp_path.glob("new*") if path.is_file() or (path / "metrics.h5").exists()]


def test_from_python_the_extra_is_named_by_a_user_error(ended, tmp_path):
    (tmp_path / "script.py").write_text("import fedh2l_mpi as fh\nfh.run({'rounds': 1}, out='new')\n")
    result = ended("torch", [], module="script")
    assert "UserError: torch is not installed. Fix: install the extra [run]" in result.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [["report", "run"], ["compare", "run"], ["--keys"], ["--help"]])
def test_what_needs_no_training_works_without_torch_and_mpi(ended, words):
    assert ended("torch mpi4py sklearn", words).code == 0


def test_a_page_without_matplotlib_says_why_it_has_no_plots(ended, tmp_path):
    assert ended("matplotlib", ["report", "run", "--html", "page.html"]).code == 0
    assert "matplotlib was not installed when this page was made" in (tmp_path / "page.html").read_text()


def test_the_doctor_prints_its_page(ended):
    result = ended("torch", ["doctor"])
    words = " ".join(result.out.split())
    assert (result.code, result.err) == (1, "")
    assert "FAIL PyTorch" in words
    assert "a run would not work here" in words


def test_ranks_without_mpi4py_are_told_the_extra_once(ended):
    result = ended("mpi4py", ["--out", "new"], ranks=2)
    assert result.code == 2
    assert result.err.count("Fix: install the extra [mpi], as in pip install '.[mpi]' from a checkout.") == 1


def test_ranks_without_torch_print_the_extra_once(ended):
    result = ended("torch", ["--out", "new"], ranks=2)
    assert result.code == 2
    assert result.err.count("torch is not installed. Fix: install the extra [run]") == 1
