"""Check the versions of the software that a run uses, and compare them between the ranks."""

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from fedh2l_mpi.launch.doctor import ranks
from fedh2l_mpi.launch.doctor.findings import Finding, failure, good, warning
from fedh2l_mpi.lifecycle import provenance
from fedh2l_mpi.runtime import libraries
from fedh2l_mpi.runtime.processes import run_program

MISSING = "not installed"
GPU_TITLES = {"cuda": "CUDA", "rocm": "ROCm", "cudnn": "cuDNN", "driver": "driver"}
# MPI is not initialised here, because on a login node this may end the process.
_ASK_MPI = (
    "import mpi4py; mpi4py.rc.initialize = False\n"
    "from mpi4py import MPI; vendor, version = MPI.get_vendor(); print(vendor, '.'.join(map(str, version)))"
)
_INSTALL = {
    "torch": libraries.fix("torch"),
    "h5py": "pip install h5py",
    "numpy": "pip install numpy",
}


def versions_here(mpi_library: str) -> dict[str, str]:
    """Map the name of each package to its version on this rank; `code` is a digest of this package's files."""
    found: dict[str, str] = json.loads(provenance.versions(mpi_library, on_gpu=ranks.visible_gpus() > 0))
    return {**found, "code": provenance.source_digest().hex()[:8]}


ASK_S = 30.0


def cannot_load(name: str) -> str:
    """Return the reason why a package cannot be imported, or an empty string if it can."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def mpi_of_mpi4py() -> str:
    """Return name and version of the MPI library that mpi4py loads, such as `Open MPI 5.0.11`, or `none`."""
    try:
        asked = run_program([sys.executable, "-c", _ASK_MPI], ASK_S, text=True)
    except subprocess.TimeoutExpired:
        return "none"
    return asked.stdout.strip() if asked.returncode == 0 and asked.stdout.strip() else "none"


def hdf5_version() -> str:
    """Return the version of the HDF5 library that h5py uses, which may differ from the system's."""
    import h5py

    return str(h5py.version.hdf5_version)


def findings(versions: Mapping[str, str], needs_mpi: bool) -> list[Finding]:
    """Report the versions on rank 0; a missing or broken package is a failure.

    Parameters
    ----------
    versions : mapping
        Result of `versions_here`; `mpi` is the MPI library that is, or would be, used.
    needs_mpi : bool
        True if a launcher started several processes. A single process needs no MPI.
    """
    lines = [good("fedh2l_mpi", f"{versions['fedh2l_mpi']} (code {versions['code']}), Python {versions['python']}")]
    for name, title in (("torch", "PyTorch"), ("numpy", "NumPy"), ("h5py", "h5py")):
        if versions[name] == MISSING:
            lines.append(failure(title, MISSING, _INSTALL[name]))
        elif why := cannot_load(name):
            lines.append(failure(title, f"{versions[name]} is installed but does not load ({why})", _INSTALL[name]))
        else:
            library = f", HDF5 {hdf5_version()}" if name == "h5py" else ""
            of_gpu = [f"{GPU_TITLES[key]} {versions[key]}" for key in GPU_TITLES if name == "torch" and key in versions]
            lines.append(good(title, ", ".join([f"{versions[name]}{library}", *of_gpu])))
    return [*lines, _mpi(versions, needs_mpi)]


def _mpi(versions: Mapping[str, str], needs_mpi: bool) -> Finding:
    report = failure if needs_mpi else warning
    alone = "" if needs_mpi else ", so each run here is a single process"
    if versions["mpi4py"] == MISSING:
        return report(
            "MPI", f"mpi4py is not installed{alone}", f"{libraries.fix('mpi4py')}, or [site-mpi] for a cluster's MPI"
        )
    if versions["mpi"] == "none":
        text = f"mpi4py {versions['mpi4py']} finds no MPI library to load{alone}"
        return report("MPI", text, f"load the cluster's MPI module, or {libraries.fix('mpi4py')}")
    return good("MPI", f"{versions['mpi']}, mpi4py {versions['mpi4py']}")


def differences(versions: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> list[Finding]:
    """Report every version that differs from rank 0's as a failure.

    A run refuses ranks with different code, and its results depend on the other versions.
    """
    lines = []
    for name, ours in versions[0].items():
        # A rank that sees no GPU has no versions of its libraries.
        others = [rank for rank, theirs in enumerate(versions) if theirs.get(name, ours) != ours]
        if others:
            first = others[0]
            text = f"{name} is {ours} on rank 0 ({hosts[0]}), but {versions[first][name]} on rank {first} "
            text += f"({hosts[first]})"
            if name == "driver":
                lines.append(warning("versions", text, "use nodes with one driver; last bits may depend on it"))
            else:
                lines.append(failure("versions", text, "activate the same environment on every node"))
    if not lines and len(versions) > 1:
        lines.append(good("versions", f"the same on all {len(versions)} ranks"))
    return lines
