"""One process at a time works on a run: a lock file with its host, its pid and its job.

Not a lock of the operating system: those do not reach from node to node on every file system. A lock whose holder
has ended is recognised, and taken over.
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
from fedh2l_mpi.runtime.processes import is_running, start_ticks

SQUEUE_S = 20.0
# States of a job that has no processes. squeue says COMPLETING before any of them. Source: squeue(1), JOB STATE CODES.
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING"}
ENDED |= {"PREEMPTED", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"}
# Longer than the few system calls that the right to take a lock away is held for.
RIGHT_S = 10.0
# What file systems without hard links answer.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# NFS answers ESTALE for a file that another client has just removed.
GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes
    ----------
    host, pid : str, int
        Rank 0.
    started : str
        When that process started, in ticks since the machine's boot, and the boot: a pid may be given again.
    job : str
        The batch system's number of the job; empty outside one.
    restarts : int
        How often the job has been requeued.
    namespace : int
        Within which the pid is the process's, as the kernel numbers them: containers on one machine have their own. 0:
        that is not known.
    cluster : str
        Whose number `job` is; empty outside a job.
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
        """This process."""
        restarts = environ.get("SLURM_RESTART_COUNT", "")
        return Holder(
            socket.gethostname(),
            os.getpid(),
            _started(os.getpid()) or "",
            environ.get("SLURM_JOB_ID", ""),
            int(restarts) if restarts.isdigit() else 0,
            _namespace(),
            environ.get("SLURM_CLUSTER_NAME", ""),
        )

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}"

    def has_ended(self, now: "Holder") -> bool | None:
        """Whether the holder is gone, as seen from the process `now`; None: that cannot be told from here."""
        # Containers may share their host's name, and a volume; then a pid means something in its own one alone.
        if self.host == now.host and (self.namespace == now.namespace or not self.namespace or not now.namespace):
            return self._has_ended_here(now)
        if self.cluster and now.cluster and self.cluster != now.cluster:
            # Clusters that share a file system number their jobs each for itself.
            return None
        if self.job and self.job == now.job:
            # A job starts again only after its processes have ended; of steps of one job, that cannot be told.
            return True if self.restarts < now.restarts else None
        return _job_has_ended(self.job) if self.job else None

    def _has_ended_here(self, now: "Holder") -> bool | None:
        if not self.started or not now.started:
            # Without /proc, nobody can tell a process from another with its number.
            return None
        if _boot(self.started) != _boot(now.started) or not is_running(self.pid):
            return True
        started = _started(self.pid)
        # None: it is another user's, and hidden.
        return started is not None and started != self.started


class RunLock:
    """A lock that this process holds.

    Raises
    ------
    UserError
        If another process holds it, or may hold it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.holder = path, Holder.here()
        self.taken_from: Holder | None = None
        while not self._create():
            held = _read(path)
            if held is None:
                continue
            ended = held.has_ended(self.holder)
            if ended is False:
                raise UserError(f"{path}: this run is at work in another process ({held}); wait for it, or stop it")
            if ended is None:
                raise UserError(
                    f"{path}: another process ({held}) was at work on this run, and from here nobody can tell whether "
                    "it still is; if it is not, remove that file"
                )
            self._clear(held)
        self._remove_leftovers()

    def release(self) -> None:
        """Let others have the run. Never raises: the run has ended by now, with a result or an error of its own."""
        # A lock that stays is recognised as that of a process that has ended.
        with contextlib.suppress(UserError, OSError):
            if _read(self.path) == self.holder:
                self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        # By a link, which exists whole or not at all: of two processes, one makes it.
        own = self.path.with_name(f"{self.path.name}.{self.holder.host}.{self.holder.pid}")
        text = json.dumps(asdict(self.holder)) + "\n"
        try:
            # What a killed process has left under our number may be the lock itself, by its other name.
            own.unlink(missing_ok=True)
            own.write_text(text, encoding="utf-8")
            try:
                os.link(own, self.path)
            except FileExistsError:
                # On NFS, also after success: the answer is lost, and the client asks again. Source: open(2), O_EXCL.
                return own.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with self.path.open("x", encoding="utf-8") as file:
                    file.write(text)
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        finally:
            own.unlink(missing_ok=True)
        return True

    def _clear(self, held: Holder) -> None:
        """Take away a lock whose holder has ended, unless another process was faster and holds a new one."""
        # The right to take it away is one for each holder that has ended: a new holder's lock is never touched.
        digest = hashlib.sha256(repr(held).encode()).hexdigest()[:16]
        right = self.path.with_name(f"{self.path.name}.stale.{digest}")
        try:
            right.mkdir()
        except FileExistsError:
            # Whoever had it may be done, and has given it up, at any moment.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - right.stat().st_mtime > RIGHT_S:
                    # Whoever had it was killed within a few system calls.
                    right.rmdir()
            time.sleep(0.01)
            return
        try:
            if _read(self.path) == held:
                # The guardian of a killed process may be faster.
                self.path.unlink(missing_ok=True)
                self.taken_from = held
        finally:
            # Another process may have thought that we were killed.
            with contextlib.suppress(FileNotFoundError):
                right.rmdir()

    def _remove_leftovers(self) -> None:
        """Remove what processes of this host were killed over: files not renamed yet, locks by their other names."""
        names = re.compile(rf"(.+)\.{re.escape(self.holder.host)}\.(\d+)(\.new)?")
        with contextlib.suppress(OSError):
            for path in self.path.parent.iterdir():
                found = names.fullmatch(path.name)
                if found is None or not (found[3] or found[1] == self.path.name):
                    continue
                if not is_running(int(found[2])):
                    path.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does any more.

    Raises
    ------
    UserError
        If it cannot be read, or is no lock.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if error.errno in GONE:
            return None
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; somebody else may be at work on this run: ask the owner of "
            "that file"
        ) from None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        raise UserError(f"{path}: is not a lock of fedh2l_mpi; if no run is at work here, remove it") from None


def _started(pid: int) -> str | None:
    """When a process of this machine started; None if that cannot be seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    ticks = start_ticks(pid)
    return None if ticks is None else f"{ticks} {boot}"


def _boot(started: str) -> str:
    return started.partition(" ")[2]


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _job_has_ended(job: str) -> bool | None:
    """Whether Slurm no longer runs a job; None if it cannot be asked."""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=SQUEUE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode:
        # It has forgotten the job, or does not answer.
        return True if "Invalid job id" in asked.stderr else None
    return set(asked.stdout.split()) <= ENDED
