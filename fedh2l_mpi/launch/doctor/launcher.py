"""How this process was started, how a run could be, and what Slurm says."""

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedh2l_mpi.launch.doctor.findings import Finding, Level, fact, good, warning
from fedh2l_mpi.runtime.launcher import Launch

PATIENCE_S = 10.0
# What srun must speak for each MPI to see its ranks.
SRUN_SPEAKS = {"Open MPI": "pmix", "MPICH": "pmi2", "Intel MPI": "pmi2", "MVAPICH": "pmi2"}
LISTED = 8


def started(launch: Launch, refusal: str, hosts: Sequence[str]) -> Finding:
    """By whom, and where the ranks are.

    Parameters
    ----------
    refusal : str
        Why the ranks cannot meet; empty if they have.
    hosts : sequence of str
        Of every rank.
    """
    if refusal:
        return Finding("launcher", refusal, Level.FAILURE)
    if not launch.launched:
        return fact("launcher", "not under a launcher: a run here is one process that hosts all participants")
    nodes = Counter(hosts)
    listed = [f"{count} on {host}" for host, count in nodes.items()][:LISTED]
    more = [f"and {len(nodes) - LISTED} more nodes"] if len(nodes) > LISTED else []
    ranks = "1 rank" if len(hosts) == 1 else f"{len(hosts)} ranks"
    return good("launcher", f"{launch.launcher} started {ranks}: {', '.join([*listed, *more])}")


def may_not_join(launch: Launch, mpi_library: str) -> str:
    """What to think of if MPI ends a process of a launcher that speaks PMIx; empty where the two are known to fit.

    Parameters
    ----------
    mpi_library : str
        Such as `MPICH 5.0.2`; `none` if there is none.
    """
    vendor = vendor_of_library(mpi_library)
    if vendor in ("", "Open MPI"):
        return ""
    # Most builds of MPICH do not speak it, and then end the process instead of raising an error.
    fix = "use srun --mpi=pmi2" if launch.launcher == "srun" else f"use the mpirun of {vendor}"
    return f"if MPI ends this now: {launch.launcher} speaks PMIx, and {mpi_library} may not; {fix}"


def ways_to_start(mpi_library: str) -> list[Finding]:
    """The launchers at hand, and whether they fit the MPI that mpi4py uses.

    Parameters
    ----------
    mpi_library : str
        Such as `MPICH 5.0.2`; `none` if there is none.
    """
    lines = []
    path = shutil.which("mpirun")
    beside = Path(sys.executable).with_name("mpirun")
    if path is None and beside.exists():
        lines.append(warning("mpirun", f"not on PATH, but beside Python: {beside}", "activate the environment"))
        path = str(beside)
    if path is None:
        lines.append(fact("mpirun", "none on PATH"))
    else:
        lines.append(mpirun_fits(path, _said_by([path, "--version"]), mpi_library))
    if shutil.which("srun") is not None:
        lines.append(srun_fits(_said_by(["srun", "--mpi=list"]), mpi_library))
    return lines


def mpirun_fits(path: str, version_text: str, mpi_library: str) -> Finding:
    """Whether an mpirun is of the MPI that mpi4py uses: of another, it starts ranks that do not see each other."""
    vendor = vendor_of_mpirun(version_text)
    ours = vendor_of_library(mpi_library)
    if not vendor:
        return warning("mpirun", f"{path} does not say which MPI it is of", "check that it is the one of mpi4py's MPI")
    if not ours:
        return fact("mpirun", f"{path}, of {vendor}")
    if vendor != ours:
        return warning(
            "mpirun",
            f"{path} is of {vendor}, but mpi4py uses {mpi_library}: its ranks would not see each other",
            f"use the mpirun of {ours}, or an mpi4py for {vendor}",
        )
    return good("mpirun", f"{path}, of {vendor} as mpi4py")


def vendor_of_mpirun(version_text: str) -> str:
    """Which MPI an mpirun belongs to, from what its --version prints; empty if it does not say."""
    for sign, vendor in (
        ("Open MPI", "Open MPI"),
        ("OpenRTE", "Open MPI"),
        ("PRRTE", "Open MPI"),
        ("prterun", "Open MPI"),
        ("Intel(R) MPI", "Intel MPI"),
        ("MVAPICH", "MVAPICH"),
        ("HYDRA", "MPICH"),
    ):
        if sign in version_text:
            return vendor
    return ""


def vendor_of_library(mpi_library: str) -> str:
    """The name in front of a version, such as `Open MPI` of `Open MPI 5.0.11`; empty for `none`."""
    return "" if mpi_library == "none" else re.sub(r"[\s\d.]+$", "", mpi_library)


def srun_fits(list_text: str, mpi_library: str) -> Finding:
    """Which --mpi of this srun the MPI needs: with another one, srun starts ranks that do not see each other."""
    offered = re.findall(r"^(?:srun: )?\s*([a-z]\w*)\s*$", list_text, flags=re.MULTILINE)
    vendor = vendor_of_library(mpi_library)
    if not offered:
        return warning("srun", f"srun --mpi=list says {list_text.strip()[:200]!r}", "ask the site which --mpi to use")
    if vendor not in SRUN_SPEAKS:
        return fact("srun", f"--mpi={', '.join(offered)}")
    speaks = SRUN_SPEAKS[vendor]
    # A Slurm with several PMIx libraries lists pmix_v3, pmix_v4 and so on too.
    if not any(name == speaks or name.startswith(f"{speaks}_") for name in offered):
        return warning(
            "srun",
            f"has no --mpi={speaks}, which {vendor} needs (only {', '.join(offered)})",
            f"start with the mpirun of {vendor} inside sbatch",
        )
    return good("srun", f"use srun --mpi={speaks}, which {vendor} needs")


def slurm_job(environ: Mapping[str, str]) -> list[Finding]:
    """The job that this process is in; nothing outside one."""
    if "SLURM_JOB_ID" not in environ:
        return []
    nodes = environ.get("SLURM_JOB_NODELIST", "unknown")
    text = f"job {environ['SLURM_JOB_ID']}, {environ.get('SLURM_JOB_NUM_NODES', '?')} nodes ({nodes})"
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        left_min = max(0, int(end) - int(time.time())) // 60
        return [fact("Slurm", f"{text}, {left_min // 60}:{left_min % 60:02d} h left")]
    return [fact("Slurm", f"{text}; the time left is unknown to a run, so tell it: run.max_wall")]


def _said_by(command: Sequence[str]) -> str:
    """What a command prints, or why it did not."""
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ended.stdout + ended.stderr
