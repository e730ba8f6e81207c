"""Check that a file system can store a run: locks, renames, fsync, a metrics file, and the same files on every rank."""

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.doctor.findings import Finding, fact, failure, good, refused, warning
from fedh2l_mpi.lifecycle.lock import RunLock
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.clocks import Patience
from fedh2l_mpi.runtime.world import World

# A file system that caches names, such as NFS, may show a new file late.
PATIENCE_S = 10.0
LOW_BYTES = 2**30
REMOTE_WITHOUT_ORDER = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"}
IN_MEMORY = {"tmpfs", "ramfs"}
CHOOSE_ANOTHER = "choose another directory with --out"
LOCKING = "HDF5_USE_FILE_LOCKING"


def folder_for(out: str | None) -> Path:
    """Return the directory to test: the first existing one of the run directory `out` (default `runs`) and its parents.

    Raises
    ------
    UserError
        If it is a file, or cannot be accessed.
    """
    wanted = Path(out) if out is not None else Path("runs")
    for path in (wanted, *wanted.parents):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"--out: {wanted} cannot be written: {error.strerror}. Choose another directory.") from None
        if not stat.S_ISDIR(mode):
            raise UserError(f"--out: {path} is a file. Choose a directory, or a path that does not exist yet.")
        return path
    return Path()


