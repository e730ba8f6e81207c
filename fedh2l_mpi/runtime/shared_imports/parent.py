"""Who started a rank, as far as it matters to it: the launcher, or a proxy in between."""

import os

from fedh2l_mpi.runtime.processes import stat_fields


class ParentProcess:
    """Of this process.

    Parameters
    ----------
    proxy, launcher : int
        Process that stands in for this one, and the one that has started that; 0 if there is none in between.
    refused : str
        Why imports are not shared although it was asked for; empty if they are, or if there is nothing to say.
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
        """Whether the process that started this one has ended: nobody would end the ranks any more."""
        if not self.proxy:
            return os.getppid() != self._launcher
        try:
            return int(stat_fields(self.proxy)[1]) != self._launcher
        except OSError:
            # Without its proxy this process is about to be killed.
            return True
