"""Provenance of a run: its code and its libraries."""

import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import fedh2l_mpi
from fedh2l_mpi.runtime.processes import run_program

GIT_S = 10.0
PACKAGE = Path(fedh2l_mpi.__file__).parent


@cache
def source_digest() -> bytes:
    """Return the SHA-256 of the package's Python files. Equal digests mean the same code, installed or not."""
    sha = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        sha.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.digest()


def git_revision() -> str:
    """Return the commit of the package's checkout, with `-dirty` if it has changes; `unknown` outside a checkout."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        # Check that git tracks the package, because an installed package may lie inside another project's checkout.
        tracked = run_program([*git, "ls-files", "--error-unmatch", "__init__.py"], GIT_S)
        commit = run_program([*git, "rev-parse", "HEAD"], GIT_S, text=True)
        changes = run_program([*git, "status", "--porcelain", "--", str(PACKAGE)], GIT_S, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if tracked.returncode or commit.returncode or changes.returncode:
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def versions(mpi_library: str) -> str:
    """Return the versions of this package, Python and the libraries, as JSON text."""
    found = {"fedh2l_mpi": fedh2l_mpi.__version__, "python": platform.python_version(), "mpi": mpi_library}
    for name in ("torch", "numpy", "h5py", "networkx", "mpi4py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return json.dumps(found)
