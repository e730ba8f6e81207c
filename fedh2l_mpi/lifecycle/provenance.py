"""Provenance of a run: its code and its libraries."""

import hashlib
import json
import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import fedh2l_mpi
from fedh2l_mpi.runtime.processes import run_program

GIT_S = 10.0
PACKAGE = Path(fedh2l_mpi.__file__).parent
# The text of NVIDIA's driver about itself, which exists wherever the driver does, in most containers too.
DRIVER = Path("/proc/driver/nvidia/version")
# Git's hooks, `git rebase --exec` and scripts set GIT_DIR, GIT_INDEX_FILE and more, with each of which git answers for
# another repository or state. These variables stay, because they say how to find and trust a checkout.
KEPT = (
    *("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"),
    *("GIT_CONFIG_NOSYSTEM", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH"),
)


@cache
def source_digest() -> bytes:
    """Return the SHA-256 of the package's Python files. Equal digests mean the same code, installed or not."""
    sha = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        sha.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.digest()


def git_revision() -> str:
    """Return the commit of the package's checkout, with `-dirty` if it has changes; `unknown` outside a checkout."""
    try:
        # Check that git tracks the package, because an installed package may lie inside another project's checkout.
        tracked = _git("ls-files", "--error-unmatch", "__init__.py")
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=normal", "--", str(PACKAGE))
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if tracked.returncode or commit.returncode or changes.returncode:
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _git(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run git in the package's own checkout, whichever repository the environment names."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(KEPT)}
    # Without locks, so that this question never makes the user's own git command fail.
    environ = {**own, "GIT_OPTIONAL_LOCKS": "0"}
    return run_program(["git", "-C", str(PACKAGE), *words], GIT_S, text=True, env=environ)


def versions(mpi_library: str, on_gpu: bool = False) -> str:
    """Return the versions of this package, Python and the libraries, as JSON text; on a GPU, its libraries too."""
    found = {"fedh2l_mpi": fedh2l_mpi.__version__, "python": platform.python_version(), "mpi": mpi_library}
    for name in ("torch", "numpy", "h5py", "networkx", "mpi4py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return json.dumps(found | (gpu_libraries() if on_gpu else {}))


def gpu_libraries() -> dict[str, str]:
    """Return the versions of what decides about a GPU's last bits: `cuda` (or `rocm`), `cudnn` and `driver`."""
    import torch

    version = torch.version
    toolkit = {"rocm": version.hip} if version.hip else {"cuda": version.cuda}
    found = {**toolkit, "cudnn": torch.backends.cudnn.version(), "driver": driver_version()}
    return {name: str(one) if one is not None else "unknown" for name, one in found.items()}


def driver_version(path: Path = DRIVER) -> str | None:
    """Return the version of NVIDIA's driver, such as `570.86.15`; None if it is unknown."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"Kernel Module(?: +for \S+)? +(\d[\d.]*)", text)
    return found[1] if found else None
