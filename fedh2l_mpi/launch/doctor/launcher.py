"""Check the launcher of this process, the launchers that a run could use, and the Slurm job."""

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
from fedh2l_mpi.runtime.processes import run_program

PATIENCE_S = 10.0
# The --mpi that srun needs for each MPI; with another one, the ranks would not see each other.
SRUN_SPEAKS = {"Open MPI": "pmix", "MPICH": "pmi2", "Intel MPI": "pmi2", "MVAPICH": "pmi2"}
LISTED = 8


def started(launch: Launch, refusal: str, hosts: Sequence[str]) -> Finding:
    """Report which launcher started the ranks, and on which hosts.

    Parameters
    ----------
    refusal : str
        Reason why the ranks cannot connect; empty if they did.
    hosts : sequence of str
        Host of every rank.
    """
    if refusal:
        return Finding("launcher", refusal, Level.FAILURE)
    if not launch.launched:
        return fact("launcher", "none: a run here is one process that hosts all participants")
    nodes = Counter(hosts)
    listed = [f"{count} on {host}" for host, count in nodes.items()][:LISTED]
    more = [f"and {len(nodes) - LISTED} more nodes"] if len(nodes) > LISTED else []
    ranks = "1 rank" if len(hosts) == 1 else f"{len(hosts)} ranks"
    return good("launcher", f"{launch.launcher} started {ranks}: {', '.join([*listed, *more])}")


def may_not_join(launch: Launch, mpi_library: str) -> str:
    """Return advice in case MPI ends a process whose launcher speaks PMIx; empty if the two are known to fit.

    Parameters
    ----------
    mpi_library : str
        Name and version, such as `MPICH 5.0.2`; `none` if there is none.
    """
    vendor = vendor_of_library(mpi_library)
    if vendor in ("", "Open MPI"):
        return ""
    # Most builds of MPICH do not speak PMIx. They end the process instead of raising an error.
    fix = "use srun --mpi=pmi2" if launch.launcher == "srun" else f"use the mpirun of {vendor}"
    return f"{launch.launcher} speaks PMIx, but {mpi_library} may not. If MPI ends this process now, {fix}."


def ways_to_start(mpi_library: str) -> list[Finding]:
    """Report each launcher that is installed, and check that it fits the MPI of mpi4py.

    Parameters
    ----------
    mpi_library : str
        Name and version, such as `MPICH 5.0.2`; `none` if there is none.
    """
    lines = []
    path = shutil.which("mpirun")
    own = Path(sys.executable).with_name("mpirun")
    if path is None and own.exists():
        lines.append(warning("mpirun", f"not on the PATH, but next to Python: {own}", "activate the environment"))
        path = str(own)
    if path is None:
        lines.append(fact("mpirun", "none on the PATH"))
    else:
        lines.append(mpirun_fits(path, _output_of([path, "--version"]), mpi_library))
    if shutil.which("srun") is not None:
        lines.append(srun_fits(_output_of(["srun", "--mpi=list"]), mpi_library))
    return lines


def mpirun_fits(path: str, version_text: str, mpi_library: str) -> Finding:
    """Check that an mpirun belongs to the MPI that mpi4py uses; if not, its ranks do not see each other."""
    vendor = vendor_of_mpirun(version_text)
    ours = vendor_of_library(mpi_library)
    if not vendor:
        text = f"{path} does not say which MPI it belongs to"
        return warning("mpirun", text, "check that it belongs to the MPI of mpi4py")
    if not ours:
        return fact("mpirun", f"{path}, from {vendor}")
    if vendor != ours:
        return warning(
            "mpirun",
            f"{path} belongs to {vendor}, but mpi4py uses {mpi_library}, so its ranks would not see each other",
            f"use the mpirun of {ours}, or an mpi4py for {vendor}",
        )
    return good("mpirun", f"{path}, from {vendor} like mpi4py")


def vendor_of_mpirun(version_text: str) -> str:
    """Return the MPI of an mpirun from the output of --version, or an empty string if it is not named there."""
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
    """Return the name before a version, such as `Open MPI` in `Open MPI 5.0.11`; empty for `none`."""
    return "" if mpi_library == "none" else re.sub(r"[\s\d.]+$", "", mpi_library)


def srun_fits(list_text: str, mpi_library: str) -> Finding:
    """Return the --mpi that srun needs for an MPI; with another one, its ranks do not see each other."""
    offered = re.findall(r"^(?:srun: )?\s*([a-z]\w*)\s*$", list_text, flags=re.MULTILINE)
    vendor = vendor_of_library(mpi_library)
    if not offered:
        text = f"srun --mpi=list printed {list_text.strip()[:200]!r}"
        return warning("srun", text, "ask your cluster's support which --mpi to use")
    if vendor not in SRUN_SPEAKS:
        return fact("srun", f"--mpi={', '.join(offered)}")
    speaks = SRUN_SPEAKS[vendor]
    # If Slurm has several PMIx libraries, it also lists pmix_v3, pmix_v4 and so on.
    if not any(name == speaks or name.startswith(f"{speaks}_") for name in offered):
        return warning(
            "srun",
            f"srun has no --mpi={speaks}, which {vendor} needs (only {', '.join(offered)})",
            f"start with the mpirun of {vendor} inside sbatch",
        )
    return good("srun", f"use srun --mpi={speaks}, which {vendor} needs")


def slurm_job(environ: Mapping[str, str]) -> list[Finding]:
    """Report the Slurm job of this process; return no finding outside a job."""
    if "SLURM_JOB_ID" not in environ:
        return []
    nodes = environ.get("SLURM_JOB_NODELIST", "unknown")
    text = f"job {environ['SLURM_JOB_ID']}, {environ.get('SLURM_JOB_NUM_NODES', '?')} nodes ({nodes})"
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        left_min = max(0, int(end) - int(time.time())) // 60
        return [fact("Slurm", f"{text}, {left_min // 60}:{left_min % 60:02d} h left")]
    return [fact("Slurm", f"{text}. A run cannot know the time left, so set run.max_wall")]


def _output_of(command: Sequence[str]) -> str:
    """Return the output of a command, or the reason why it could not run."""
    try:
        ended = run_program(command, PATIENCE_S, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ended.stdout + ended.stderr
