"""Collect every round's rows on rank 0, which writes them. There is no barrier and no pickled message.

The other ranks send their rows and continue at once. Rank 0 writes a round as soon as all its rows have arrived. It
checks between participants and while it waits for neighbours. It waits for rows only if it is a whole round behind.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import TAGS, World

if TYPE_CHECKING:
    from mpi4py import MPI

Table = NDArray[np.float64]


class Collector:
    """One rank's part of the collection. The constructor is **collective**.

    Parameters
    ----------
    width : int
        Numbers in a participant's row.
    write : callable
        Called on rank 0 with each round index and its table (P, width), in the order of rounds. Any method may call it,
        and passes its errors on.
    deadline_s : float
        Longest wait for another rank [s].
    """

    def __init__(
        self,
        world: World,
        hosting: Hosting,
        width: int,
        write: Callable[[int, Table], None],
        deadline_s: float,
    ) -> None:
        self._world, self._hosting, self._width = world, hosting, width
        self._write, self._deadline_s = write, deadline_s
        self._comm = world.duplicate()
        # Rank 0 keeps tables that are not complete yet. Other ranks keep the rows that MPI is still sending.
        self._tables: dict[int, tuple[Table, list[MPI.Request]]] = {}

    def record(self, round_index: int, rows: Table) -> None:
        """Send this rank's rows of a round, float64 (hosted participants, width), to rank 0. **Collective.**

        It first waits for earlier rounds that have not arrived yet.

        Raises
        ------
        LateRankError
            If an earlier round does not arrive in time. On rank 0 the error names the late ranks.
        """
        tag = round_index % TAGS
        if self._comm is None:
            self._write(round_index, rows)
        elif self._world.rank == 0:
            table = np.full((self._hosting.participants, self._width), np.nan)
            requests = []
            for rank in range(1, self._world.size):
                part = self._hosting.participants_of(rank)
                requests.append(self._comm.Irecv(table[part.start : part.stop], rank, tag))
            table[: len(rows)] = rows
            self._tables[round_index] = (table, requests)
            self._write_until(round_index)
        else:
            self._tables[round_index] = (rows, [self._comm.Isend(rows, 0, tag)])
            self._finish(round_index - 1)

    def poll(self) -> None:
        """Write the rounds whose rows have all arrived, on rank 0. It is cheap and never waits."""
        if self._world.rank == 0 and self._tables:
            self._write_until(min(self._tables))

    def finish(self) -> None:
        """Wait until rank 0 has written every round recorded so far. **Collective.**

        Raises
        ------
        LateRankError
            If a round does not arrive in time. On rank 0 the error names the late ranks.
        """
        for round_index in sorted(self._tables):
            if self._world.rank == 0:
                self._write_until(round_index + 1)
            else:
                self._finish(round_index)

    def gather(
        self,
        block_of: Callable[[int], NDArray[Any]],
        shape: tuple[int, ...],
        dtype: str,
        put: Callable[[int, NDArray[Any]], None],
        name: str = "results at the end",
    ) -> None:
        """Bring a block of every participant to rank 0, one after another, after all rounds so far. **Collective.**

        No rank holds the blocks of more than one participant at a time.

        Parameters
        ----------
        block_of : callable
            Returns the block of a participant hosted here: C-contiguous, of this shape and dtype.
        put : callable
            Called on rank 0 with each participant and its block.
        name : str
            Words for the blocks, for the message about a late rank.

        Raises
        ------
        LateRankError
            If a block does not arrive in time.
        """
        self.finish()
        hosted = [self._hosting.participants_of(rank) for rank in range(self._world.size)]
        # The first participant of every rank, then every second one, so that all ranks compute at the same time.
        turns = [
            (rank, own[i]) for i in range(max(map(len, hosted))) for rank, own in enumerate(hosted) if i < len(own)
        ]
        for rank, participant in turns:
            what = f"{name} of participant {participant}"
            if rank == self._world.rank:
                block = block_of(participant)
                if rank == 0:
                    put(participant, block)
                elif self._comm is not None:
                    self._world.wait([self._comm.Isend(block, 0, 0)], [0], self._deadline_s, what)
            elif self._world.rank == 0 and self._comm is not None:
                received = np.empty(shape, dtype)
                self._world.wait([self._comm.Irecv(received, rank, 0)], [rank], self._deadline_s, what)
                put(participant, received)

    def _write_until(self, newest: int) -> None:
        """Write complete rounds in order. Wait for incomplete ones only if they are earlier than round `newest`."""
        for round_index in sorted(self._tables):
            table, requests = self._tables[round_index]
            if round_index >= newest and not all(request.Get_status() for request in requests):
                return
            self._finish(round_index)
            self._write(round_index, table)

    def _finish(self, round_index: int) -> None:
        if round_index in self._tables:
            _, requests = self._tables.pop(round_index)
            others = range(1, self._world.size) if self._world.rank == 0 else [0]
            self._world.wait(requests, list(others), self._deadline_s, f"metrics of round {round_index}")
