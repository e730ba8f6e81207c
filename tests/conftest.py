"""One pytest for single-process and MPI tests.

The body of a test marked `mpi(ranks, timeout=60)` runs on RANKS ranks under a real mpirun: this process, which never
imports MPI, starts `mpirun ... python -m pytest <that test>`; each rank writes its verdict into a folder, and a rank
that fails ends the job. Tests of whole runs start the program itself with `launch`.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedh2l_mpi import metrics

ROOT = Path(__file__).parent.parent
MNIST = ROOT.parent / "shared" / "data" / "mnist"
VERDICTS = "FEDH2L_TEST_VERDICTS"
# In the log of a rank that shares its imports.
SHARES = "--share-imports: a copy of a process with all imports; the launcher knows it as pid "
# What Open MPI needs as root, and with more ranks than cores; MPICH needs nothing.
OPENMPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


@dataclass(frozen=True)
class Mpi:
    """An MPI to launch with: its mpirun, and the Python whose mpi4py belongs to it."""

    name: str
    mpirun: str
    python: str


def mpich() -> Mpi | None:
    """The MPI of this Python's environment."""
    beside = Path(sys.executable).with_name("mpirun")
    found = os.environ.get("MPIEXEC") or (str(beside) if beside.exists() else shutil.which("mpirun"))
    return Mpi("mpi", found, sys.executable) if found else None


def openmpi() -> Mpi | None:
    """Open MPI in an environment of its own, which `make .venv-openmpi` builds."""
    folder = Path(os.environ.get("FEDH2L_OPENMPI", ROOT / ".venv-openmpi")) / "bin"
    if not (folder / "mpirun").exists():
        return None
    return Mpi("openmpi", str(folder / "mpirun"), str(folder / "python"))


@dataclass(frozen=True)
class Ended:
    """How a launched program ended."""

    code: int
    out: str
    err: str
    seconds: float


def launch(
    arguments: Sequence[str],
    ranks: int | None = None,
    mpi: Mpi | None = None,
    timeout: float = 120,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    module: str = "fedh2l_mpi",
) -> Ended:
    """Run `python -m fedh2l_mpi ARGUMENTS`, under mpirun if `ranks` is given; fails the test if it does not end."""
    mpi = mpi or mpich()
    if ranks is not None and mpi is None:
        pytest.skip("no mpirun on this machine")
    python = [mpi.python if mpi else sys.executable, "-m", module]
    command = [*([mpi.mpirun, "-n", str(ranks)] if ranks is not None and mpi else []), *python, *arguments]
    begin = time.monotonic()
    process = start(command, environ, cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        pytest.fail(f"still running after {timeout} s: {' '.join(command)}\n{out}\n{err}")
    return Ended(process.returncode, out, err, time.monotonic() - begin)


def start(
    command: Sequence[str], environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start a command in a session of its own, with its output in pipes."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or ROOT,
        env={**os.environ, **OPENMPI_ENVIRONMENT, **own_launcher_folder(), **(environ or {})},
        start_new_session=True,
    )


def own_launcher_folder() -> dict[str, str]:
    """The setting that keeps what an Open MPI mpirun writes out of /tmp, in a folder that no other one has.

    Its folder is named by its pid, and left behind if it is killed. A later mpirun that happens to get that pid ends
    with code 213 and "listener thread failed to start".
    """
    return {"PRTE_MCA_prte_tmpdir_base": tempfile.mkdtemp(dir=_launcher_folders().name)}


@functools.cache
def _launcher_folders() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedh2l_mpi-mpirun-", ignore_cleanup_errors=True)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a started command and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def processes(out: Path) -> dict[int, str]:
    """Pid and name of every process with `out` in its command line, a job's guardian and launcher among them."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and str(out).encode() in (folder / "cmdline").read_bytes():
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:
            continue
    return found


def wait_for(what: str, found: Callable[[], object], patience_s: float = 30) -> None:
    """Return when `found` is true; fails the test if that takes too long."""
    until = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < until, f"not within {patience_s} s: {what}"
        time.sleep(0.02)


def assert_same(one: Path, other: Path) -> None:
    """Two metrics files are of the same numbers, to the last bit; but for who computed them, and how fast."""
    # Not above: a test looks at what a rank has loaded.
    import h5py

    with h5py.File(one) as a, h5py.File(other) as b:
        assert set(a) == set(b)
        for name in set(a) - {*metrics.TIMINGS, "rank", "host"}:
            assert a[name][()].tobytes() == b[name][()].tobytes(), f"{name} differs between {one} and {other}"
        differing = {key for key in a.attrs if a.attrs[key] != b.attrs[key]}
        # The content's digest is of the timings, too.
        assert differing <= {"started", "ended", "host", "pid", "ranks", "versions", "content_digest"}


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
    """Under pytest-xdist, one test at a time that starts ranks, one that submits jobs to Slurm, and one sweep."""
    from xdist.scheduler import LoadScopeScheduling

    class JobsOneByOne(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            folder = file.rpartition("/")[0]
            # Sweeps, of runs of one rank for the most part, take as long as all that is not of MPI.
            return file if "sweep" in file else folder if folder in ("tests/mpi", "tests/cluster") else nodeid

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
