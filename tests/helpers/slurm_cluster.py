"""Jobs in a real Slurm, as its commands show them; also what starts and stops that Slurm."""

import contextlib
import datetime
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.launching import OPENMPI_ENVIRONMENT, ROOT, Mpi, own_launcher_folder

SLURM = ROOT.parent / "shared" / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")
POLL_S = 0.1


def slurm(*words: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a command of Slurm prints."""
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environ, cwd=cwd)
    assert ended.returncode == 0, f"{' '.join(words)}: {ended.stderr}"
    return ended.stdout.strip()


def is_up() -> bool:
    """Whether a controller answers."""
    if shutil.which("scontrol") is None:
        return False
    ended = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30)
    return " UP" in ended.stdout.upper()


def all_nodes_answer(patience_s: float) -> bool:
    """Whether a job on all four nodes runs to its end; a node may be idle, by what the controller knows, and deaf."""
    try:
        tried = ["srun", "--nodes=4", "--mpi=none", "true"]
        return subprocess.run(tried, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience_s).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def wait_until(what: str, holds: Callable[[], object], timeout: float = 40.0, poll: float = POLL_S) -> None:
    """Return as soon as something holds; fails the test if that takes longer than `timeout` [s]."""
    until = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > until:
            pytest.fail(f"waited {timeout:g} s: {what}")
        time.sleep(poll)


@contextlib.contextmanager
def shared_memory_removed() -> Iterator[None]:
    """Remove what killed ranks of MPICH leave: it has the job's number, which a new Slurm gives again."""
    before = set(Path("/dev/shm").glob("mpich_shm_*"))
    yield
    remove_shared_memory(but=before)


def remove_shared_memory(but: Collection[Path] = ()) -> None:
    """Take away MPICH's shared memory that no process uses any more."""
    left = set(Path("/dev/shm").glob("mpich_shm_*")).difference(but)
    for maps in Path("/proc").glob("[0-9]*/maps"):
        # A process may end while we look.
        with contextlib.suppress(OSError):
            used = maps.read_text()
            left = {path for path in left if path.name not in used}
    for path in left:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A job that was submitted.

    Attributes
    ----------
    name : str
        Its number; of an element of an array `<array>_<element>`.
    run : Path
        The run directory.
    output : Path
        What its script and its ranks print.
    """

    name: str
    run: Path
    output: Path

    def facts(self) -> dict[str, str]:
        """What Slurm knows of it."""
        return dict(re.findall(r"(\S+?)=(\S*)", slurm("scontrol", "show", "job", "-o", self.name)))

    def status(self, key: str = "state") -> str:
        """A line of the run's status file; empty if there is none."""
        path = self.run / "status"
        found = re.search(rf"^{key}: (.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
        return found[1] if found else ""

    def element(self, number: int) -> "Job":
        """Another element of the same array."""
        array = self.name.partition("_")[0]
        output = self.output.with_name(self.output.name.replace("-" + self.name.partition("_")[2], f"-{number}"))
        return Job(f"{array}_{number}", self.run, output)

    def said(self) -> str:
        """Its output so far."""
        return self.output.read_text() if self.output.exists() else ""

    def pid(self, rank: int) -> int:
        """Of a rank whose rounds have begun; waits for that."""
        log = self.run / "log" / f"rank-{rank:04d}.log"

        def told() -> re.Match[str] | None:
            return re.search(r"pid (\d+)", log.read_text()) if self.status() == "running" and log.exists() else None

        wait_until(f"{self.name} does not run", told, poll=0.01)
        return int(told()[1])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A run in the middle of its rounds: rank 0 is halted while inside, so that none of them ends."""
        pid = self.pid(rank=0)
        wait_until("no round ends", lambda: self.status("round") not in ("", "0"), poll=0.02)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def signalled(self) -> None:
        """Ask the run to stop, as Slurm does before the time limit, in the middle of its rounds."""
        with self.held():
            slurm("scancel", "--signal=USR1", "--batch", self.name)
            wait_until("no word of the signal", lambda: "USR1: the run is asked" in self.said(), poll=0.05)

    def wait_until_queued_again(self, restarts: int = 1) -> None:
        """Until it has ended, and waits to be started for the n-th time again."""

        def is_queued() -> bool:
            facts = self.facts()
            assert facts["JobState"] not in ENDED, f"{facts}\n{self.said()}"
            return facts["JobState"] == "PENDING" and facts["Restarts"] == str(restarts)

        wait_until(f"{self.name} is not queued again", is_queued)

    def end(self, timeout: float = 60.0) -> str:
        """The state that it ends in. A wait of Slurm's before a restart (two minutes) is cut short."""
        until, facts = time.monotonic() + timeout, self.facts()
        while facts["JobState"] not in ENDED:
            if facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime" and _can_start(facts):
                slurm("scontrol", "update", f"jobid={self.name}", "StartTime=now")
            if time.monotonic() > until:
                pytest.fail(f"job {self.name} is {facts['JobState']} after {timeout:g} s\n{self.said()}")
            time.sleep(POLL_S)
            facts = self.facts()
        return facts["JobState"]


def _can_start(facts: Mapping[str, str]) -> bool:
    """Return whether a job was requeued long enough ago: a node refuses a job that it killed in the same second."""
    requeued = datetime.datetime.fromisoformat(facts["SubmitTime"])
    return datetime.datetime.now() - requeued > datetime.timedelta(seconds=2)


@dataclass(frozen=True)
class Submitter:
    """Submits jobs whose outputs and runs lie in a folder."""

    folder: Path
    jobs: list[str]

    def __call__(
        self,
        script: Path,
        *options: str,
        mpi: Mpi,
        settings: str = "",
        array: int | None = None,
        **environ: str,
    ) -> Job:
        """Submit a script with sbatch, as a user with a site's environment file would.

        Parameters
        ----------
        script : Path
            A job file.
        options : str
            Of sbatch, over those in the file.
        mpi : Mpi
            Whose Python the job uses, with the kind of MPI that goes with it.
        settings : str
            SETTINGS of the job.
        array : int or None
            The element of an array that the Job is to be; others are made with `element`.
        environ : str
            More of the job's environment.
        """
        name = f"{script.stem}-{len(self.jobs)}"
        site = self.folder / f"{name}.env.sh"
        given = {
            **OPENMPI_ENVIRONMENT,
            **own_launcher_folder(),
            "PMIX_MCA_psec": "native",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "PYTHON": mpi.python,
            "MPIRUN": mpi.mpirun,
            "SRUN_MPI": "pmix" if mpi.name == "openmpi" else "pmi2",
            "PYTHONPATH": str(ROOT),
        }
        site.write_text("".join(f"export {key}='{value}'\n" for key, value in given.items() if key not in environ))
        run = Path(environ.get("RUN", self.folder / name))
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "FEDH2L"))}
        output = f"{name}-%a.out" if array is not None else f"{name}.out"
        number = slurm(
            "sbatch",
            "--parsable",
            f"--output={self.folder / output}",
            *options,
            str(script),
            environ={**plain, "ENV_FILE": str(site), "RUN": str(run), "SETTINGS": settings, **environ},
            cwd=ROOT,
        )
        self.jobs.append(number)
        if array is None:
            return Job(number, run, self.folder / output)
        return Job(f"{number}_{array}", run, self.folder / output.replace("%a", str(array)))
