"""Exchange of one rank's arrays with its neighbours: it posts messages, waits for them, and counts their bytes.

MPI carries messages between ranks. Participants on one rank get each other's arrays in memory.

Shape letters: N neighbours.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.exchange import codecs, host_memory
from fedh2l_mpi.exchange.array_spec import ArraySpec
from fedh2l_mpi.exchange.message import Message
from fedh2l_mpi.exchange.row_skipping import CachedRows, build_rows
from fedh2l_mpi.exchange.wire_format import message_bytes
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import TAGS, World
from fedh2l_mpi.topology import Graph

if TYPE_CHECKING:
    from mpi4py import MPI

# Under this name, a participant's state contains the rows that its neighbours have cached. Checkpoints store the name.
CACHED = "held_by_neighbours"


@dataclass(frozen=True)
class _Route:
    """Pair of messages between this rank and another one for one graph."""

    rank: int
    outgoing: Message
    incoming: Message


class Received(Mapping[int, Tensor]):
    """Mapping from each hosted participant to its neighbours' arrays, float32 (N, rows, columns), in participant order.

    Read every item before the next round starts, because that round reuses the buffers. Items are built when they are
    read; otherwise a complete graph would need P times the memory.

    Attributes
    ----------
    arrays : mapping
        From each participant whose array is on this rank to that array, float32 tensor (rows, columns).
    """

    def __init__(
        self, array: ArraySpec, graph: Graph, hosted: range, arrays: Mapping[int, Tensor], pinned: bool = False
    ) -> None:
        self._array, self._graph, self._hosted, self.arrays = array, graph, hosted, arrays
        self._pinned = pinned

    def __getitem__(self, participant: int) -> Tensor:
        if participant not in self._hosted:
            raise KeyError(participant)
        near = [self.arrays[neighbour] for neighbour in self._graph.neighbours[participant]]
        return (
            host_memory.stacked(near, self._pinned) if near else torch.empty(0, self._array.rows, self._array.columns)
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._hosted)

    def __len__(self) -> int:
        return len(self._hosted)


@dataclass
class Ledger:
    """Bytes that crossed edges of the graph in a round, by hosted participant.

    An edge counts as the message that would carry one participant's array alone, also within a rank. The traffic of
    the method therefore does not depend on the hosting. Skipped rows do not count.
    """

    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)


class Exchange:
    """Exchange of one rank's participants with their neighbours. Building it is **collective**.

    Parameters
    ----------
    array : ArraySpec
        The published array, the same on every rank, which the handshake has checked.
    deadline_s : float
        Longest wait for another rank [s].
    pinned : bool
        Whether received arrays are returned in page-locked memory, for a copy to a GPU. The messages themselves are in
        ordinary memory, because only MPI and the CPU use them.
    arrived : callable, optional
        Called once in each round that has messages, with three arguments: the round; the `time.perf_counter` at which
        its sends were posted; the one at which this rank first saw all its messages complete, sent and received [s].

    Attributes
    ----------
    ledger : Ledger
        The ledger of the last finished round.
    mpi_sent : int
        Size of all messages given to MPI so far [bytes].
    """

    def __init__(
        self,
        world: World,
        hosting: Hosting,
        array: ArraySpec,
        deadline_s: float,
        pinned: bool = False,
        arrived: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self._world, self._hosting, self._array = world, hosting, array
        self._deadline_s, self._pinned = deadline_s, pinned
        self._arrived, self._posted_s = arrived, math.nan
        self._hosted = hosting.participants_of(world.rank)
        self._comm = world.duplicate()
        self._graph: Graph | None = None
        self._routes: list[_Route] = []
        self._receives: list[MPI.Request] = []
        self._sends: list[MPI.Request] = []
        self._rows = build_rows(array, self._hosted)
        # Hosted participants' parts of the round's messages, because their neighbours on this rank decode them, too.
        self._parts: Mapping[int, NDArray[np.uint8]] = {}
        self._round = -1
        self.ledger = Ledger()
        self.mpi_sent = 0

    def start(self, round_index: int, graph: Graph, published: Mapping[int, Tensor]) -> None:
        """Post the receives of a round, then its sends, and return at once.

        Parameters
        ----------
        published : mapping
            From each hosted participant to its array, float32 tensor (rows, columns) in host memory.

        Raises
        ------
        RuntimeError
            If an array does not fit the specification. The receiver's check is not enough, because arrays between
            participants on one rank never cross MPI.
        UserError
            If a number is too large for the codec.
        """
        for participant, array in published.items():
            self._array.check_published(array, participant)
        if graph is not self._graph:
            # Forget the cache, because a new neighbour has none. Compare edges, because two objects may be one graph.
            if self._graph is None or graph.edges != self._graph.edges:
                self._rows.forget()
            self._graph, self._routes = graph, self._plan_routes(graph)
        self._round = round_index
        self._parts = {index: self._rows.encode(index, array.numpy()) for index, array in published.items()}
        tag = round_index % TAGS
        if self._comm is not None:
            self._receives = [self._comm.Irecv(route.incoming.buffer, route.rank, tag) for route in self._routes]
        for route in self._routes:
            route.outgoing.fill(self._parts)
            route.outgoing.seal(round_index)
            self.mpi_sent += route.outgoing.nbytes
        if self._comm is not None:
            self._sends = [self._comm.Isend(route.outgoing.wire, route.rank, tag) for route in self._routes]
        self._posted_s = time.perf_counter()

    def progress(self) -> None:
        """Give MPI a chance to move large messages while this rank computes."""
        if self._receives:
            self._receives[0].Get_status()
            waits = self._arrived is not None and not math.isnan(self._posted_s)
            if waits and all(request.Get_status() for request in (*self._receives, *self._sends)):
                self._report_arrival()

    def finish(self, idle: Callable[[], None] | None = None) -> "Received":
        """Wait for the round's messages, and return the arrays of each hosted participant's neighbours.

        Parameters
        ----------
        idle : callable
            Background work, called while this rank waits.

        Returns
        -------
        Received
            From participant to float32 tensor (N, rows, columns) in host memory, neighbours in participant order;
            N = 0 for an isolated participant.

        Raises
        ------
        LateRankError
            If a rank's message does not arrive before the deadline.
        RuntimeError
            If a message does not fit this round.
        """
        if self._graph is None:
            raise RuntimeError("finish() was called before start().")
        arrays = {index: torch.from_numpy(self._rows.decode(index, part)) for index, part in self._parts.items()}
        arrays |= {index: torch.from_numpy(array) for index, array in self._from_other_ranks(idle)}
        self._charge(self._graph)
        self._parts = {}
        return Received(self._array, self._graph, self._hosted, arrays, self._pinned)

    def cached(self, participant: int) -> Tensor:
        """Return the copy of a hosted participant's array that its neighbours have cached.

        Returns
        -------
        float32 tensor (rows, columns)
            In host memory. Later rounds update it, and rows that were never sent are NaN. It belongs to the
            participant's state.

        Raises
        ------
        RuntimeError
            If all rows are always sent, so that none is cached.
        """
        return torch.from_numpy(self._cached_rows().cached(participant))

    def resend(self, round_index: int, graph: Graph, cached: Mapping[int, Tensor]) -> None:
        """Restore the neighbours' caches as they were after a round, if unchanged rows are skipped. **Collective.**

        The arrays are sent again as float32, so no bit is lost. The ledger does not count them, because the traffic of
        a resumed run must equal that of an uninterrupted run.

        Parameters
        ----------
        round_index, graph : int, Graph
            The last round that had an exchange, and its graph.
        cached : mapping
            From each hosted participant to the array that `cached` returned then.

        Raises
        ------
        LateRankError
            If a rank's message does not arrive before the deadline.
        """
        whole = replace(self._array, codec=codecs.FLOAT32, skip_below=None)
        once = Exchange(self._world, self._hosting, whole, self._deadline_s)
        # Nobody has rows of those without neighbours, who may never have sent any.
        once.start(round_index, graph, {index: array for index, array in cached.items() if graph.neighbours[index]})
        arrays = {**cached, **once.finish().arrays}
        self._cached_rows().resume_from({index: array.numpy() for index, array in arrays.items()})
        self._graph, self._routes = graph, self._plan_routes(graph)

    def share_cache(self, kept: Mapping[int, dict[str, Tensor]], before: tuple[int, Graph] | None) -> None:
        """Make the neighbours' caches a part of each participant's state, if unchanged rows are skipped.

        **Collective.** On resume, the neighbours first get back the caches of the checkpoint. If all rows are always
        sent, this does nothing.

        Parameters
        ----------
        kept : mapping
            From each hosted participant to the dict of the tensors that its state contains.
        before : tuple of int and Graph, or None
            The last finished round that had an exchange, and its graph; None if there is none.
        """
        if not isinstance(self._rows, CachedRows):
            return
        if before is not None:
            self.resend(*before, {index: state[CACHED].cpu() for index, state in kept.items()})
        for index, state in kept.items():
            state[CACHED] = self.cached(index)

    def nothing(self) -> Mapping[int, Tensor]:
        """Return the arrays of a round without an exchange, float32 (0, rows, columns) for each participant."""
        empty = torch.empty(0, self._array.rows, self._array.columns)
        return dict.fromkeys(self._hosted, empty)

    def close_round(self) -> Ledger:
        """Return the round's ledger, and begin an empty one. A round without an exchange has an empty ledger."""
        ledger, self.ledger = self.ledger, Ledger()
        return ledger

    def _from_other_ranks(self, idle: Callable[[], None] | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each array from another rank with its participant."""
        if not self._receives:
            return
        ranks = [route.rank for route in self._routes]
        requests = [*self._receives, *self._sends]
        self._receives, self._sends = [], []
        what = f"{self._array.name} of round {self._round}"
        sizes = self._world.wait(requests, ranks + ranks, self._deadline_s, what, idle)
        self._report_arrival()
        # Check the sizes, because MPI accepts a short message silently. A long one has raised MPI_ERR_TRUNCATE.
        for route, received_bytes in zip(self._routes, sizes, strict=False):
            try:
                arrays = route.incoming.open(self._round, received_bytes, self._rows)
            except RuntimeError as error:
                raise RuntimeError(f"message of round {self._round} from rank {route.rank}: {error}") from None
            yield from zip(route.incoming.senders, arrays, strict=True)

    def _report_arrival(self) -> None:
        """Report, once per round, that all messages of the round are complete."""
        if self._arrived is not None and not math.isnan(self._posted_s):
            self._arrived(self._round, self._posted_s, time.perf_counter())
        self._posted_s = math.nan

    def _cached_rows(self) -> CachedRows:
        if not isinstance(self._rows, CachedRows):
            raise RuntimeError(f"{self._array.name}: every row is sent in every round, so no rows are cached.")
        return self._rows

    def _charge(self, graph: Graph) -> None:
        """Enter the bytes of each hosted participant's edges into the ledger."""
        alone_bytes = {index: message_bytes([len(part)]) for index, part in self._parts.items()}
        for route in self._routes:
            parts = zip(route.incoming.senders, route.incoming.part_bytes, strict=True)
            alone_bytes |= {index: message_bytes([size]) for index, size in parts}
        # Multiply if all sizes are equal, because a complete graph has too many edges to add one by one. Only skipped
        # rows make sizes differ.
        same = set(alone_bytes.values())
        for participant in self._hosted:
            near = graph.neighbours[participant]
            # Who is absent has neither neighbours nor an array.
            self.ledger.sent[participant] = len(near) * alone_bytes[participant] if near else 0
            self.ledger.received[participant] = (
                len(near) * min(same) if near and len(same) == 1 else sum(alone_bytes[neighbour] for neighbour in near)
            )

    def _plan_routes(self, graph: Graph) -> list[_Route]:
        """Plan one route for each other rank that hosts a neighbour of a participant on this rank."""
        outgoing: dict[int, set[int]] = {}
        incoming: dict[int, set[int]] = {}
        for participant in self._hosted:
            for neighbour in graph.neighbours[participant]:
                rank = self._hosting.rank_of(neighbour)
                if rank != self._world.rank:
                    outgoing.setdefault(rank, set()).add(participant)
                    incoming.setdefault(rank, set()).add(neighbour)
        return [
            _Route(
                rank,
                Message(sorted(outgoing[rank]), self._array),
                Message(sorted(incoming[rank]), self._array),
            )
            for rank in sorted(outgoing)
        ]


class NoExchange:
    """Exchange of a method that publishes nothing.

    Parameters
    ----------
    hosted : range
        The participants hosted here.
    """

    def __init__(self, hosted: range) -> None:
        self._hosted = hosted

    def start(self, round_index: int, graph: Graph, published: Mapping[int, Tensor]) -> None:
        """Raise an error, because there is no array to send.

        Raises
        ------
        RuntimeError
            Always.
        """
        raise RuntimeError("exchange: the method publishes no array, so there is nothing to send.")

    def progress(self) -> None:
        """Do nothing, because no message is on its way."""

    def finish(self, idle: Callable[[], None] | None = None) -> Mapping[int, Tensor]:
        """Return no arrays, as `nothing` does."""
        return self.nothing()

    def nothing(self) -> Mapping[int, Tensor]:
        """Return the arrays of a round without an exchange, float32 (0, 0, 0) for each participant."""
        return dict.fromkeys(self._hosted, torch.empty(0, 0, 0))

    def close_round(self) -> Ledger:
        """Return an empty ledger."""
        return Ledger()
