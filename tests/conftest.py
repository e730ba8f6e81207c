"""One pytest for single-process and MPI tests.

The body of a test marked `mpi(ranks, timeout=60)` runs on RANKS ranks under a real mpirun: this process, which never
imports MPI, starts `mpirun ... python -m pytest <that test>`; each rank writes its verdict into a folder, and a rank
that fails ends the job. Tests of whole runs start the program itself with `helpers.launching.launch`.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.launching import ROOT, Mpi, hide_gpus, kill, mpich, openmpi, start

MNIST = ROOT.parent / "shared" / "data" / "mnist"
VERDICTS = "FEDH2L_TEST_VERDICTS"
# Before any test, because PyTorch looks for GPUs once. What tests launch inherits it.
hide_gpus(os.environ)


@pytest.fixture
def mnist() -> Path:
    """Folder of the real MNIST files."""
    if not MNIST.is_dir():
        pytest.skip(f"real MNIST is not at {MNIST}")
    return MNIST


@pytest.fixture(params=["mpich", "openmpi"])
def any_mpi(request: pytest.FixtureRequest) -> Mpi:
    """Each MPI in turn."""
    found = mpich() if request.param == "mpich" else openmpi()
    if found is None:
        pytest.skip(f"no {request.param} here; make test installs both")
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Under pytest-xdist, one test at a time of those that start ranks, submit jobs to Slurm, are sweeps, or pages."""
    from xdist.scheduler import LoadScopeScheduling

    class JobsOneByOne(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            folder = file.rpartition("/")[0]
            # Sweeps and the commands of pages, mostly of one or two ranks, go beside the other tests of ranks.
            is_apart = "sweep" in file or file.endswith("test_pages.py")
            return file if is_apart else folder if folder in ("tests/mpi", "tests/cluster") else nodeid

    return JobsOneByOne(config, log)


# Tests whose body runs on every rank.


@pytest.fixture
def comm() -> object:
    """MPI's world communicator, on the ranks; None where the ranks are launched from."""
    if VERDICTS not in os.environ:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def shared_folder(tmp_path: Path) -> Path:
    """A folder that all ranks see."""
    return Path(os.environ[VERDICTS]) if VERDICTS in os.environ else tmp_path


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Launch the ranks instead of running the body here."""
    marker = pyfuncitem.get_closest_marker("mpi")
    if marker is None or VERDICTS in os.environ:
        return None
    mpi = mpich()
    if mpi is None:
        pytest.skip("no mpirun on this machine")
    ranks, timeout = marker.kwargs["ranks"], marker.kwargs.get("timeout", 60)
    folder = pyfuncitem.funcargs.get("tmp_path") or pyfuncitem._request.getfixturevalue("tmp_path")
    command = [mpi.mpirun, "-n", str(ranks), mpi.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    process = start([*command, pyfuncitem.nodeid], {VERDICTS: str(folder)})
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
    verdicts = {rank: (folder / f"verdict-{rank}") for rank in range(ranks)}
    said = {rank: path.read_text() for rank, path in verdicts.items() if path.exists()}
    again = f"again: {VERDICTS}=$(mktemp -d) {' '.join(command)} {pyfuncitem.nodeid}"
    failed = "\n".join(f"--- rank {rank}\n{text}" for rank, text in said.items() if text not in ("passed", "skipped"))
    if failed:
        pytest.fail(f"{failed}\n{again}", pytrace=False)
    if len(said) < ranks:
        missing = sorted(set(range(ranks)) - set(said))
        pytest.fail(
            f"no verdict from ranks {missing} within {timeout} s: deadlock?\n{again}\n{out}\n{err}", pytrace=False
        )
    if "skipped" in said.values():
        pytest.skip("skipped on a rank")
    if process.returncode:
        pytest.fail(f"every rank passed, but mpirun ended with {process.returncode}\n{again}\n{err}", pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """On a rank: write the verdict, and end the job if this rank failed."""
    report = yield
    if VERDICTS in os.environ and (report.when == "call" or not report.passed):
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        text = report.outcome if report.outcome != "failed" else str(report.longrepr)
        (Path(os.environ[VERDICTS]) / f"verdict-{comm.rank}").write_text(text)
        if report.failed:
            time.sleep(1.0)  # the other ranks may be about to write theirs
            comm.Abort(1)
    return report