def examine(world: World, folder: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Check what a run needs from the file system of `folder`; remove all test files again. **Collective.**

    Returns
    -------
    list of Finding
        Valid on rank 0 only.
    """
    tried = None
    lines = []
    if world.rank == 0:
        try:
            tried = Path(tempfile.mkdtemp(prefix=".doctor-", dir=folder))
            lines = _directory(folder)
        except OSError as error:
            lines = [failure("directory", f"{folder} cannot be written: {error.strerror}", CHOOSE_ANOTHER)]
    tried = world.from_first(lambda: tried)
    if tried is None:
        return lines
    try:
        if world.rank == 0:
            lines += [locks(tried), renames(tried), metrics_file(tried, environ)]
        lines += _seen_by_all(world, tried)
    finally:
        if world.rank == 0:
            shutil.rmtree(tried)
    return lines


def _directory(folder: Path) -> list[Finding]:
    """Check the type of the file system, and its free space."""
    kind, mount = file_system(folder.resolve(), _mounts())
    name = f"{folder.resolve()}, {kind} at {mount}" if kind else f"{folder.resolve()}"
    lines = []
    if kind in REMOTE_WITHOUT_ORDER:
        lines.append(
            warning(
                "directory",
                f"{name}: other nodes may see writes out of order, so `watch` may fail for a while",
                "store runs on a local or parallel file system (Lustre, GPFS) if there is one",
            )
        )
    elif kind in IN_MEMORY:
        lines.append(warning("directory", f"{name}: in memory, so runs are lost at a reboot", CHOOSE_ANOTHER))
    else:
        lines.append(good("directory", name))
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    text = f"{free / 2**30:.1f} GiB free (a quota may be lower)"
    if free < LOW_BYTES:
        lines.append(warning("space", text, "delete some files, or choose another directory with --out"))
    else:
        lines.append(good("space", text))
    return lines


def _mounts() -> str:
    """Return the kernel's table of mounts, or an empty string if there is none."""
    table = Path("/proc/self/mountinfo")
    return table.read_text() if table.exists() else ""


def file_system(folder: Path, mountinfo: str) -> tuple[str, str]:
    """Return type and mount point of the file system that contains an absolute path; empty if unknown.

    Parameters
    ----------
    mountinfo : str
        Text in the format of /proc/self/mountinfo.
    """
    found, best = ("", ""), -1
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        # A later mount at the same point hides the earlier one.
        if folder.is_relative_to(mount) and len(mount) >= best:
            found, best = (after.split()[0], mount), len(mount)
    return found


def locks(folder: Path) -> Finding:
    """Check that a run's own lock works, and report whether flock() does, which only sweeps need."""
    try:
        RunLock(folder / "lock").release()
    except UserError as error:
        return refused("locks", error)
    path = folder / "element.yaml"
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return good("locks", "a run's lock and flock work")
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            text = f"a run's lock works, but flock does not ({name}), so `sweep` refuses to run here"
            return warning("locks", text, "give `sweep` an --out on another file system")
    text = "a run's lock works, but two processes can hold the same flock here"
    return warning("locks", text, "never start the same sweep twice at a time")


def renames(folder: Path) -> Finding:
    """Check that a file can be replaced safely, by the function that a run uses."""
    path = folder / "status"
    try:
        atomic_files.write_text(path, "old")
        begin = time.perf_counter()
        atomic_files.write_text(path, "new")
        took_ms = 1e3 * (time.perf_counter() - begin)
        forces_names = atomic_files.sync_folder(folder)
        text = path.read_text()
    except OSError as error:
        return failure("rename", f"rename or fsync does not work here: {error.strerror}", CHOOSE_ANOTHER)
    if text != "new":
        return failure("rename", f"a renamed file contains {text!r} instead of 'new'", CHOOSE_ANOTHER)
    what = "file and directory" if forces_names else "file (not known for directories here)"
    return good("rename", f"atomic rename, fsync of {what}: {took_ms:.1f} ms")


def metrics_file(folder: Path, environ: Mapping[str, str]) -> Finding:
    """Check that a run's metrics file can be written, and read while it is open."""
    try:
        import numpy as np

        from fedh2l_mpi import metrics
    except ImportError as error:
        return failure("HDF5", f"cannot be tried: {error}", "pip install h5py numpy")
    participant = {field.name: "x" if field.dtype.startswith("S") else 0 for field in metrics.PARTICIPANT_FIELDS}
    header = metrics.RunHeader({}, [participant], np.zeros((1, 1), dtype=np.int64), ["one"])
    path = folder / "metrics.h5"
    try:
        writer = metrics.MetricsWriter(path, header)
        begin = time.perf_counter()
        writer.append(0, np.zeros((1, metrics.row_width(1))))
        took_ms = 1e3 * (time.perf_counter() - begin)
        rounds = metrics.read(path).rounds
        writer.close("complete")
        closed = metrics.read(path)
    except (OSError, RuntimeError, UserError) as error:
        # HDF5's errors have many lines, and the page has room for one.
        why = " ".join(str(error).split())[:200]
        # A run asks HDF5 for no lock, but this variable overrides it.
        fix = f"unset {LOCKING}" if LOCKING in environ and "lock" in why else CHOOSE_ANOTHER
        return failure("HDF5", f"a metrics file does not work here: {why}", fix)
    if (rounds, closed.rounds) != (1, 1):
        text = f"of 1 round written, {rounds} could be read while the file was open and {closed.rounds} after"
        return failure("HDF5", text, CHOOSE_ANOTHER)
    return good(
        "HDF5", f"a metrics file (SWMR) can be written, read while open, and closed; a round takes {took_ms:.1f} ms"
    )


def _seen_by_all(world: World, tried: Path) -> list[Finding]:
    """Check that every rank sees rank 0's file, and rank 0 sees every rank's file. **Collective.**"""
    if world.size == 1:
        return []
    token, trouble = world.from_first(lambda: _write_token(tried))
    if trouble:
        return [failure("shared", f"rank 0 {trouble}", CHOOSE_ANOTHER)]
    trouble = _reads(tried / "token", token) or _writes(tried / f"rank-{world.rank}", token)
    troubles = world.collect(trouble)
    if world.rank == 0:
        for rank, problem in enumerate(troubles):
            if not problem and (unseen := _reads(tried / f"rank-{rank}", token)):
                troubles[rank] = f"wrote a file, but rank 0 {unseen}"
    return [shared(world.collect(world.host), troubles, tried.parent)]


def _write_token(tried: Path) -> tuple[str, str]:
    """Write a random text to a file; return the text, and the error message if it could not be written."""
    token = os.urandom(8).hex()
    return token, _writes(tried / "token", token)


def _writes(path: Path, text: str) -> str:
    """Write the text to the file; return an error message, or an empty string."""
    try:
        path.write_text(text)
    except OSError as error:
        return f"cannot write there: {error.strerror}"
    return ""


def _reads(path: Path, text: str) -> str:
    """Wait until the file contains the text; return an error message after PATIENCE_S, else an empty string."""
    patience = Patience(PATIENCE_S)
    while True:
        try:
            if path.read_text() == text:
                return ""
            trouble = "reads a different text there"
        except OSError as error:
            trouble = f"does not see it: {error.strerror}"
        if patience.is_over:
            return trouble
        patience.pause(0.05)


def shared(hosts: Sequence[str], troubles: Sequence[str], folder: Path) -> Finding:
    """Report whether all ranks share the directory; `troubles` has an error message or '' for each rank."""
    apart = [rank for rank, problem in enumerate(troubles) if problem]
    if apart:
        where = ", ".join(dict.fromkeys(hosts[rank] for rank in apart))
        text = f"{len(apart)} of {len(hosts)} ranks (on {where}) do not share {folder}"
        text += f": rank {apart[0]} {troubles[apart[0]]}"
        return failure("shared", text, "start in a directory that all nodes share, and choose --out there")
    if len(set(hosts)) == 1:
        return fact("shared", "all ranks see each other's files, as they are on one host")
    return good("shared", f"the ranks of all {len(set(hosts))} hosts see each other's files")
