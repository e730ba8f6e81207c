"""Lock of a run, so that one process at a time writes it: a file with the host, pid and job of its holder.

Locks of the operating system do not work between nodes on every file system. A process recognises a lock whose holder
has ended, and takes it over.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime import atomic_files
from fedh2l_mpi.runtime.clocks import Patience
from fedh2l_mpi.runtime.processes import is_running, run_program, start_mark

SQUEUE_S = 20.0
# States of a job that has no processes. COMPLETING precedes all of them. Source: squeue(1), JOB STATE CODES.
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING"}
ENDED |= {"PREEMPTED", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"}
# A process keeps the right to remove a stale lock for a few system calls only, so an older right is abandoned.
RIGHT_S = 10.0
# An empty lock this old is nobody's: its file system lost the content in a crash. A younger one may be on its way.
EMPTY_S = 60.0
# Errors for a removed file. NFS answers ESTALE if another client has just removed it.
GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock.

    Attributes
    ----------
    host, pid : str, int
        Host and pid of rank 0.
    started : str
        Start of that process in ticks since the machine's boot, and the boot's id, because the kernel reuses pids.
    job : str
        Number of its batch job; empty outside one.
    restarts : int
        Number of times that the job has been requeued.
    namespace : int
        The kernel's number of the pid namespace, because each container on a machine may have its own; 0 if unknown.
    cluster : str
        Name of the cluster that numbers `job`; empty outside a job.
    """

    host: str
    pid: int
    started: str
    job: str = ""
    restarts: int = 0
    namespace: int = 0
    cluster: str = ""

    @staticmethod
    def here(environ: Mapping[str, str] = os.environ) -> "Holder":
        """Return a description of this process."""
        restarts = environ.get("SLURM_RESTART_COUNT", "")
        return Holder(
            socket.gethostname(),
            os.getpid(),
            start_mark(os.getpid()) or "",
            environ.get("SLURM_JOB_ID", ""),
            int(restarts) if restarts.isdigit() else 0,
            _namespace(),
            environ.get("SLURM_CLUSTER_NAME", ""),
        )

    def __str__(self) -> str:
        if self == NOBODY:
            return "unknown, as the lock is empty"
        job = f", job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}"

    def has_ended(self, now: "Holder") -> bool | None:
        """Return True if the holder has ended, as seen from the process `now`; None if `now` cannot see that."""
        if self == NOBODY:
            return True
        # Compare namespaces, because containers may share a host name and a volume, but not their pids.
        if self.host == now.host and (self.namespace == now.namespace or not self.namespace or not now.namespace):
            return self._has_ended_here(now)
        if self.cluster and now.cluster and self.cluster != now.cluster:
            # Clusters that share a file system number their jobs independently.
            return None
        if self.job and self.job == now.job:
            # A requeued job starts after its processes have ended. Steps of one job may run at the same time.
            return True if self.restarts < now.restarts else None
        return _job_has_ended(self.job) if self.job else None

    def _has_ended_here(self, now: "Holder") -> bool | None:
        if not self.started or not now.started:
            # Without /proc, a different process with the same pid looks like the holder.
            return None
        if _boot(self.started) != _boot(now.started) or not is_running(self.pid):
            return True
        started = start_mark(self.pid)
        # Count None as running, because the system hides other users' processes.
        return started is not None and started != self.started


NOBODY = Holder("", 0, "")


