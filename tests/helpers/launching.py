"""Start the program as a user does, alone or under an MPI, and end what was started."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedh2l_mpi import metrics

ROOT = Path(__file__).resolve().parents[2]
# Set to 1, it lets tests see this machine's GPUs.
SEE_GPUS = "FEDH2L_TEST_GPU"
# In the log of a rank that shares its imports.
SHARES = "--share-imports: a copy of a process with all imports; the launcher knows it as pid "
# Open MPI needs these as root and with more ranks than cores; MPICH needs nothing.
OPENMPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


def hide_gpus(environ: MutableMapping[str, str]) -> None:
    """Hide this machine's GPUs, unless the environment asks for them.

    Tests state what a CPU gives: the same bits on any number of ranks, and as many ranks as they like.
    """
    if environ.get(SEE_GPUS) != "1":
        environ["CUDA_VISIBLE_DEVICES"] = ""


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
    """End of a launched program."""

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
    """Pid and name of every process with `out` in its command line, a job's watchdog and launcher among them."""
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
    """Assert that two metrics files hold the same bits, except who computed them and how fast."""
    # Not above: a test looks at what a rank has loaded.
    import h5py

    with h5py.File(one) as a, h5py.File(other) as b:
        assert set(a) == set(b)
        for name in set(a) - {*metrics.TIMINGS, "rank", "host"}:
            assert a[name][()].tobytes() == b[name][()].tobytes(), f"{name} differs between {one} and {other}"
        differing = {key for key in a.attrs if a.attrs[key] != b.attrs[key]}
        # The content's digest is of the timings, too.
        assert differing <= {"started", "ended", "host", "pid", "process_start", "ranks", "versions", "content_digest"}
