"""Parent of a rank: the launcher, or a proxy between the launcher and the rank."""

import os

from fedh2l_mpi.runtime.processes import stat_fields


class ParentProcess:
    """Process that started this one.

    Parameters
    ----------
    proxy, launcher : int
        Pid of the proxy, and of the launcher that started the proxy; 0 if there is no proxy.
    refused : str
        Reason why imports are not shared although the user asked for it; empty if there is none.
    """

    def __init__(self, proxy: int = 0, launcher: int = 0, refused: str = "") -> None:
        self.proxy, self.refused = proxy, refused
        self._launcher = launcher or os.getppid()

    def __str__(self) -> str:
        if self.proxy:
            return f"--share-imports: a copy of a process with all imports; the launcher knows it as pid {self.proxy}"
        return f"--share-imports: imports are not shared: {self.refused or 'no other rank is on this node'}"

    @property
    def launcher_is_gone(self) -> bool:
        """True if the launcher has ended, so that it can no longer end the ranks."""
        if not self.proxy:
            return os.getppid() != self._launcher
        try:
            return int(stat_fields(self.proxy)[1]) != self._launcher
        except OSError:
            # The proxy has ended, so the kernel is about to kill this process.
            return True
