"""Versions of what a run is made of, on this rank and compared over the ranks."""

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from fedh2l_mpi.launch.doctor.findings import Finding, failure, good, warning
from fedh2l_mpi.lifecycle import provenance

MISSING = "not installed"
# Read without initialising MPI: on a login node, that may end the process.
_ASK_MPI = (
    "import mpi4py; mpi4py.rc.initialize = False\n"
    "from mpi4py import MPI; vendor, version = MPI.get_vendor(); print(vendor, '.'.join(map(str, version)))"
)
_INSTALL = {
    "torch": "pip install 'fedh2l_mpi[run]'",
    "h5py": "pip install h5py",
    "numpy": "pip install numpy",
}


def versions_here(mpi_library: str) -> dict[str, str]:
    """From the name of each part to its version on this rank; `code` is a digest of this package's files."""
    found: dict[str, str] = json.loads(provenance.versions(mpi_library))
    return {**found, "code": provenance.source_digest().hex()[:8]}


def cannot_load(name: str) -> str:
    """Why a package cannot be imported here; empty if it can."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def mpi_of_mpi4py() -> str:
    """Name and version of the MPI library that mpi4py loads, such as `Open MPI 5.0.11`; `none` if it loads none."""
    try:
        asked = subprocess.run([sys.executable, "-c", _ASK_MPI], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "none"
    return asked.stdout.strip() if asked.returncode == 0 and asked.stdout.strip() else "none"


def hdf5_version() -> str:
    """Of the library that h5py uses, which need not be the system's."""
    import h5py

    return str(h5py.version.hdf5_version)


def findings(versions: Mapping[str, str], needs_mpi: bool) -> list[Finding]:
    """The versions on rank 0, a missing or broken one as a failure.

    Parameters
    ----------
    versions : mapping
        From `versions_here`; `mpi` is the library that is, or would be, used.
    needs_mpi : bool
        Whether a launcher started several processes: one alone does without.
    """
    lines = [good("fedh2l_mpi", f"{versions['fedh2l_mpi']} (code {versions['code']}), Python {versions['python']}")]
    for name, title in (("torch", "PyTorch"), ("numpy", "NumPy"), ("h5py", "h5py")):
        if versions[name] == MISSING:
            lines.append(failure(title, MISSING, _INSTALL[name]))
        elif why := cannot_load(name):
            lines.append(failure(title, f"{versions[name]} is installed but does not load ({why})", _INSTALL[name]))
        else:
            library = f", HDF5 {hdf5_version()}" if name == "h5py" else ""
            lines.append(good(title, f"{versions[name]}{library}"))
    return [*lines, _mpi(versions, needs_mpi)]


def _mpi(versions: Mapping[str, str], needs_mpi: bool) -> Finding:
    tell = failure if needs_mpi else warning
    alone = "" if needs_mpi else ": runs here are one process each"
    if versions["mpi4py"] == MISSING:
        return tell(
            "MPI", f"mpi4py is not installed{alone}", "pip install 'fedh2l_mpi[mpi]', or [site-mpi] for a site's"
        )
    if versions["mpi"] == "none":
        text = f"mpi4py {versions['mpi4py']} finds no MPI library to load{alone}"
        return tell("MPI", text, "load the site's MPI module, or pip install 'fedh2l_mpi[mpi]'")
    return good("MPI", f"{versions['mpi']}, mpi4py {versions['mpi4py']}")


def differences(versions: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> list[Finding]:
    """Failures where ranks have other versions than rank 0: a run compares its code, and results depend on the rest."""
    lines = []
    for name, ours in versions[0].items():
        others = [rank for rank, theirs in enumerate(versions) if theirs.get(name) != ours]
        if others:
            first = others[0]
            text = f"{name} is {ours} on rank 0 ({hosts[0]}), but {versions[first].get(name)} on rank {first} "
            lines.append(failure("versions", f"{text}({hosts[first]})", "activate the same environment on every node"))
    if not lines and len(versions) > 1:
        lines.append(good("versions", f"the same on all {len(versions)} ranks"))
    return lines