class RunLock:
    """Lock that this process holds.

    Raises
    ------
    UserError
        If another process holds the lock, or may hold it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.holder = path, Holder.here()
        self.taken_from: Holder | None = None
        # Another process's right to remove a stale lock, and how long this process waits for it.
        self._awaited: tuple[tuple[int, int], Patience] | None = None
        while not self._create():
            held = _read(path)
            if held is None:
                continue
            ended = held.has_ended(self.holder)
            if ended is False:
                raise UserError(f"{path}: another process ({held}) is writing this run. Fix: wait for it, or stop it.")
            if ended is None:
                raise UserError(
                    f"{path}: another process ({held}) was writing this run, and this machine cannot see whether it "
                    "has ended. Fix: make sure that it has ended, then remove this file."
                )
            self._clear(held)
        self._remove_leftovers()

    def release(self) -> None:
        """Release the run to other processes. It never raises, because the run has already ended with a result."""
        # Ignore errors, because another process will see that the holder of a remaining lock has ended.
        with contextlib.suppress(UserError, OSError):
            if _read(self.path) == self.holder:
                self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Create the lock; return False if there is one."""
        try:
            atomic_files.create(self.path, (json.dumps(asdict(self.holder)) + "\n").encode())
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(
                f"{self.path}: the lock cannot be written: {error.strerror}. "
                "Fix: make the directory writable, or choose another --out."
            ) from None
        return True

    def _clear(self, held: Holder) -> None:
        """Remove a lock whose holder has ended, unless another process was faster and holds a new one."""
        # One process gets the right to remove it. The right names the old holder, so a new lock is never removed.
        digest = hashlib.sha256(repr(held).encode()).hexdigest()[:16]
        right = self.path.with_name(f"{self.path.name}.stale.{digest}")
        try:
            right.mkdir()
        except FileExistsError:
            # Another process has the right, and may give it up at any moment.
            with contextlib.suppress(FileNotFoundError):
                found = right.stat()
                given = (found.st_ino, found.st_mtime_ns)
                if self._awaited is None or self._awaited[0] != given:
                    # Count the own time from here on, because clocks may be set, or differ from the file server's.
                    self._awaited = (given, Patience(RIGHT_S))
                elif self._awaited[1].is_over:
                    # That process was killed before it could give up the right.
                    right.rmdir()
            time.sleep(0.01)
            return
        try:
            if _read(self.path) == held:
                # The file may be missing, because the watchdog of a killed process also removes it.
                self.path.unlink(missing_ok=True)
                self.taken_from = held
        finally:
            # The right may be missing, because another process may have taken this one for killed.
            with contextlib.suppress(FileNotFoundError):
                right.rmdir()

    def _remove_leftovers(self) -> None:
        """Remove files that killed processes of this host left: files not renamed yet, and links to locks."""
        names = re.compile(rf"(.+)\.{re.escape(self.holder.host)}\.(\d+)(\.new)?")
        with contextlib.suppress(OSError):
            for path in self.path.parent.iterdir():
                found = names.fullmatch(path.name)
                if found is None or not (found[3] or found[1] == self.path.name):
                    continue
                if not is_running(int(found[2])):
                    path.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """Return the holder of the lock, NOBODY if it is empty since a crash; None if the lock has been removed.

    Raises
    ------
    UserError
        If the file cannot be read, or is no lock.
    """
    try:
        content, written_s = path.read_bytes(), path.stat().st_mtime
    except OSError as error:
        if error.errno in GONE:
            return None
        raise UserError(
            f"{path}: the lock cannot be read: {error.strerror}. Another user may be writing this run. "
            "Fix: ask the owner of this file."
        ) from None
    if not content.strip(b"\0\n"):
        if time.time() - written_s > EMPTY_S:
            return NOBODY
        raise UserError(
            f"{path}: the lock is empty. Another process is starting this run, or its machine has crashed. "
            f"Fix: make sure that no process writes this run, and try again in {EMPTY_S:.0f} s."
        )
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: the file is not a lock of fedh2l_mpi. Fix: make sure that no process writes this run, then "
            "remove the file."
        ) from None


def _boot(started: str) -> str:
    return started.partition(" ")[2]


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _job_has_ended(job: str) -> bool | None:
    """Return True if Slurm no longer runs a job; None if Slurm does not answer."""
    try:
        asked = run_program(["squeue", "--noheader", "--jobs", job, "--format", "%T"], SQUEUE_S, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode:
        # Slurm forgets old jobs, and then calls their number invalid.
        return True if "Invalid job id" in asked.stderr else None
    return set(asked.stdout.split()) <= ENDED
